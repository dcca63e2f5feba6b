//! Addresses of pods that are the host's own, of its loopback network, at which the node listens for the ports that a pod
//! declares. Who connects there is connected from within the pod. So the host reaches pods where we can make no other way.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kit::{Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::forward::{self, Limit};
use super::netlink::Prefix;
use super::switch::hash;
use crate::Error;
use crate::launcher::shim::Socket;
use crate::pod::Runtime;

/// Addresses that are tried for one pod before one is taken at which not all of its ports are free: somebody may listen
/// at all of the host's addresses.
const TRIES: usize = 8;

pub(super) struct Loopback {
    runtime: Runtime,
    seed: String,
    tasks: Tasks,
    limit: Arc<Limit>,
    pods: Mutex<BTreeMap<String, Joined>>,
}

struct Joined {
    address: Ipv4Addr,
    stop: Shutdown,
}

impl Loopback {
    pub(super) fn new(runtime: Runtime, seed: String, tasks: Tasks, limit: Arc<Limit>) -> Self {
        Self { runtime, seed, tasks, limit, pods: Mutex::default() }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Joined>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `within`: the pod's address in a network of the pods' own, which is known then from the one that it gets here.
    pub(super) async fn join(&self, uid: &str, ports: &[u16], within: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
        let all = || addresses(&self.seed, uid, within);
        for (address, strict) in all().take(TRIES).map(|it| (it, true)).chain(all().map(|it| (it, false))) {
            // Taken before anybody else looks.
            let stop = {
                let mut pods = self.pods();
                if let Some(joined) = pods.get(uid) {
                    return Ok(joined.address);
                }
                if pods.values().any(|it| it.address == address) {
                    continue;
                }
                let stop = self.tasks.shutdown().child();
                pods.insert(uid.to_owned(), Joined { address, stop: stop.clone() });
                stop
            };
            let Some(listeners) = listen(address, ports, strict).await else {
                self.pods().remove(uid);
                continue;
            };
            for (port, listener) in listeners {
                let (runtime, uid) = (self.runtime.clone(), uid.to_owned());
                let connect = move |_| {
                    let (runtime, uid) = (runtime.clone(), uid.clone());
                    async move { runtime.dial(&uid, port).await }
                };
                let serve = forward::serve(listener, stop.clone(), self.tasks.clone(), self.limit.clone(), connect);
                self.tasks.tenant("port of a pod", serve);
            }
            return Ok(address);
        }
        Err(Error::machine("find an address for a pod")(io::Error::from(io::ErrorKind::AddrInUse)))
    }

    pub(super) fn leave(&self, uid: &str) {
        if let Some(joined) = self.pods().remove(uid) {
            joined.stop.begin();
        }
    }

    /// To any port of a pod, declared or not.
    pub(super) async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.runtime.dial(&self.whose(*to.ip())?, to.port()).await
    }

    /// The same for datagrams.
    pub(super) async fn connect_udp(&self, to: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.runtime.socket(&self.whose(*to.ip())?, Socket::Udp).await?;
        rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port()))?;
        UdpSocket::from_std(socket.into())
    }

    fn whose(&self, address: Ipv4Addr) -> io::Result<String> {
        let uid = self.pods().iter().find(|(_, it)| it.address == address).map(|(uid, _)| uid.clone());
        uid.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// Listens for all that is declared; `None` when it is to be all and somebody else listens there.
async fn listen(address: Ipv4Addr, ports: &[u16], strict: bool) -> Option<BTreeMap<u16, TcpListener>> {
    let mut listeners = BTreeMap::new();
    for &port in ports {
        if listeners.contains_key(&port) {
            continue;
        }
        match TcpListener::bind(SocketAddr::from((address, port))).await {
            Ok(listener) => {
                listeners.insert(port, listener);
            }
            Err(error) if strict && error.kind() == io::ErrorKind::AddrInUse => return None,
            // The first 1024 are root's: probes and port-forward, which go into the pod, need none.
            Err(error) => tracing::warn!(%address, port, %error, "the host does not reach a port of a pod"),
        }
    }
    Some(listeners)
}

/// Where they all are.
const ALL: Prefix = Prefix::new(Ipv4Addr::new(127, 64, 0, 0), 10);

/// Where to look for an address, the same for the same pod of the same node. Never what is conventionally somebody's,
/// such as 127.0.0.1 and 127.0.1.1.
fn addresses(seed: &str, uid: &str, within: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
    let start = hash(&format!("{seed}\n{uid}"));
    let low = move |it: u64| match within {
        None => start.wrapping_add(it.wrapping_mul(7919)) % (1 << 22),
        // The lower half says which pod it is.
        Some(within) => ((start.wrapping_add(it) % (1 << 6)) << 16) | u64::from(within.to_bits() & 0xffff),
    };
    (0..1 << if within.is_none() { 16 } else { 6 }).map(move |it| {
        let low = low(it);
        Ipv4Addr::from_bits(ALL.address.to_bits() | low as u32)
    })
}

/// The address in the pods' own network of the pod that has this one here.
pub(super) fn within(subnet: Prefix, address: Ipv4Addr) -> Option<Ipv4Addr> {
    ALL.contains(address).then(|| Ipv4Addr::from_bits(subnet.address.to_bits() | address.to_bits() & 0xffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_pod_has_the_same_address() {
        let of = |seed, uid| addresses(seed, uid, None).take(TRIES).collect::<Vec<_>>();
        assert_eq!(of("a", "one"), of("a", "one"));
        assert!(of("a", "one")[0] != of("a", "two")[0] && of("a", "one")[0] != of("b", "one")[0]);
        let all = of("a", "one");
        assert!(all.iter().all(|it| it.octets()[0] == 127 && (64..128).contains(&it.octets()[1])));
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        let inner: Ipv4Addr = "10.70.1.2".parse().unwrap();
        let all: Vec<_> = addresses("a", "one", Some(inner)).collect();
        let known = all.iter().filter(|it| within(Prefix::new(Ipv4Addr::new(10, 70, 0, 0), 16), **it) == Some(inner));
        assert_eq!((known.count(), all.iter().collect::<std::collections::BTreeSet<_>>().len()), (64, 64));
    }
}
