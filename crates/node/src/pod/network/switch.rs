//! A network of the pods' own, where this machine lets us make one.
//!
//! Its middle is a network namespace that is nobody's but ours (the *switch*), held by a shim of its own as pods' are, so
//! that it outlives the node. To each pod leads a pair of devices, with a route to the pod's one address; the pod has one
//! route, to the switch. So no frame of a pod reaches another pod, only packets; a packet whose source is not the pod's
//! own address is dropped where it arrives; and there is no way from the switch to anywhere else. What the node listens
//! for in it (services, names) are sockets that were opened in it: two nodes of one machine can have the same services.
//!
//! One pair more leads to the host, so that the host reaches pods at their addresses. A filter on it lets pods answer, and
//! begin nothing: where the kernel has no such filter there is no such pair. Nor is there one where we are an ordinary user,
//! who has the networks of his pods to himself, but not the host's.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::SWITCH;
use super::netlink::{FORWARDING, LOOPBACK, Netlink, Prefix, RP_FILTER, Route};
use crate::Error;
use crate::engine::blocking;
use crate::launcher::shim::Socket;
use crate::pod::{PodConfig, Runtime};

/// Where ClusterIPs come from: pods are elsewhere.
pub(super) const SERVICES: Prefix = Prefix::new(Ipv4Addr::new(10, 96, 0, 0), 12);
/// How much of a machine's network a route may be and still be no more than a default route.
const DEFAULT: u8 = 7;
/// How long a connection within this machine may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// The other end of the host's pair.
const HOST: &str = "host";
/// A pod's device.
const DEVICE: &str = "eth0";

#[derive(Clone)]
pub(super) struct Switch {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Runtime,
    /// All addresses of this node's pods, the switch's own and the host's.
    subnet: Prefix,
    /// The host's end of its pair.
    leg: String,
    /// Whether the host's network is ours to change.
    has_host: bool,
    /// Its work is done one piece after another.
    inner: Mutex<Inner>,
}

struct Inner {
    host: Netlink,
    switch: Netlink,
    pods: BTreeMap<String, Ipv4Addr>,
}

impl Switch {
    /// Makes the network of this node, or takes over the one that an earlier node has left. An error when this machine
    /// does not let us. `seed`: what distinguishes this node from others of this machine.
    pub(super) async fn open(runtime: Runtime, seed: &str) -> Result<Self, Error> {
        let config = PodConfig {
            uid: SWITCH.into(),
            namespace: String::new(),
            name: SWITCH.into(),
            hostname: SWITCH.into(),
            share_processes: false,
            hosts: String::new(),
            resolv: String::new(),
            volumes: Vec::new(),
            ..PodConfig::default()
        };
        runtime.create(config).await?;
        match Self::build(&runtime, seed).await {
            Ok(it) => Ok(it),
            Err(error) => {
                runtime.remove(SWITCH).await?;
                Err(error)
            }
        }
    }

    async fn build(runtime: &Runtime, seed: &str) -> Result<Self, Error> {
        let socket = runtime.socket(SWITCH, Socket::Routes).await.map_err(Error::machine("reach the pods' network"))?;
        let living: Vec<String> = runtime.list().into_iter().filter(|it| it.alive).map(|it| it.config.uid).collect();
        let leg = format!("insula-{:08x}", hash(seed) as u32);
        let (name, seed) = (leg.clone(), hash(seed));
        let built = blocking(move || -> io::Result<_> {
            let (host, switch) = (Netlink::open()?, Netlink::over(socket));
            let has_host = host.may_change();
            let known = switch.addresses()?;
            let known = known.iter().find(|(device, it)| *device == LOOPBACK && !it.address.is_loopback());
            let subnet = match known {
                // The first that it was given.
                Some((_, it)) => Prefix::new(network(it.address), 16),
                None => found(&host, &switch, has_host.then_some(&*name), seed)?,
            };
            let mut pods = BTreeMap::new();
            for device in switch.devices()? {
                let Some(address) = device.name.strip_prefix('p').and_then(|it| it.parse().ok()) else { continue };
                if living.contains(&device.alias) {
                    pods.insert(device.alias, at(subnet, address));
                } else {
                    switch.remove(&device.name)?;
                }
            }
            Ok((subnet, has_host, Inner { host, switch, pods }))
        });
        let (subnet, has_host, inner) = built.await?.map_err(Error::machine("make a network for pods"))?;
        let inner = Mutex::new(inner);
        Ok(Self { shared: Arc::new(Shared { runtime: runtime.clone(), subnet, leg, has_host, inner }) })
    }

