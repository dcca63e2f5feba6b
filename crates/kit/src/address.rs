//! What an address leads to: asked before a connection is made for somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether it is neither this machine, nor a neighbour that only one link reaches (where clouds keep their secrets), nor
/// many at once: Go's `IsGlobalUnicast`. Private networks are global in this sense.
pub fn is_global_unicast(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(it) => it.is_link_local() || it.is_broadcast(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

/// Whether it is an address of the Internet, that anybody may be connected to: nothing private, shared, reserved, nor what
/// a cloud serves its own machines.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => is_public_v4(it),
        IpAddr::V6(it) => is_public_v6(it),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    /// Azure's own services for each machine, at an address that looks like any other.
    const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    let reserved = match address.octets() {
        // This network; shared by customers of a provider; protocol assignments; old relays; tests of devices; later use.
        [0, ..] | [100, 64..=127, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [240..=255, ..] => {
            true
        }
        _ => address == WIRESERVER,
    };
    let special = address.is_private() || address.is_documentation() || !is_global_unicast(address.into());
    !(reserved || special)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // What leads to an address of version 4 is what that is.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // Tunnels, benchmarks and identifiers; examples.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_public_private_or_only_near() {
        for (address, global, public) in [
            ("93.184.215.14", true, true),
            ("2606:4700::1111", true, true),
            ("64:ff9b::5db8:d70e", true, true),
            ("10.1.2.3", true, false),
            ("172.31.0.1", true, false),
            ("192.168.1.1", true, false),
            ("100.100.100.200", true, false),
            ("168.63.129.16", true, false),
            ("192.0.0.192", true, false),
            ("198.18.0.1", true, false),
            ("240.0.0.1", true, false),
            ("0.1.2.3", true, false),
            ("fd00:ec2::254", true, false),
            ("fec0::1", true, false),
            ("2001:db8::1", true, false),
            ("2001::1", true, false),
            ("64:ff9b::a01:203", true, false),
            ("64:ff9b:1::5db8:d70e", true, false),
            ("2002:7f00:1::", true, false),
            ("::5db8:d70e", true, false),
            ("127.0.0.1", false, false),
            ("::1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!((is_global_unicast(parsed), is_public(parsed)), (global, public), "{address}");
        }
    }
}
