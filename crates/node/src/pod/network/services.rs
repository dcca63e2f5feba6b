//! Listens for the services that there are, and gives each connection to a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kit::{Backoff, Clock, Shutdown, Tasks};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use super::dns::Names;
use super::flows;
use super::forward::{self, Limit};
use super::plan::{Place, Plan, Protocol, Target, Turns, plan};
use super::{Network, To};
use crate::Error;

/// Endpoints that are tried for one connection.
const TRIES: usize = 3;

/// How much is carried at once.
#[derive(Clone)]
pub(super) struct Limits {
    pub connections: Arc<Limit>,
    pub flows: Arc<Limit>,
}

/// Watches services and their endpoints until the shutdown begins.
pub(super) fn start(
    network: Network,
    client: Client,
    clock: Clock,
    tasks: &Tasks,
    limits: Limits,
    api: SocketAddr,
    names: Names,
) {
    let (ends, own) = (tasks.shutdown().clone(), tasks.clone());
    let served = Served::new(network, clock, tasks.clone(), limits, names);
    own.tenant("services of pods", async move {
        tokio::select! {
            () = ends.begun() => {}
            () = follow(served, client, api) => {}
        }
    });
}

async fn follow(mut served: Served, client: Client, api: SocketAddr) {
    let (services, write_services) = reflector::store::<Service>();
    let (slices, write_slices) = reflector::store::<EndpointSlice>();
    let config = watcher::Config::default;
    let first = watcher(Api::<Service>::all(client.clone()), config()).default_backoff();
    let second = watcher(Api::<EndpointSlice>::all(client), config()).default_backoff();
    let mut changes = stream::select(
        reflector(write_services, first).map(|it| it.map(drop)),
        reflector(write_slices, second).map(|it| it.map(drop)),
    )
    .boxed();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(60));
    let (mut again, mut known) = (false, false);
    loop {
        let pause = if again { backoff.pause() } else { Duration::MAX };
        tokio::select! {
            change = changes.next() => match change {
                Some(Err(error)) => {
                    tracing::debug!(error = kit::chain(&error), "cannot watch services; trying again");
                    continue;
                }
                Some(Ok(())) => {}
                None => return,
            },
            () = tokio::time::sleep(pause) => {}
        }
        // Changes that come together are one.
        while let Some(Some(_)) = changes.next().now_or_never() {}
        // Before both were listed, what is not there may only not have come yet.
        known = known
            || (services.wait_until_ready().now_or_never().is_some()
                && slices.wait_until_ready().now_or_never().is_some());
        if !known {
            continue;
        }
        let (services, slices) = (services.state(), slices.state());
        let services: Vec<&Service> = services.iter().map(AsRef::as_ref).collect();
        let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
        let plan = plan(&services, &slices, api, |it| served.network.within(it));
        again = match served.apply(plan).await {
            Ok(()) => {
                backoff.reset();
                false
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    tracing::warn!(error = kit::chain(&error), "cannot serve all services; trying again");
                }
                true
            }
        };
    }
}

pub(super) struct Served {
    network: Network,
    clock: Clock,
    tasks: Tasks,
    limits: Limits,
    names: Names,
    open: BTreeMap<Place, Open>,
    /// The ClusterIPs that are ours; not known before we have looked.
    owned: Option<BTreeSet<Ipv4Addr>>,
    /// Ports that were left out the last time.
    left_out: usize,
}

/// A port that is listened for.
struct Open {
    target: watch::Sender<Arc<Target>>,
    stop: Shutdown,
}

impl Served {
    pub(super) fn new(network: Network, clock: Clock, tasks: Tasks, limits: Limits, names: Names) -> Self {
        Self { network, clock, tasks, limits, names, open: BTreeMap::new(), owned: None, left_out: 0 }
    }