    /// Returns when what holds the network has ended, and with it all that could still be opened in it.
    pub(super) async fn lost(&self) {
        let runtime = &self.shared.runtime;
        let Some(mut changed) = runtime.watch(SWITCH) else { return };
        while runtime.state(SWITCH).is_some_and(|it| it.alive) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the host has a way to pods, as far as its kernel knows one; else somebody has to make it one.
    pub(super) fn has_host(&self) -> bool {
        self.shared.has_host
    }

    /// Where all its addresses are.
    pub(super) fn subnet(&self) -> Prefix {
        self.shared.subnet
    }

    /// The pod that has an address.
    pub(super) async fn whose(&self, address: Ipv4Addr) -> Option<String> {
        let find = move |_: &Shared, inner: &mut Inner| {
            Ok(inner.pods.iter().find(|(_, it)| **it == address).map(|(uid, _)| uid.clone()))
        };
        self.work("look for a pod", find).await.ok().flatten()
    }

    /// The switch's own address, to which all that pods send goes first.
    pub(super) fn address(&self) -> Ipv4Addr {
        at(self.shared.subnet, 1)
    }

    /// The host's device that leads to pods, where there is one.
    #[cfg(test)]
    pub(super) fn leg(&self) -> &str {
        &self.shared.leg
    }

    /// Whether it is the place of a pod, or of ourselves.
    pub(super) fn has(&self, address: Ipv4Addr) -> bool {
        self.shared.subnet.contains(address)
    }

    /// Whether it is the place of a pod, or what looks like a service's: all that pods reach here, but for ourselves.
    pub(super) fn is_within(&self, address: Ipv4Addr) -> bool {
        SERVICES.contains(address) || (pods(self.shared.subnet).contains(address) && address != self.address())
    }

    async fn work<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Shared, &mut Inner) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.shared.clone();
        let done = blocking(move || work(&shared, &mut shared.inner.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await?.map_err(Error::machine(what))
    }

    pub(super) async fn join(&self, uid: &str) -> Result<Ipv4Addr, Error> {
        const WHAT: &str = "give a pod its network";
        let pod = self.shared.runtime.socket(uid, Socket::Routes).await.map_err(Error::machine(WHAT))?;
        let uid = uid.to_owned();
        self.work(WHAT, move |shared, inner| {
            let pod = Netlink::over(pod);
            if let Some(address) = inner.pods.get(&uid) {
                if pod.addresses()?.iter().any(|(_, it)| it.address == *address) {
                    return Ok(*address);
                }
                // Half made, or made for a shim that is gone.
                inner.switch.remove(&device(*address))?;
            }
            let used: Vec<Ipv4Addr> = inner.pods.values().copied().collect();
            let address = place(shared.subnet, &uid, |it| used.contains(&it))
                .ok_or_else(|| io::Error::other("all addresses are in use"))?;
            inner.pods.insert(uid.clone(), address);
            let done = connect(inner, &pod, address, at(shared.subnet, 1), &uid);
            if done.is_err() {
                let _ = inner.switch.remove(&device(address));
                inner.pods.remove(&uid);
            }
            done.map(|()| address)
        })
        .await
    }

    pub(super) async fn leave(&self, uid: &str) {
        let uid = uid.to_owned();
        let left = self.work("take a pod its network", move |_, inner| match inner.pods.get(&uid) {
            Some(address) => {
                inner.switch.remove(&device(*address))?;
                inner.pods.remove(&uid);
                Ok(())
            }
            None => Ok(()),
        });
        if let Err(error) = left.await {
            tracing::warn!(error = kit::chain(&error), "the device of a pod stays until the pod ends");
        }
    }

    /// Addresses that are the switch's from now on, and ones that are no more.
    pub(super) async fn own(&self, add: Vec<Ipv4Addr>, remove: Vec<Ipv4Addr>) -> Result<(), Error> {
        self.work("change the addresses of services", move |_, inner| {
            for it in remove {
                inner.switch.remove_address(LOOPBACK, Prefix::new(it, 32))?;
            }
            for it in add {
                inner.switch.add_address(LOOPBACK, Prefix::new(it, 32))?;
            }
            Ok(())
        })
        .await
    }

    /// Addresses of services that an earlier node has left.
    pub(super) async fn owned(&self) -> Result<Vec<Ipv4Addr>, Error> {
        self.work("look at the addresses of services", |shared, inner| {
            let all = inner.switch.addresses()?.into_iter().filter(|(device, _)| *device == LOOPBACK);
            let all = all.map(|(_, it)| it.address);
            Ok(all.filter(|it| !it.is_loopback() && !shared.subnet.contains(*it)).collect())
        })
        .await
    }

    /// Listens within the network.
    pub(super) async fn listen(&self, at: SocketAddrV4) -> io::Result<TcpListener> {
        let socket = self.shared.runtime.socket(SWITCH, Socket::Tcp).await?;
        // Connections of an earlier node may not have ended yet.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &at)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    pub(super) async fn listen_udp(&self, at: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.shared.runtime.socket(SWITCH, Socket::Udp).await?;
        rustix::net::bind(&socket, &at)?;
        UdpSocket::from_std(socket.into())
    }

    /// A socket that sends to a place within the network and receives from there only.
    pub(super) async fn connect_udp(&self, to: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.shared.runtime.socket(SWITCH, Socket::Udp).await?;
        rustix::net::connect(&socket, &to)?;
        UdpSocket::from_std(socket.into())
    }

    /// Connects to a place within the network.
    pub(super) async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let socket: OwnedFd = self.shared.runtime.socket(SWITCH, Socket::Tcp).await?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from_std(socket.into())?;
        let connected = tokio::time::timeout(CONNECT, stream.writable()).await;
        connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match stream.take_error()? {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    }

    /// What of it is on the host goes; the rest goes with the shims.
    pub(super) async fn close(&self) {
        let remove = |shared: &Shared, inner: &mut Inner| match shared.has_host {
            true => inner.host.remove(&shared.leg),
            false => Ok(()),
        };
        if let Err(error) = self.work("remove the pods' network", remove).await {
            tracing::warn!(error = kit::chain(&error), "the host's way to pods stays until they end");
        }
    }
}

/// Makes a network: a range of addresses that this machine does not know yet, and the host's way into it if it is to have
/// one, by a device that is called so.
fn found(host: &Netlink, switch: &Netlink, leg: Option<&str>, seed: u64) -> io::Result<Prefix> {
    let mut way = None;
    if let Some(leg) = leg {
        // Left by a node whose shims are gone, and with them all but the name.
        host.remove(leg)?;
        switch.remove(HOST)?;
        host.pair(leg, (HOST, switch.namespace()?.as_fd()))?;
        match filtered(host, switch, leg) {
            Ok(ends) => way = Some(ends),
            Err(error) => {
                host.remove(leg)?;
                tracing::warn!(%error, "this machine does not reach pods at their addresses; they reach each other");
            }
        }
    }
    let mut taken = host.destinations()?;
    taken.extend(host.addresses()?.into_iter().map(|(_, it)| it));
    loop {
        let subnet = choose(seed, &taken).ok_or_else(|| io::Error::other("no range of private addresses is free"))?;
        let pods = pods(subnet);
        if let Some((ours, theirs)) = way {
            let (here, there) = ends(subnet);
            host.add_address(ours, Prefix::new(here, 30))?;
            host.up(ours, &[], "")?;
            match host.add_route(&Route { to: pods, device: ours, via: Some(there), source: Some(here) }) {
                // Another node was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    host.remove_address(ours, Prefix::new(here, 30))?;
                    taken.push(subnet);
                    continue;
                }
                other => other?,
            }
            switch.add_address(theirs, Prefix::new(there, 30))?;
            switch.up(theirs, &[(FORWARDING, 1)], "")?;
        }
        switch.up(LOOPBACK, &[], "")?;
        // Last: a network that has it is whole.
        switch.add_address(LOOPBACK, Prefix::new(at(subnet, 1), 32))?;
        return Ok(subnet);
    }
}

