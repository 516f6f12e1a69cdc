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
