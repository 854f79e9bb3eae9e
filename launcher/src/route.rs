//! Which address of this machine others reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use anyhow::Context;
use nix::ifaddrs::getifaddrs;
use zipper_cli::UserError;

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

/// The address of a network interface of this machine: of version 4 if it has one.
///
/// # Errors
/// If there is no such interface, or it has no address.
pub(crate) fn address_of(interface: &str) -> anyhow::Result<IpAddr> {
    let mut all: Vec<(String, IpAddr)> = getifaddrs()
        .context("the network interfaces of this machine cannot be listed")?
        .filter_map(|found| {
            let address = found.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            Some((found.interface_name, v4.or_else(v6)?))
        })
        .collect();
    // Those of version 6 that hold on one link only are of no use without its name.
    all.retain(|(_, address)| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    all.sort();
    let found = all.iter().find(|(name, _)| name == interface);
    if let Some((_, address)) = found {
        return Ok(*address);
    }
    let mut names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    let message = format!("`cluster.interface`: this machine has no `{interface}` with an address");
    Err(UserError::new(message)
        .hint(format!("it has {}", names.join(", ")))
        .into())
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

    #[test]
    fn interfaces_are_known_by_their_names() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(address_of("lo").unwrap(), loopback);
        let refused = address_of("nosuch0").unwrap_err();
        assert!(refused.to_string().contains("`nosuch0`"), "{refused}");
        let hints = refused.downcast_ref::<UserError>().unwrap().hints();
        assert!(hints[0].contains("lo"), "{hints:?}");
    }
}