/// The numbers of the ends of the host's pair, once nothing but answers leaves by it.
fn filtered(host: &Netlink, switch: &Netlink, leg: &str) -> io::Result<(u32, u32)> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let (ours, theirs) = (host.index(leg)?.ok_or_else(missing)?, switch.index(HOST)?.ok_or_else(missing)?);
    switch.filter(theirs, ANSWERS)?;
    Ok((ours, theirs))
}

/// Lets answers leave for the host, and nothing that begins something: no segment of TCP that opens a connection, nothing
/// of UDP, no fragment (whose end could overwrite what was looked at); of ICMP only echoes and what could not be reached.
const ANSWERS: &[(u16, u8, u8, u32)] = &[
    (0x28, 0, 0, 12),      //  0: the type of the frame
    (0x15, 15, 0, 0x0806), //  1: ARP passes
    (0x15, 0, 13, 0x0800), //  2: only IPv4 goes on
    (0x28, 0, 0, 20),      //  3: flags and offset
    (0x45, 11, 0, 0x3fff), //  4: a fragment is dropped
    (0x30, 0, 0, 23),      //  5: the protocol
    (0x15, 0, 4, 6),       //  6: TCP, or see 11
    (0xb1, 0, 0, 14),      //  7: the length of the header
    (0x50, 0, 0, 14 + 13), //  8: flags of TCP
    (0x54, 0, 0, 0x12),    //  9: SYN and ACK
    (0x15, 5, 6, 0x02),    // 10: SYN without ACK is dropped
    (0x15, 0, 4, 1),       // 11: ICMP
    (0xb1, 0, 0, 14),      // 12
    (0x50, 0, 0, 14),      // 13: its type
    (0x15, 2, 0, 0),       // 14: echo reply
    (0x15, 1, 0, 3),       // 15: destination unreachable
    (0x06, 0, 0, 2),       // 16: dropped
    (0x06, 0, 0, 0),       // 17: passes
];

