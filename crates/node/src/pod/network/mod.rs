//! What pods reach each other by: addresses, services, names; and what they reach the rest of the world by.
//!
//! A pod has an address of its own in a network of this node's pods ([`switch`]), with ClusterIPs, a name server and a
//! [proxy](egress) in it. As root, the host has a way into it. Else a pod has an address of the host's loopback network,
//! too, at which the node listens for the ports that the pod declares ([`loopback`]), and nothing but that where this
//! machine lets us make no network. Either way NodePorts are the host's, at 127.0.0.1.

mod dns;
mod egress;
mod flows;
mod forward;
mod host;
mod loopback;
mod netlink;
mod plan;
mod services;
mod switch;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use kit::{Clock, Tasks};
use kube::Client;
use tokio::net::{TcpStream, UdpSocket};

use super::{HostPort, Runtime};
use crate::Error;
pub use egress::Egress;
use forward::Limit;
pub(crate) use host::ADDRESS;
use host::Host;
use loopback::Loopback;
use services::Limits;
use switch::Switch;

/// The uid under which the runtime holds the middle of the pods' network. No pod has it: theirs are made by an API server.
pub(crate) const SWITCH: &str = "network";
/// Most connections at a time that the node carries for pods: to services, and to ports that it forwards. Who comes then
/// waits to be carried.
const CONNECTIONS: usize = 4096;
/// Most of one pod to services.
const OF_ONE: usize = 1024;
/// Most flows of datagrams to services, which stay a while after their last one; and of one pod.
const FLOWS: usize = 8192;
const FLOWS_OF_ONE: usize = 1024;

/// What a network is made with.
pub(crate) struct NetworkOptions {
    /// The node's directory: what distinguishes it from the others of this machine.
    pub dir: PathBuf,
    pub client: Client,
    pub clock: Clock,
    pub tasks: Tasks,
    pub runtime: Runtime,
    /// Where connections to the service `default/kubernetes` go.
    pub api: SocketAddr,
    /// Where pods may go by the proxy.
    pub egress: Egress,
}

/// The network of this node's pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    ways: Arc<Ways>,
    host: Arc<Host>,
}

/// At least one.
struct Ways {
    switch: Option<Switch>,
    /// Where the switch leaves the host without a way to pods.
    loopback: Option<Loopback>,
}

/// Who may have a connection carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A pod: an address that is not one of this node's pods is refused.
    Pod(SocketAddrV4),
    /// The API server, wherever it is.
    Api(SocketAddr),
}

impl Network {
    /// Makes the network, takes over what an earlier node has left of it, and serves services and names in it until the
    /// shutdown of the tasks begins. Call it once the runtime has taken over its pods, before any of them joins.
    pub(crate) async fn open(options: NetworkOptions) -> Result<Self, Error> {
        let NetworkOptions { dir, client, clock, tasks, runtime, api, egress } = options;
        let seed = dir.to_string_lossy().into_owned();
        let limit = Limit::new(CONNECTIONS, OF_ONE);
        // Many people may come by one address there.
        let host = Arc::new(Host::new(runtime.clone(), tasks.clone(), limit.undivided()));
        let switch = match Switch::open(runtime.clone(), &seed).await {
            Ok(switch) => Some(switch),
            Err(error) => {
                tracing::info!(why = kit::chain(&error), "pods have addresses of the host's loopback network alone");
                None
            }
        };
        let loopback = match &switch {
            Some(switch) if switch.has_host() => None,
            _ => Some(Loopback::new(runtime.clone(), seed, tasks.clone(), limit.clone())),
        };
        let network = Self { ways: Arc::new(Ways { switch, loopback }), host };
        let names = network.serve_names(&tasks).await?;
        if let Some(switch) = &network.ways.switch {
            egress::start(switch.clone(), names.clone(), runtime, egress, &tasks).await?;
        }
        let limits = Limits { connections: limit, flows: Limit::new(FLOWS, FLOWS_OF_ONE) };
        services::start(network.clone(), client, clock, &tasks, limits, api, names);
        let (ending, shutdown) = (network.clone(), tasks.shutdown().clone());
        tasks.tenant("pod network", async move {
            let Some(switch) = &ending.ways.switch else { return };
            tokio::select! {
                biased;
                () = shutdown.begun() => {}
                () = switch.lost() => {
                    tracing::error!(
                        "the process that holds the pods' network has ended: pods reach no services and nothing \
                         outside until Insula is started anew"
                    );
                    shutdown.begun().await;
                }
            }
            switch.close().await;
        });
        Ok(network)
    }

