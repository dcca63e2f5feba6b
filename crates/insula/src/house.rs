//! A whole Insula in this process: every role, wired together. `up`, `demo`, `run` and `bench` start the same one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::{ApiServer, AuditLog};
use gateway::Gateway;
use kit::{Clock, SecretString, Shutdown, Tasks};
use ledger::{Ledger, Location};
use node::{Allow, Egress, ImageMap};
use runner::{Hands, Runner, Tools};

use crate::hands::{self, Kubelet};
use crate::home::{self, Home};
use crate::signals;

/// How long Pods have to end, if nothing else is said.
pub(crate) const POD_GRACE: Duration = Duration::from_secs(3);
/// How long what is going on may take to end before the process goes all the same.
pub(crate) const GRACE: Duration = Duration::from_secs(4);

pub(crate) struct Options {
    /// Where the state is; `None`: a fresh directory that goes at the end.
    pub(crate) data_dir: Option<PathBuf>,
    /// Where kubectl is answered; port 0: the port of last time if it is free, else any.
    pub(crate) kube_listen: SocketAddr,
    /// Where the gateway is; port 0 as above.
    pub(crate) listen: SocketAddr,
    /// Addresses of model providers by name, in place of their own.
    pub(crate) providers: BTreeMap<String, String>,
    /// How many runs may go on at once in this process.
    pub(crate) concurrency: usize,
    /// How many sandboxes are kept ready.
    pub(crate) warm: usize,
    /// The Unix socket of a node in another process; `None`: one in this process.
    pub(crate) node: Option<PathBuf>,
    /// What names of images mean on this machine.
    pub(crate) images: ImageMap,
    /// Directories of this machine that Pods may have as volumes, with what is below them.
    pub(crate) host_paths: Vec<PathBuf>,
    /// Where Pods may go outside of their own network.
    pub(crate) egress: Egress,
    /// What else of this machine Pods may have.
    pub(crate) allow: Allow,
    /// Where it is written who asked the Kubernetes API for what.
    pub(crate) audit: Option<AuditLog>,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir: None,
            kube_listen: any,
            listen: any,
            providers: BTreeMap::new(),
            concurrency: 2_000,
            warm: 2,
            node: None,
            images: ImageMap::default(),
            host_paths: Vec::new(),
            egress: Egress::default(),
            allow: Allow::default(),
            audit: None,
        }
    }
}

/// What was started.
struct Roles {
    client: kube::Client,
    kubeconfig: String,
    gateway: SocketAddr,
    api_key: SecretString,
}

/// A running Insula. Ends with [`House::end`].
pub(crate) struct House {
    pub(crate) client: kube::Client,
    pub(crate) kubeconfig: String,
    pub(crate) gateway: SocketAddr,
    pub(crate) api_key: SecretString,
    tasks: Tasks,
    home: Home,
    kubelet: Kubelet,
}

impl House {
    /// Starts every role and returns when all of them answer.
    pub(crate) async fn start(options: Options) -> Result<Self> {
        let home = match &options.data_dir {
            Some(dir) => Home::open(dir)?,
            None => Home::ephemeral()?,
        };
        let tasks = Tasks::new(Shutdown::new());
        let kubelet = Kubelet::default();
        let started = Self::start_roles(&home, options, &tasks, &kubelet).await;
        match started {
            Ok(Roles { client, kubeconfig, gateway, api_key }) => {
                Ok(Self { client, kubeconfig, gateway, api_key, tasks, home, kubelet })
            }
            Err(error) => {
                // What runs already must not see its directory go.
                let _ = tokio::time::timeout(GRACE, tasks.end()).await;
                Err(error)
            }
        }
    }