/// Everything between the switch and a pod.
fn connect(inner: &Inner, pod: &Netlink, address: Ipv4Addr, gateway: Ipv4Addr, uid: &str) -> io::Result<()> {
    let switch = &inner.switch;
    let name = device(address);
    // Of a network that is gone.
    pod.remove(DEVICE)?;
    pod.pair(DEVICE, (&name, switch.namespace()?.as_fd()))?;
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let ours = switch.index(&name)?.ok_or_else(missing)?;
    switch.up(ours, &[(FORWARDING, 1), (RP_FILTER, 1)], uid)?;
    let to = |address, bits| Route { to: Prefix::new(address, bits), device: ours, via: None, source: None };
    switch.add_route(&to(address, 32))?;
    let theirs = pod.index(DEVICE)?.ok_or_else(missing)?;
    pod.up(theirs, &[], "")?;
    let to = |address, bits, via| Route { to: Prefix::new(address, bits), device: theirs, via, source: None };
    pod.add_address(theirs, Prefix::new(address, 32))?;
    pod.add_route(&to(gateway, 32, None))?;
    pod.add_route(&to(Ipv4Addr::UNSPECIFIED, 0, Some(gateway)))
}

/// The switch's device for a pod.
fn device(address: Ipv4Addr) -> String {
    format!("p{}", address.to_bits() & 0xffff)
}

fn network(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & 0xffff_0000)
}

pub(super) fn at(subnet: Prefix, index: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.address.to_bits() | u32::from(index))
}

/// Where the addresses of pods are; the host's are in the other half.
fn pods(subnet: Prefix) -> Prefix {
    Prefix::new(subnet.address, 17)
}

/// The addresses of the host's and of the other end.
fn ends(subnet: Prefix) -> (Ipv4Addr, Ipv4Addr) {
    (at(subnet, 0xff01), at(subnet, 0xff02))
}

