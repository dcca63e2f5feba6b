//! Devices, addresses and routes of a network namespace: the few messages of rtnetlink that pods need.
//!
//! The kernel does what a message asks while it is sent, so the answer is there when `send` returns: nothing here waits
//! but for the kernel's own lock. Not for a task of the runtime all the same: a device takes a while to go.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const NEWQDISC: u16 = 36;
const NEWTFILTER: u16 = 44;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;

/// Settings of a device, by the numbers that the kernel has for `net.ipv4.conf.DEVICE.…`.
pub(super) const FORWARDING: u16 = 1;
pub(super) const RP_FILTER: u16 = 8;

const INET: u8 = 2;
/// Every network namespace has its loopback first.
pub(super) const LOOPBACK: u32 = 1;
/// The most that the kernel answers in one piece.
const PIECE: usize = 64 << 10;

pub(super) struct Netlink {
    socket: OwnedFd,
}

/// A device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub index: u32,
    pub name: String,
    /// What its maker has written on it.
    pub alias: String,
}

/// An address of a device, or the destination of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub address: Ipv4Addr,
    pub bits: u8,
}

/// Where packets go.
pub(super) struct Route {
    pub to: Prefix,
    pub device: u32,
    pub via: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
}

impl Prefix {
    pub(super) const fn new(address: Ipv4Addr, bits: u8) -> Self {
        Self { address, bits }
    }

    fn mask(bits: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or_default()
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & Self::mask(self.bits) == 0
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let bits = self.bits.min(other.bits);
        Self::new(self.address, bits).contains(other.address)
    }
}

/// One message, or what is nested in one.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes(&[length.to_ne_bytes(), kind.to_ne_bytes()].concat()).bytes(value)
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn nest(self, kind: u16, within: Message) -> Self {
        self.attribute(kind, &within.0)
    }

    /// `struct ifinfomsg`.
    fn link(index: u32, flags: u32) -> Self {
        let zero = [0u8; 4];
        Self::default().bytes(&[zero, index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat())
    }
}

