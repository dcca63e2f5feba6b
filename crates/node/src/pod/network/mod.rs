//! What pods reach each other by: addresses, services, names.
//!
//! As root a pod has an address of its own in a network of this node's pods ([`switch`]), with ClusterIPs and a name
//! server in it. As anybody else it has an address of the host's loopback network, at which the node listens for the ports
//! that the pod declares ([`loopback`]). Either way NodePorts are the host's, at 127.0.0.1.

mod dns;
mod forward;
mod loopback;
mod netlink;
mod plan;
mod services;
mod switch;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use kit::{Clock, Tasks};
use kube::Client;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::Runtime;
use crate::Error;
use loopback::Loopback;
use switch::Switch;

/// The uid under which the runtime holds the middle of the pods' network. No pod has it: theirs are made by an API server.
pub(crate) const SWITCH: &str = "network";
/// Most connections at a time that the node carries for pods: to services, and to ports that it forwards. Who comes then
/// waits to be accepted.
const CONNECTIONS: usize = 4096;

/// What a network is made with.
pub(crate) struct NetworkOptions {
    /// The node's directory: what distinguishes it from the others of this machine.
    pub dir: PathBuf,
    pub client: Client,
    pub clock: Clock,
    pub tasks: Tasks,
    pub runtime: Runtime,
    /// Where connections to the service `default/kubernetes` go; its endpoints when nothing is said.
    pub api: Option<SocketAddrV4>,
}

/// The network of this node's pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    kind: Arc<Kind>,
}

enum Kind {
    Switch(Switch),
    Loopback(Loopback),
}

/// Who may have a connection carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A pod: an address that is not one of this node's pods is refused.
    Pod(SocketAddrV4),
    /// The API server, wherever it is.
    Api(SocketAddrV4),
}

impl Network {
    /// Makes the network, takes over what an earlier node has left of it, and serves services and names in it until the
    /// shutdown of the tasks begins. Call it once the runtime has taken over its pods, before any of them joins.
    pub(crate) async fn open(options: NetworkOptions) -> Result<Self, Error> {
        let NetworkOptions { dir, client, clock, tasks, runtime, api } = options;
        let seed = dir.to_string_lossy().into_owned();
        let limit = Arc::new(Semaphore::new(CONNECTIONS));
        let kind = match Switch::open(runtime.clone(), &seed).await {
            Ok(switch) => Kind::Switch(switch),
            Err(error) => {
                tracing::info!(why = kit::chain(&error), "pods have addresses of the host's loopback network");
                Kind::Loopback(Loopback::new(runtime, seed, tasks.clone(), limit.clone()))
            }
        };
        let network = Self { kind: Arc::new(kind) };
        let names = network.serve_names(&tasks).await?;
        services::start(network.clone(), client, clock, &tasks, limit, api, names);
        let (ending, shutdown) = (network.clone(), tasks.shutdown().clone());
        tasks.tenant("pod network", async move {
            shutdown.begun().await;
            if let Kind::Switch(switch) = &*ending.kind {
                switch.close().await;
            }
        });
        Ok(network)
    }

    /// Gives a pod its address: before its first container, and again when its shim or the node has been started anew.
    /// Idempotent; the same pod has the same address, if it can be. `ports`: the TCP ports that its containers declare, for where the
    /// node forwards them.
    pub(crate) async fn join(&self, uid: &str, ports: &[u16]) -> Result<IpAddr, Error> {
        match &*self.kind {
            Kind::Switch(switch) => switch.join(uid).await.map(IpAddr::V4),
            Kind::Loopback(loopback) => loopback.join(uid, ports).await.map(IpAddr::V4),
        }
    }

    /// Takes a pod its address, before or after it is removed. Idempotent.
    pub(crate) async fn leave(&self, uid: &str) {
        match &*self.kind {
            Kind::Switch(switch) => switch.leave(uid).await,
            Kind::Loopback(loopback) => loopback.leave(uid),
        }
    }

    /// The name server of pods: what their /etc/resolv.conf names. None where they have none.
    pub(crate) fn dns(&self) -> Option<IpAddr> {
        match &*self.kind {
            Kind::Switch(switch) => Some(IpAddr::V4(switch.address())),
            Kind::Loopback(_) => None,
        }
    }

    async fn serve_names(&self, tasks: &Tasks) -> Result<dns::Names, Error> {
        let names = dns::Names::default();
        if let Kind::Switch(switch) = &*self.kind {
            let at = SocketAddrV4::new(switch.address(), dns::PORT);
            let what = "listen for questions about names";
            let datagrams = switch.listen_udp(at).await.map_err(Error::machine(what))?;
            let streams = switch.listen(at).await.map_err(Error::machine(what))?;
            dns::serve(&names, datagrams, streams, tasks);
        }
        Ok(names)
    }

    /// A connection to a port of one of this node's pods, by its address.
    pub(crate) async fn dial(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.connect(To::Pod(to)).await
    }

    async fn connect(&self, to: To) -> io::Result<TcpStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        match (to, &*self.kind) {
            (To::Pod(to), Kind::Switch(switch)) if switch.has(*to.ip()) => switch.connect(to).await,
            (To::Pod(to), Kind::Loopback(loopback)) => loopback.connect(to).await,
            (To::Pod(_), _) => Err(refused()),
            (To::Api(to), _) => TcpStream::connect(SocketAddr::V4(to)).await,
        }
    }
}