    /// Makes it so. What could not be done is tried again with the next change, and after a while.
    pub(super) async fn apply(&mut self, plan: Plan) -> Result<(), Error> {
        let Plan { addresses, listeners, zone, left_out } = plan;
        self.names.set(zone);
        if left_out > self.left_out {
            tracing::warn!(left_out, "there are more ports of services than the node listens for");
        }
        self.left_out = left_out;
        self.open.retain(|place, open| {
            let stays = listeners.contains_key(place);
            if !stays {
                open.stop.begin();
            }
            stays
        });
        self.own(addresses).await?;
        let mut failed = None;
        for (place, target) in listeners {
            let target = Arc::new(target);
            if let Some(open) = self.open.get(&place) {
                // Flows look at it anew.
                open.target.send_if_modified(|it| {
                    let other = **it != *target;
                    *it = target;
                    other
                });
                continue;
            }
            match self.listen(place).await {
                Ok(Some(listener)) => {
                    let open = self.serve(listener, target);
                    self.open.insert(place, open);
                }
                Ok(None) => {}
                Err(error) => failed = Some(Error::machine(format!("listen at {place}"))(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn own(&mut self, wanted: BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        let Some(switch) = &self.network.ways.switch else { return Ok(()) };
        // Whatever a service says, pods stay at their addresses.
        let wanted: BTreeSet<_> = wanted.into_iter().filter(|it| !switch.has(*it)).collect();
        let owned = match self.owned.take() {
            Some(owned) => owned,
            None => switch.owned().await?.into_iter().collect(),
        };
        let (add, remove) =
            (wanted.difference(&owned).copied().collect(), owned.difference(&wanted).copied().collect());
        switch.own(add, remove).await?;
        self.owned = Some(wanted);
        Ok(())
    }

    /// None: nobody could reach it.
    async fn listen(&self, place: Place) -> io::Result<Option<Listener>> {
        use Listener::{Connections, Datagrams};
        use Protocol::{Tcp, Udp};
        let host = Ipv4Addr::LOCALHOST;
        Ok(Some(match (place, &self.network.ways.switch) {
            (Place::Cluster(_, at), Some(switch)) if switch.has(*at.ip()) => return Ok(None),
            (Place::Cluster(_, _), None) => return Ok(None),
            (Place::Cluster(Tcp, at), Some(switch)) => Connections(switch.listen(at).await?),
            // At this very address, so that answers come from where they were asked for.
            (Place::Cluster(Udp, at), Some(switch)) => Datagrams(switch.listen_udp(at).await?),
            (Place::Node(Tcp, port), _) => Connections(TcpListener::bind((host, port)).await?),
            (Place::Node(Udp, port), _) => Datagrams(UdpSocket::bind((host, port)).await?),
        }))
    }

    fn serve(&self, listener: Listener, target: Arc<Target>) -> Open {
        let (target, targets) = watch::channel(target);
        let (stop, tasks) = (self.tasks.shutdown().child(), self.tasks.clone());
        let chooser = Chooser {
            network: self.network.clone(),
            clock: self.clock.clone(),
            turns: Arc::default(),
            target: targets.clone(),
        };
        match listener {
            Listener::Connections(listener) => {
                let connect = move |from: SocketAddr| {
                    let chooser = chooser.clone();
                    async move {
                        let connected = chooser.first(from, |to| chooser.network.connect(to)).await;
                        connected.map(|(_, stream)| stream)
                    }
                };
                let serve = forward::serve(listener, stop.clone(), tasks, self.limits.connections.clone(), connect);
                self.tasks.tenant("service of pods", serve);
            }
            Listener::Datagrams(socket) => {
                let connect = move |from: SocketAddr| {
                    let chooser = chooser.clone();
                    async move { chooser.first(from, |to| chooser.network.connect_udp(to)).await }
                };
                let listener = flows::Listener {
                    socket,
                    stop: stop.clone(),
                    tasks,
                    clock: self.clock.clone(),
                    limit: self.limits.flows.clone(),
                    target: targets,
                    connect,
                };
                self.tasks.tenant("service of pods", flows::serve(listener));
            }
        }
        Open { target, stop }
    }
}

enum Listener {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

/// Chooses among the endpoints of one port.
#[derive(Clone)]
struct Chooser {
    network: Network,
    clock: Clock,
    turns: Arc<Mutex<Turns>>,
    target: watch::Receiver<Arc<Target>>,
}

impl Chooser {
    /// Connects to the endpoint whose turn it is, or to one of the next.
    async fn first<T, F>(&self, from: SocketAddr, connect: impl Fn(To) -> F) -> io::Result<(To, T)>
    where
        F: Future<Output = io::Result<T>>,
    {
        let client = match from.ip() {
            IpAddr::V4(it) => it,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let target = self.target.borrow().clone();
        let now =
            || Duration::try_from(self.clock.now().duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default();
        let turns = || self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let order = turns().take(&target, client, now());
        let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
        for to in order.into_iter().take(TRIES) {
            match connect(to).await {
                Ok(connected) => {
                    if target.affinity.is_some() {
                        turns().had(client, to, now());
                    }
                    return Ok((to, connected));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(protocol, at) => write!(out, "{at}{protocol}"),
            Self::Node(protocol, port) => write!(out, "127.0.0.1:{port}{protocol}"),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Tcp => "",
            Self::Udp => "/UDP",
        })
    }
}
