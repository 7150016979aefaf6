//! Which addresses are the public network's, and which are somebody's own.
//!
//! What goes out for a workspace, a machine or a plugin is allowed by name, and a name can be made to resolve to
//! anything. So the address that a name resolved to is looked at too, and the connection is made to exactly that one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

/// Whether an address is one of this host's own, whichever network it is of: what listens there may trust whoever
/// comes from here. Nothing is sent: the kernel is asked which address it would send from.
#[must_use]
pub fn is_own(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let Ok(socket) = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None) else { return false };
    // An address that no way leads to is nobody's.
    connect(&socket, &SocketAddr::new(ip, 9)).is_ok()
        && getsockname(&socket)
            .ok()
            .and_then(|address| SocketAddr::try_from(address).ok())
            .is_some_and(|from| from.ip() == ip)
}

/// Why an address is not one of the public network; none: it is public.
#[must_use]
pub fn private(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => private_v4(v4),
        IpAddr::V6(v6) => private_v6(v6),
    }
}

/// By the registry of RFC 6890 and its successors.
fn private_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, ..) => Some("it stands for this host"),
        (127, ..) => Some("it is loopback"),
        (169, 254, _) => Some("it is link-local, where clouds keep their metadata"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("it is of a private network"),
        (100, 64..=127, _) => Some("it is of a carrier's own network"),
        (192, 0, 0) | (192, 0, 2) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => {
            Some("it is reserved")
        }
        (224..=239, ..) => Some("it is multicast"),
        (240..=255, ..) => Some("it is reserved"),
        _ => None,
    }
}

fn private_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| private_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("it stands for this host"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("it is loopback"),
        // Addresses of IPv4 in other clothes: mapped, compatible, translated (RFC 6052), 6to4.
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] => embedded(a, b),
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => embedded(a, b),
        [0x2002, a, b, ..] => embedded(a, b),
        [0, 0, 0, 0, 0, 0, ..] => Some("it is reserved"),
        [0x64, 0xff9b, 1, ..] => Some("it is of a private network"),
        [0x2001, 0..=0x01ff, ..] | [0x2001, 0xdb8, ..] | [0x100, 0, 0, 0, ..] | [0x3fff, 0..=0x0fff, ..] => {
            Some("it is reserved")
        }
        [0xfc00..=0xfdff, ..] => Some("it is of a private network"),
        [0xfe80..=0xfebf, ..] => Some("it is link-local"),
        [0xfec0..=0xfeff, ..] => Some("it is of a private network"),
        [0xff00..=0xffff, ..] => Some("it is multicast"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("it is reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(is_own([127, 0, 0, 1].into()) && is_own("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!is_own([192, 0, 2, 1].into()) && !is_own("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn only_public_addresses_are_public() {
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert_eq!(private(ip.parse().unwrap()), None, "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "100::1",
            "4000::1",
        ] {
            assert!(private(ip.parse().unwrap()).is_some(), "{ip}");
        }
    }
}