/// A range of private addresses that overlaps with nothing that is there, or at least only with what is much larger: what
/// is more exact wins. The same one for the same seed, if it can be.
fn choose(seed: u64, taken: &[Prefix]) -> Option<Prefix> {
    let tens = (64..=254).map(|it| Ipv4Addr::new(10, it, 0, 0));
    let more = (16..=31).map(|it| Ipv4Addr::new(172, it, 0, 0));
    let mut all: Vec<Prefix> = tens.chain(more).map(|it| Prefix::new(it, 16)).collect();
    all.retain(|it| !it.overlaps(&SERVICES));
    let by = usize::try_from(seed % all.len() as u64).unwrap_or_default();
    all.rotate_left(by);
    let taken = || taken.iter().filter(|it| it.bits > DEFAULT);
    let free = |it: &&Prefix| !taken().any(|taken| taken.overlaps(it));
    let larger = |it: &&Prefix| !taken().any(|taken| taken.overlaps(it) && taken.bits >= 16);
    all.iter().find(free).or_else(|| all.iter().find(larger)).copied()
}

/// The address of a pod: the same one for the same pod, if it can be, so that it keeps it when its network is made anew.
fn place(subnet: Prefix, uid: &str, used: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    const FIRST: u64 = 2;
    const COUNT: u64 = 0x7ffe - FIRST;
    let start = hash(uid) % COUNT;
    (0..COUNT)
        .filter_map(|it| u16::try_from(FIRST + (start + it) % COUNT).ok())
        .map(|it| at(subnet, it))
        .find(|it| !used(*it))
}

pub(super) fn hash(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest.iter().take(8).fold(0, |it, byte| it << 8 | u64::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, bits) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), bits.parse().unwrap())
    }

    #[test]
    fn a_range_collides_with_nothing_that_is_there() {
        let prefixes = |all: &[&str]| all.iter().map(|it| prefix(it)).collect::<Vec<_>>();
        let free = choose(7, &[]).unwrap();
        assert_eq!(choose(7, &prefixes(&["0.0.0.0/0", "0.0.0.0/1", "192.0.2.0/24"])), Some(free));
        assert_ne!(choose(8, &[]), Some(free));
        for (taken, within) in [
            (vec![format!("{}/16", free.address)], "0.0.0.0/0"),
            (vec![format!("{}/32", at(free, 77))], "0.0.0.0/0"),
            (vec!["10.0.0.0/8".into()], "172.16.0.0/12"),
            // Corporate networks: everything private leads to somewhere.
            (vec!["10.0.0.0/8".into(), "172.16.0.0/12".into()], "0.0.0.0/0"),
            ((64..=254).map(|it| format!("10.{it}.0.0/16")).collect(), "172.16.0.0/12"),
        ] {
            let taken: Vec<_> = taken.iter().map(|it| prefix(it)).collect();
            for seed in 0..200 {
                let chosen = choose(seed, &taken).unwrap();
                assert!(prefix(within).contains(chosen.address) && !chosen.overlaps(&SERVICES), "{chosen:?}");
                assert!(!taken.iter().any(|it| it.bits >= 16 && it.overlaps(&chosen)), "{chosen:?} {taken:?}");
            }
        }
        let all: Vec<_> = (0..=255).flat_map(|it| [format!("10.{it}.0.0/16"), format!("172.{it}.0.0/16")]).collect();
        assert_eq!(choose(7, &all.iter().map(|it| prefix(it)).collect::<Vec<_>>()), None);
    }

    #[test]
    fn a_pod_keeps_its_address_and_shares_it_with_nobody() {
        let subnet = prefix("10.70.0.0/16");
        let first = place(subnet, "a", |_| false).unwrap();
        assert_eq!(place(subnet, "a", |_| false), Some(first));
        let second = place(subnet, "a", |it| it == first).unwrap();
        assert!(second != first && subnet.contains(second) && second != at(subnet, 1));
        assert_eq!(place(subnet, "a", |_| true), None);
        assert!(!subnet.contains("10.71.0.1".parse().unwrap()));
    }
}