impl Netlink {
    /// Of the network namespace of this process.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Self::over(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?))
    }

    /// Of the one in which a socket was opened.
    pub(super) fn over(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub(super) fn namespace(&self) -> io::Result<OwnedFd> {
        crate::sys::network_of(self.socket.as_fd())
    }

    fn send(&self, kind: u16, flags: u16, message: Message) -> io::Result<()> {
        let length = u32::try_from(message.0.len() + 16).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(message.0.len() + 16);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        // One question at a time: neither a sequence number nor a port is needed.
        bytes.extend([0; 8]);
        bytes.extend(message.0);
        // With the kernel's address, what counts is what we may, not what the process may that has opened the socket: a
        // pair of devices between two pods' networks is nothing that one of the pods may make.
        rustix::net::sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// What is asked is done when this returns.
    fn change(&self, kind: u16, flags: u16, message: Message) -> io::Result<()> {
        self.send(kind, ACK | flags, message)?;
        self.answers(|_, _| ()).map(drop)
    }

    fn dump(&self, kind: u16, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(kind, DUMP, message)?;
        self.answers(each)
    }

    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0u8; PIECE];
        loop {
            let (_, got) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..got).unwrap_or_default();
            while let Some((kind, body, after)) = message(rest) {
                match kind {
                    ERROR => {
                        return match number(body, 0).map(|it| it as i32) {
                            Some(0) => Ok(()),
                            Some(error) => Err(io::Error::from_raw_os_error(-error)),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    DONE => return Ok(()),
                    _ => each(kind, body),
                }
                rest = after;
            }
        }
    }

    pub(super) fn devices(&self) -> io::Result<Vec<Device>> {
        let mut all = Vec::new();
        self.dump(GETLINK, Message::link(0, 0), |kind, body| {
            if let (NEWLINK, Some(index)) = (kind, number(body, 4)) {
                let text = |kind| {
                    let bytes = attribute(body, 16, kind).unwrap_or_default();
                    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
                };
                all.push(Device { index, name: text(IFLA_IFNAME), alias: text(IFLA_IFALIAS) });
            }
        })?;
        Ok(all)
    }

    /// The number of a device. `None` when there is none of this name.
    pub(super) fn index(&self, name: &str) -> io::Result<Option<u32>> {
        let mut found = None;
        self.send(GETLINK, ACK, Message::link(0, 0).text(IFLA_IFNAME, name))?;
        let answered = self.answers(|kind, body| {
            if kind == NEWLINK {
                found = number(body, 4);
            }
        });
        match answered {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// The addresses of all devices, each with its device's number.
    pub(super) fn addresses(&self) -> io::Result<Vec<(u32, Prefix)>> {
        let mut all = Vec::new();
        self.dump(GETADDR, Message::default().bytes(&[INET, 0, 0, 0, 0, 0, 0, 0]), |kind, body| {
            let local = attribute(body, 8, IFA_LOCAL).and_then(address);
            if let (NEWADDR, Some(local), Some(&bits), Some(device)) = (kind, local, body.get(1), number(body, 4)) {
                all.push((device, Prefix::new(local, bits)));
            }
        })?;
        Ok(all)
    }

    /// Where routes lead to, of all tables.
    pub(super) fn destinations(&self) -> io::Result<Vec<Prefix>> {
        let mut all = Vec::new();
        self.dump(GETROUTE, Message::default().bytes(&[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), |kind, body| {
            let to = attribute(body, 12, RTA_DST).and_then(address);
            if let (NEWROUTE, Some(to), Some(&bits)) = (kind, to, body.get(1)) {
                all.push(Prefix::new(to, bits));
            }
        })?;
        Ok(all)
    }

    /// Whether we may change anything here.
    pub(super) fn may_change(&self) -> bool {
        // What makes no sense is refused, but not to everybody for that reason.
        let refused = self.change(DELLINK, 0, Message::link(0, 0)).err();
        refused.is_none_or(|it| it.kind() != io::ErrorKind::PermissionDenied)
    }

    /// Makes a pair of devices, one here, one in another namespace.
    pub(super) fn pair(&self, name: &str, (peer, there): (&str, BorrowedFd<'_>)) -> io::Result<()> {
        let fd = |it: BorrowedFd<'_>| it.as_raw_fd().cast_unsigned();
        let other = Message::link(0, 0).text(IFLA_IFNAME, peer).number(IFLA_NET_NS_FD, fd(there));
        let info =
            Message::default().text(INFO_KIND, "veth").nest(INFO_DATA, Message::default().nest(VETH_INFO_PEER, other));
        self.change(NEWLINK, CREATE | EXCL, Message::link(0, 0).text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, info))
    }

    /// Brings a device up, with settings and something written on it.
    pub(super) fn up(&self, device: u32, settings: &[(u16, u32)], alias: &str) -> io::Result<()> {
        let settings = settings.iter().fold(Message::default(), |it, (kind, value)| it.number(*kind, *value));
        let inet = Message::default().nest(IFLA_INET_CONF, settings);
        let mut message = Message::link(device, 1);
        if !alias.is_empty() {
            message = message.text(IFLA_IFALIAS, alias);
        }
        self.change(NEWLINK, 0, message.nest(IFLA_AF_SPEC, Message::default().nest(INET.into(), inet)))
    }

    /// Removes a device, and with it the other one of its pair. One that is not there is removed.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match self.change(DELLINK, 0, Message::link(0, 0).text(IFLA_IFNAME, name)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a device an address; the one that it has stays.
    pub(super) fn add_address(&self, device: u32, it: Prefix) -> io::Result<()> {
        match self.change(NEWADDR, CREATE | EXCL, interface_address(device, it)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub(super) fn remove_address(&self, device: u32, it: Prefix) -> io::Result<()> {
        match self.change(DELADDR, 0, interface_address(device, it)) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Fails when there is such a route.
    pub(super) fn add_route(&self, it: &Route) -> io::Result<()> {
        const MAIN: u8 = 254;
        const STATIC: u8 = 4;
        const UNICAST: u8 = 1;
        let scope = if it.via.is_some() { 0 } else { 253 };
        let header = [INET, it.to.bits, 0, 0, MAIN, STATIC, scope, UNICAST, 0, 0, 0, 0];
        let mut message = Message::default().bytes(&header).number(RTA_OIF, it.device);
        let addresses = [(RTA_DST, Some(it.to.address)), (RTA_GATEWAY, it.via), (RTA_PREFSRC, it.source)];
        for (kind, address) in addresses {
            if let Some(address) = address.filter(|it| !it.is_unspecified()) {
                message = message.attribute(kind, &address.octets());
            }
        }
        self.change(NEWROUTE, CREATE | EXCL, message)
    }

    /// Asks this program about every packet that leaves by a device: 0 lets it go, 2 drops it.
    pub(super) fn filter(&self, device: u32, program: &[(u16, u8, u8, u32)]) -> io::Result<()> {
        let header = |handle: u32, parent: u32, info: u32| {
            let zero = [0u8; 4];
            let all = [zero, device.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), info.to_ne_bytes()];
            Message::default().bytes(&all.concat())
        };
        self.change(NEWQDISC, CREATE | EXCL, header(0xffff_0000, 0xffff_fff1, 0).text(TCA_KIND, "clsact"))?;
        let length = u16::try_from(program.len()).map_err(io::Error::other)?;
        let code: Vec<u8> = program
            .iter()
            .flat_map(|(code, yes, no, value)| [&code.to_ne_bytes()[..], &[*yes, *no], &value.to_ne_bytes()].concat())
            .collect();
        let options = Message::default()
            .attribute(TCA_BPF_OPS_LEN, &length.to_ne_bytes())
            .attribute(TCA_BPF_OPS, &code)
            // What it returns is what is done.
            .number(TCA_BPF_FLAGS, 1);
        // Of the first priority, for every protocol.
        let info = 1 << 16 | u32::from(3u16.to_be());
        let message = header(0, 0xffff_fff3, info).text(TCA_KIND, "bpf").nest(TCA_OPTIONS, options);
        self.change(NEWTFILTER, CREATE | EXCL, message)
    }
}

/// `struct ifaddrmsg` and what follows.
fn interface_address(device: u32, it: Prefix) -> Message {
    let octets = it.address.octets();
    Message::default()
        .bytes(&[INET, it.bits, 0, 0])
        .bytes(&device.to_ne_bytes())
        .attribute(IFA_LOCAL, &octets)
        .attribute(IFA_ADDRESS, &octets)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// The kind and the body of the first message, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes, 0)? as usize;
    let body = bytes.get(16..length)?;
    Some((half(bytes, 4)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The value of the first attribute of a kind, behind a header of so many bytes.
fn attribute(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = body.get(header..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        let value = rest.get(4..length)?;
        if half(rest, 2)? & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}
