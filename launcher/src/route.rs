//! Which address of this machine others reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// The address of this machine on the way to `(host, port)`: from there it is reached by it.
///
/// # Errors
/// If the name means nothing here, or there is no way to any of its addresses.
pub(crate) fn own_address_towards(host: &str, port: u16) -> io::Result<IpAddr> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for target in (host, port).to_socket_addrs()? {
        match towards(target) {
            Ok(address) => return Ok(address),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn towards(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket sends nothing; it chooses the way.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_loopback_begins_there() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(own_address_towards("127.0.0.1", 9).unwrap(), loopback);
        assert!(own_address_towards("no.such.name.invalid", 9).is_err());
    }
}