    async fn start_roles(home: &Home, options: Options, tasks: &Tasks, kubelet: &Kubelet) -> Result<Roles> {
        let api_key = home.api_key()?;
        let clock = Clock::system();

        let ledger = Ledger::open(Location::File(home.private("ledger.db")?), clock.clone())?;
        let api = ApiServer::open(apiserver::Options {
            data: apiserver::Data::Dir(home.dir().to_owned()),
            clock: clock.clone(),
            tasks: tasks.clone(),
            kubelets: Some(kubelet.reached()),
            audit: options.audit,
            volumes: Some(home.dir().join("volumes")),
        })
        .await?;
        api.install(api::crds()).await?;
        let client = api.client();
        // Pods that are there already, or are soon, ask for it.
        let kube = listen_again(home, "kubernetes", options.kube_listen, async |at| Ok(api.listen(at).await?)).await?;
        let http = kit::http::client().context("set up the HTTP client")?;
        let hands = hands::Open {
            home,
            client: &client,
            ledger: &ledger,
            clock: &clock,
            tasks,
            warm: options.warm,
            elsewhere: options.node.as_deref(),
            kubelet,
            images: options.images,
            host_paths: options.host_paths,
            kube,
            egress: options.egress,
            allow: options.allow,
        };
        let sandboxes = hands::open(hands).await?;

        let controllers = control::run(control::Options {
            client: client.clone(),
            ledger: ledger.clone(),
            sandboxes: sandboxes.clone(),
            handlers: if sandboxes.is_some() {
                sandbox::HANDLERS.iter().map(ToString::to_string).collect()
            } else {
                Vec::new()
            },
            clock: clock.clone(),
            tasks: tasks.clone(),
            instance: "insula".into(),
        });
        tasks.platform("control", controllers);
        let runner = Runner::new(runner::Options {
            ledger: ledger.clone(),
            client: client.clone(),
            clock,
            tasks: tasks.clone(),
            http,
            concurrency: options.concurrency,
            providers: options.providers,
            tools: sandboxes.map(|it| Arc::new(Hands::new(it)) as Arc<dyn Tools>),
        });
        tasks.platform("runner", runner.run(tasks.shutdown().clone()));

        let gateway = listen_again(home, "gateway", options.listen, async |at| {
            let options = gateway::Options {
                ledger: ledger.clone(),
                client: client.clone(),
                api_key: api_key.clone(),
                tasks: tasks.clone(),
            };
            Ok(Gateway::listen(options, at).await?)
        })
        .await?;
        Ok(Roles { kubeconfig: api.kubeconfig(kube), client, gateway, api_key })
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn gateway_url(&self) -> String {
        format!("http://{}", self.gateway)
    }

    /// Where the kubeconfig is, once written.
    pub(crate) fn write_kubeconfig(&self) -> Result<PathBuf> {
        let path = self.home.path("kubeconfig");
        home::write_private(&path, &self.kubeconfig).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Returns when the process is asked to end, or with an error when a part of the platform ended by itself.
    pub(crate) async fn watch(&self) -> Result<()> {
        Ok(self.tasks.watch().await?)
    }

    /// Takes signals from now on: the first begins the end, in which Pods have so much time; a second one cuts it short.
    pub(crate) fn end_on_signal(&self, grace: Duration) {
        let kubelet = self.kubelet.clone();
        signals::end_on_signal_after(&self.tasks, async move { kubelet.end_pods(grace).await });
    }

    /// Ends every role in order and gives the data directory back.
    pub(crate) async fn end(self) {
        if tokio::time::timeout(GRACE, self.tasks.end()).await.is_err() {
            tracing::warn!("some work did not end in {GRACE:?}; it goes on from its log at the next start");
        }
    }
}

/// Listens where it was asked to; with port 0, where it listened last time if that is still free.
async fn listen_again(
    home: &Home,
    name: &str,
    at: SocketAddr,
    listen: impl AsyncFn(SocketAddr) -> Result<SocketAddr>,
) -> Result<SocketAddr> {
    if at.port() == 0
        && let Some(last) = home.address(name).filter(|last| last.ip() == at.ip())
        && let Ok(bound) = listen(last).await
    {
        return Ok(bound);
    }
    let bound = listen(at).await.with_context(|| format!("start the {name} listener"))?;
    home.note_address(name, bound);
    Ok(bound)
}

/// The data directory unless one is named: `$XDG_DATA_HOME/insula`, else `~/.local/share/insula`.
#[allow(clippy::disallowed_methods, reason = "the edge: the user's own directories are in the environment")]
pub(crate) fn default_data_dir() -> Result<PathBuf> {
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        return Ok(PathBuf::from(data).join("insula"));
    }
    std::env::home_dir()
        .filter(|home| home.is_absolute())
        .map(|home| home.join(".local/share/insula"))
        .context("no home directory is known: name a data directory with --data-dir, or use --ephemeral")
}
