//! A UDP socket that answers from the address it was asked at.
//!
//! On a node with several addresses the kernel would choose the answer's source by route; a client, and the address
//! translation in between, waits for one from the address it asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

pub struct Socket {
    socket: UdpSocket,
    /// Bound to every address.
    any: bool,
}

/// Who asked, and at which of our addresses.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    address: SocketAddr,
    at: Option<At>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Socket {
    pub async fn bind(address: SocketAddr) -> io::Result<Socket> {
        let socket = UdpSocket::bind(address).await?;
        let any = address.ip().is_unspecified();
        if any {
            match address.ip() {
                IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
                IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        Ok(Socket { socket, any })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        if !self.any {
            let (n, address) = self.socket.recv_from(buffer).await?;
            return Ok((n, Peer { address, at: None }));
        }
        let fd = self.socket.as_raw_fd();
        let read = || -> io::Result<(usize, Peer)> {
            let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
            let mut at = None;
            for part in message.cmsgs()? {
                match part {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        // The answer leaves by route; only its source is fixed.
                        at = Some(At::V4(libc::in_pktinfo {
                            ipi_ifindex: 0,
                            ipi_spec_dst: info.ipi_addr,
                            ..info
                        }));
                    }
                    ControlMessageOwned::Ipv6PacketInfo(info) => at = Some(At::V6(info)),
                    _ => {}
                }
            }
            let address = message.address.as_ref().and_then(socket_address);
            let address = address.ok_or_else(|| io::Error::other("a datagram from nowhere"))?;
            Ok((message.bytes, Peer { address, at }))
        };
        let mut read = read;
        self.socket.async_io(Interest::READABLE, &mut read).await
    }

    pub async fn send(&self, bytes: &[u8], to: &Peer) -> io::Result<()> {
        let Some(at) = to.at else {
            return self.socket.send_to(bytes, to.address).await.map(|_| ());
        };
        let fd = self.socket.as_raw_fd();
        let address = SockaddrStorage::from(to.address);
        let write = || -> io::Result<()> {
            let parts = [IoSlice::new(bytes)];
            let control = match &at {
                At::V4(info) => [ControlMessage::Ipv4PacketInfo(info)],
                At::V6(info) => [ControlMessage::Ipv6PacketInfo(info)],
            };
            sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&address))?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, write).await
    }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()))
}
