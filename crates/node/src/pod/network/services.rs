//! Listens for the services that there are, and gives each connection to a pod.

use std::collections::{BTreeMap, BTreeSet};
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Network;
use super::dns::Names;
use super::forward::{self, Limit};
use super::plan::{Place, Plan, Target, Turns, plan};
use crate::Error;

/// Endpoints that are tried for one connection.
const TRIES: usize = 3;

/// Watches services and their endpoints until the shutdown begins.
pub(super) fn start(
    network: Network,
    client: Client,
    clock: Clock,
    tasks: &Tasks,
    limit: Arc<Limit>,
    api: SocketAddr,
    names: Names,
) {
    let (ends, own) = (tasks.shutdown().clone(), tasks.clone());
    let served = Served::new(network, clock, tasks.clone(), limit, names);
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
    limit: Arc<Limit>,
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
    pub(super) fn new(network: Network, clock: Clock, tasks: Tasks, limit: Arc<Limit>, names: Names) -> Self {
        Self { network, clock, tasks, limit, names, open: BTreeMap::new(), owned: None, left_out: 0 }
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
                open.target.send_replace(target);
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
    async fn listen(&self, place: Place) -> io::Result<Option<TcpListener>> {
        match (place, &self.network.ways.switch) {
            (Place::Cluster(at), Some(switch)) if !switch.has(*at.ip()) => switch.listen(at).await.map(Some),
            (Place::Cluster(_), _) => Ok(None),
            (Place::Node(port), _) => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map(Some),
        }
    }

    fn serve(&self, listener: TcpListener, target: Arc<Target>) -> Open {
        let (target, targets) = watch::channel(target);
        let stop = self.tasks.shutdown().child();
        let (network, clock, turns) =
            (self.network.clone(), self.clock.clone(), Arc::new(Mutex::new(Turns::default())));
        let connect = move |from: SocketAddr| {
            let (network, clock, turns) = (network.clone(), clock.clone(), turns.clone());
            let target = targets.borrow().clone();
            async move { connect(&network, &clock, &turns, &target, from).await }
        };
        let serve = forward::serve(listener, stop.clone(), self.tasks.clone(), self.limit.clone(), connect);
        self.tasks.tenant("service of pods", serve);
        Open { target, stop }
    }
}

/// Connects to the endpoint whose turn it is, or to one of the next.
async fn connect(
    network: &Network,
    clock: &Clock,
    turns: &Mutex<Turns>,
    target: &Target,
    from: SocketAddr,
) -> io::Result<TcpStream> {
    let client = match from.ip() {
        IpAddr::V4(it) => it,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let now = || Duration::try_from(clock.now().duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default();
    let turns = || turns.lock().unwrap_or_else(PoisonError::into_inner);
    let order = turns().take(target, client, now());
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for to in order.into_iter().take(TRIES) {
        match network.connect(to).await {
            Ok(stream) => {
                if target.affinity.is_some() {
                    turns().had(client, to, now());
                }
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(at) => write!(out, "{at}"),
            Self::Node(port) => write!(out, "127.0.0.1:{port}"),
        }
    }
}