    /// Gives a pod its address: before its first container, and again when its shim or the node has been started anew.
    /// Idempotent; the same pod has the same address, if it can be. `ports`: the TCP ports that its containers declare, for where the
    /// node forwards them.
    pub(crate) async fn join(&self, uid: &str, ports: &[u16]) -> Result<IpAddr, Error> {
        let within = match &self.ways.switch {
            Some(switch) => Some(switch.join(uid).await?),
            None => None,
        };
        let address = match (&self.ways.loopback, within) {
            (None, Some(within)) => within,
            (Some(loopback), within) => loopback.join(uid, ports, within).await?,
            (None, None) => return Err(Error::machine("give a pod its network")(io::Error::other("there is none"))),
        };
        Ok(IpAddr::V4(address))
    }

    /// Listens at the host for ports of a pod, before it is made, until it leaves. Idempotent.
    pub(crate) async fn listen_for(&self, uid: &str, ports: &[HostPort]) -> Result<(), Error> {
        self.host.listen(self, uid, ports).await
    }

    /// Takes a pod its address, before or after it is removed. Idempotent.
    pub(crate) async fn leave(&self, uid: &str) {
        self.host.leave(uid).await;
        if let Some(loopback) = &self.ways.loopback {
            loopback.leave(uid);
        }
        if let Some(switch) = &self.ways.switch {
            switch.leave(uid).await;
        }
    }

    /// The name server of pods: what their /etc/resolv.conf names. None where they have none.
    pub(crate) fn dns(&self) -> Option<IpAddr> {
        self.ways.switch.as_ref().map(|it| IpAddr::V4(it.address()))
    }

    /// The variables that tell programs in pods of their proxy: names in capital letters, and values.
    pub(crate) fn proxy(&self) -> Vec<(&'static str, String)> {
        self.ways.switch.as_ref().map(egress::variables).unwrap_or_default()
    }

    /// Where a pod is within the pods' network that is known by this address.
    fn within(&self, address: Ipv4Addr) -> Ipv4Addr {
        match &*self.ways {
            Ways { switch: Some(switch), loopback: Some(_) } => {
                loopback::within(switch.subnet(), address).unwrap_or(address)
            }
            _ => address,
        }
    }

    async fn serve_names(&self, tasks: &Tasks) -> Result<dns::Names, Error> {
        let names = dns::Names::default();
        if let Some(switch) = &self.ways.switch {
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
        self.connect(To::Pod(SocketAddrV4::new(self.within(*to.ip()), to.port()))).await
    }

    async fn connect(&self, to: To) -> io::Result<TcpStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        match (to, &*self.ways) {
            (To::Pod(to), _) if self.host.has(to) => TcpStream::connect(SocketAddr::V4(to)).await,
            (To::Pod(to), Ways { switch: Some(switch), .. }) if switch.has(*to.ip()) => switch.connect(to).await,
            (To::Pod(to), Ways { switch: None, loopback: Some(loopback) }) => loopback.connect(to).await,
            (To::Pod(_), _) => Err(refused()),
            (To::Api(to), _) => TcpStream::connect(to).await,
        }
    }

    /// A socket for datagrams to one of this node's pods and from it, but for those in the host's network.
    async fn connect_udp(&self, to: To) -> io::Result<UdpSocket> {
        match (to, &*self.ways) {
            (To::Pod(to), Ways { switch: Some(switch), .. }) if switch.has(*to.ip()) => switch.connect_udp(to).await,
            (To::Pod(to), Ways { switch: None, loopback: Some(loopback) }) => loopback.connect_udp(to).await,
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
