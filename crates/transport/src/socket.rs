//! What an accepted connection's socket is told.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Sends what is written at once, and has the kernel find out whether the peer of a connection that was `quiet` still lives.
///
/// HTTP/2's pings tell the same, but hyper then looks at the clock for every frame.
pub fn tune(stream: &TcpStream, quiet: Duration) {
    // A socket that takes neither serves all the same.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(quiet).with_interval(quiet.min(PROBE));
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Between two looks for a peer that does not answer; the kernel's count of them (nine) is not changed.
const PROBE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_look_for_their_peers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(listener.accept(), connecting);
        let (near, _far) = (near.unwrap().0, far.unwrap());
        for (quiet, interval) in [(180, 15), (5, 5)] {
            tune(&near, Duration::from_secs(quiet));
            let socket = SockRef::from(&near);
            assert!(near.nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(quiet));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(interval));
        }
    }
}
