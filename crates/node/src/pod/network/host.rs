//! Ports of the host at which the node listens for pods, and pods that are in the host's own network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::{Shutdown, Tasks};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::Network;
use super::forward::{self, Limit};
use crate::Error;
use crate::pod::{HostPort, Runtime};

/// Where pods are that are in the host's network: where the node is.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How long a port may take to be let go of.
const CLOSE: Duration = Duration::from_secs(5);

pub(super) struct Host {
    runtime: Runtime,
    tasks: Tasks,
    limit: Arc<Limit>,
    listens: Mutex<BTreeMap<String, Listens>>,
}

struct Listens {
    stop: Shutdown,
    /// Ends with the last of them.
    closed: mpsc::Receiver<()>,
}

impl Host {
    pub(super) fn new(runtime: Runtime, tasks: Tasks, limit: Arc<Limit>) -> Self {
        Self { runtime, tasks, limit, listens: Mutex::default() }
    }

    fn listens(&self) -> MutexGuard<'_, BTreeMap<String, Listens>> {
        self.listens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for all of them, or for none: somebody else may have one.
    pub(super) async fn listen(&self, network: &Network, uid: &str, ports: &[HostPort]) -> Result<(), Error> {
        if ports.is_empty() || self.listens().contains_key(uid) {
            return Ok(());
        }
        let mut listeners = Vec::new();
        for port in ports {
            let listener = TcpListener::bind(port.at).await;
            let listener = listener.map_err(Error::machine(format!("listen at the host port {}", port.at)))?;
            listeners.push((listener, port.to));
        }
        let stop = self.tasks.shutdown().child();
        let (open, closed) = mpsc::channel(1);
        self.listens().insert(uid.to_owned(), Listens { stop: stop.clone(), closed });
        for (listener, to) in listeners {
            let (runtime, network, uid) = (self.runtime.clone(), network.clone(), uid.to_owned());
            let connect = move |_| {
                let (network, address) = (network.clone(), runtime.state(&uid).and_then(|it| it.address));
                async move {
                    match address {
                        Some(IpAddr::V4(at)) => network.dial(SocketAddrV4::new(at, to)).await,
                        _ => Err(std::io::ErrorKind::ConnectionRefused.into()),
                    }
                }
            };
            let serve = forward::serve(listener, stop.clone(), self.tasks.clone(), self.limit.clone(), connect);
            let open = open.clone();
            self.tasks.tenant("host port of a pod", async move {
                serve.await;
                drop(open);
            });
        }
        Ok(())
    }

    /// From its return on, the ports are another pod's to have.
    pub(super) async fn leave(&self, uid: &str) {
        let left = self.listens().remove(uid);
        if let Some(mut left) = left {
            left.stop.begin();
            if tokio::time::timeout(CLOSE, left.closed.recv()).await.is_err() {
                tracing::warn!(pod = uid, "host ports of a pod that has gone are still open");
            }
        }
    }

    /// Whether a pod in the host's network declares this port: nothing else of the host is anybody's endpoint.
    pub(super) fn has(&self, to: SocketAddrV4) -> bool {
        let is_its =
            |it: &crate::pod::PodState| it.alive && it.config.host.network && it.config.ports.contains(&to.port());
        *to.ip() == ADDRESS && self.runtime.list().iter().any(is_its)
    }
}
