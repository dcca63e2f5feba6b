//! The pods of this machine, all parts tied together: what the kubelet acts through, and what its HTTP API asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kit::{Clock, Tasks};
use kube::Api;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::given::{
    Allow, Allowed, Dns, Given, NodeFacts, PodFacts, VolumeError, beyond_sentry, host_name, host_ports, hosts,
    machine_hosts, resolv, spaces,
};
use super::kubelet::{self, Download, Found, Looking, Ran, Refused, Used, Wire, World};
use super::{
    ContainerConfig, ContainerState, Egress, ExecConfig, HostSpaces, ImageFacts, Kernel, Network, NetworkOptions,
    PodConfig, PodState, Runtime, StartError,
};
use super::{network, runtime_class, signals, upkeep};
use crate::Error;
use crate::image::{Credential, Image, Images, Listed, PullPolicy};
use crate::kubelet::{Pods, Running};
use crate::projection::Machine;

/// Pull secrets of one pod that are looked at.
const SECRETS: usize = 32;
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The same for pull secrets when no registry is going to be asked: they are an event at most.
const UNUSED_SECRETS: Duration = Duration::from_secs(1);

/// What pods are run with on this machine.
pub struct PodOptions {
    /// Of the cluster whose pods they are.
    pub client: kube::Client,
    /// What the node is called there.
    pub name: String,
    /// Below it are the directories of the PersistentVolumes that were made for this node.
    pub claims: PathBuf,
    /// The directory of the seccomp profiles that containers can name; it need not be there.
    pub profiles: PathBuf,
    /// hostPath volumes may be these directories, or below one of them; others are refused.
    pub host_paths: Vec<PathBuf>,
    /// What else of this machine they may have.
    pub allow: Allow,
    /// Most pods at once.
    pub most: usize,
    /// Where the API server listens: pods reach it as `kubernetes.default.svc`.
    pub api: SocketAddr,
    /// Where pods may go outside of their own network.
    pub egress: Egress,
}

/// Ends all pods of a node within a time.
pub(crate) type Close = Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// Everything that a pod of this machine is made of.
pub(crate) struct Here {
    runtime: Runtime,
    images: Images,
    given: Given,
    allowed: Allowed,
    network: Network,
    client: kube::Client,
    node: kubelet::Node,
    dns: Dns,
}

impl Here {
    /// Runs the pods that are bound to this node, from now on.
    pub(crate) async fn start(
        runtime: Runtime,
        dir: PathBuf,
        options: PodOptions,
        clock: Clock,
        tasks: Tasks,
    ) -> Result<(Arc<dyn Pods>, Close), Error> {
        let PodOptions { client, name, claims, profiles, host_paths, allow, most, api, egress } = options;
        let (root, finds) = (runtime.ids().is_root(), runtime.finds_processes());
        let allowed = Allowed { host_paths, host: allow, root, finds };
        let machine = Machine::read(&dir);
        let address = IpAddr::from(network::ADDRESS);
        let network = Network::open(NetworkOptions {
            dir,
            client: client.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
            runtime: runtime.clone(),
            api,
            egress,
        });
        let network = network.await?;
        for state in runtime.list().into_iter().filter(|it| it.alive) {
            // They had it from an earlier node.
            let config = &state.config;
            let uid = &config.uid;
            if let Err(error) = network.listen_for(uid, &config.host_ports).await {
                tracing::warn!(pod = uid, error = kit::chain(&error), "a pod is not reached at its host ports");
            }
            let joined = match config.host.network {
                true => Ok(address),
                false => network.join(uid, &config.ports).await,
            };
            if let Err(error) = joined.and_then(|address| runtime.set_address(uid, address)) {
                // It is made anew; the others are none the worse for it.
                tracing::warn!(pod = uid, error = kit::chain(&error), "a pod has no address any more: ending it");
                runtime.end(uid).await?;
            }
        }
        let servers = network.dns().into_iter().collect();
        let called = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let dns = Dns { domain: "cluster.local".into(), servers, host: String::new(), machine: called };
        let quantity = |it: String| Quantity(it);
        let allocatable = BTreeMap::from([
            ("cpu".to_owned(), quantity(machine.cpus.to_string())),
            ("memory".to_owned(), quantity(machine.memory.to_string())),
            ("ephemeral-storage".to_owned(), quantity(machine.disk.to_string())),
        ]);
        let facts = NodeFacts {
            addresses: vec![address],
            allocatable,
            memory: machine.memory,
            claims,
            profiles,
            dns: dns.clone(),
            proxy: network.proxy(),
            ids: runtime.ids(),
        };
        let labels = machine.labels(&name);
        let node = kubelet::Node {
            name,
            addresses: vec![address],
            labels,
            cpu: machine.cpus as u64 * 1000,
            memory: machine.memory,
            pods: most,
            no_freezer: runtime.no_freezer(),
        };
        let sizes = Some(runtime.clone());
        let given = Given::new(client.clone(), facts, allowed.clone(), sizes, clock.clone(), tasks.clone());
        let here = Arc::new(Self {
            images: runtime.images(),
            runtime,
            given,
            allowed,
            network,
            client: client.clone(),
            node,
            dns,
        });
        let (name, runtime) = (here.node.name.clone(), here.runtime.clone());
        runtime_class::publish(client.clone(), runtime.clone(), &tasks);
        let options = kubelet::Options { client, world: here.clone(), clock: clock.clone(), tasks: tasks.clone() };
        let kubelet = kubelet::start(options);
        let (kept, shutdown) = (kubelet.clone(), tasks.shutdown().clone());
        let closed = kubelet.clone();
        tasks.platform("upkeep of pods", async move {
            tokio::select! {
                () = shutdown.begun() => {}
                () = upkeep::keep(here, kept, clock) => {}
            }
            Ok::<_, Infallible>(())
        });
        let close: Close = Box::new(move |within| {
            let kubelet = closed.clone();
            Box::pin(async move { kubelet.close(within).await })
        });
        Ok((Arc::new(Running::new(name, runtime, move || kubelet.known())), close))
    }

    /// What the containers of a pod use of the machine's memory, in bytes.
    pub(super) fn memory(&self, pod: &Pod) -> Used {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        upkeep::used(pod, |container| self.runtime.usage(uid, Some(container))?.memory)
    }

    /// The message with which a pod is evicted that stores more than it may. `whole`: its volumes are looked through, too.
    pub(super) async fn overfull(&self, pod: &Pod, whole: bool) -> Option<String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = self.runtime.dir(uid);
        if whole && let Some(message) = self.given.overfull(pod, &dir).await {
            return Some(message);
        }
        if !kubelet::is_bounded(pod) {
            return None;
        }
        let volumes = if whole { self.given.stored(pod, &dir).await } else { 0 };
        let all =
            upkeep::containers(pod).map(|it| async { (it.name.clone(), self.runtime.stored(uid, &it.name).await) });
        let used = futures::future::join_all(all).await.into_iter().collect();
        kubelet::oversized(pod, &used, volumes)
    }

    pub(super) async fn collect_images(&self, pods: &[Arc<Pod>]) -> io::Result<()> {
        let named = upkeep::used_images(pods);
        let used =
            |it: &Listed| it.digests.iter().any(|it| named.contains(it.as_str())) || named.contains(it.id.as_str());
        let in_use = self.images.list()?.into_iter().filter(used).map(|it| it.id).collect();
        let removed = self.images.collect(&in_use).await?;
        if removed > 0 {
            tracing::info!(removed, "removed images that nobody uses");
        }
        Ok(())
    }

    /// What the pods of a class are run with.
    async fn kernel(&self, class: &str) -> Result<Kernel, String> {
        let classes = Api::<RuntimeClass>::all(self.client.clone());
        match tokio::time::timeout(ANSWER, classes.get_opt(class)).await {
            Ok(Ok(Some(it))) => {
                // In containerd's words.
                let none = format!("failed to get sandbox runtime: no runtime for {:?} is configured", it.handler);
                if it.handler != runtime_class::HANDLER {
                    return Err(none);
                }
                let found = self.runtime.sentry().await;
                if found.ok { Ok(Kernel::Sentry) } else { Err(format!("{none}: {}", found.why)) }
            }
            Ok(Ok(None)) => Err(format!("runtimeclass.node.k8s.io {class:?} not found")),
            Ok(Err(error)) => Err(format!("failed to lookup RuntimeClass {class}: {}", kit::chain(&error))),
            Err(_) => Err(format!("failed to lookup RuntimeClass {class}: the API server does not answer")),
        }
    }

    /// What the pod's pull secrets hold, and the names of those that are not there.
    async fn credentials(&self, pod: &Pod, patience: Duration) -> (Vec<Credential>, Vec<String>) {
        let named = pod.spec.as_ref().and_then(|it| it.image_pull_secrets.as_deref()).unwrap_or_default();
        let secrets =
            Api::<Secret>::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let secrets = &secrets;
        // A kubelet tries without those that it does not get, and the registry says what it thinks of that.
        let looks = named.iter().take(SECRETS).map(|it| async move {
            match tokio::time::timeout(patience, secrets.get_opt(&it.name)).await {
                Ok(Ok(secret)) => secret,
                Ok(Err(error)) => {
                    tracing::warn!(secret = it.name, error = kit::chain(&error), "cannot read a pull secret");
                    None
                }
                Err(_) => {
                    tracing::warn!(secret = it.name, "cannot read a pull secret: the API server does not answer");
                    None
                }
            }
        });
        let found = futures::future::join_all(looks).await;
        let (mut all, mut absent) = (Vec::new(), Vec::new());
        for (name, secret) in named.iter().zip(found) {
            let Some(secret) = secret else {
                absent.push(name.name.clone());
                continue;
            };
            let data = secret.data.unwrap_or_default();
            let found = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
                (Some(config), _) => Credential::parse_config(&config.0),
                (None, Some(config)) => Credential::parse_legacy(&config.0),
                (None, None) => continue,
            };
            match found {
                Ok(found) => all.extend(found),
                Err(why) => tracing::info!(secret = name.name, why, "a pull secret is not readable"),
            }
        }
        (all, absent)
    }
}

impl World for Here {
    type Image = ImageFacts;

    fn node(&self) -> kubelet::Node {
        self.node.clone()
    }

    fn admit(&self, pod: &Pod) -> Result<(), Refused> {
        match self.given.refuses(pod) {
            None => Ok(()),
            Some(it) => Err(Refused { reason: it.reason.into(), message: it.message }),
        }
    }

    async fn volumes(&self, pod: &Pod) -> Result<PodConfig, Refused> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let refused = |message| Refused { reason: VolumeError::REASON.into(), message };
        let volumes = self.given.volumes(pod, &self.runtime.dir(&uid)).await;
        let volumes = volumes.map_err(|error| refused(error.to_string()))?;
        let unable = |message| Refused { reason: "FailedCreatePodSandBox".into(), message };
        let mut kernel = Kernel::Machine;
        if let Some(class) = pod.spec.as_ref().and_then(|it| it.runtime_class_name.as_deref()) {
            let failed = |why| unable(format!("Failed to create pod sandbox: {why}"));
            kernel = self.kernel(class).await.map_err(failed)?;
            if let Some(why) = beyond_sentry(pod).filter(|_| kernel == Kernel::Sentry) {
                return Err(failed(why));
            }
        }
        let host = match kernel {
            Kernel::Machine => spaces(pod, &self.allowed),
            Kernel::Sentry => HostSpaces::default(),
        };
        let name = host_name(pod, &self.dns).map_err(unable)?;
        let (hosts, resolv) = if host.network {
            // What is not there says nothing.
            let text = async |path| tokio::fs::read_to_string(path).await.unwrap_or_default();
            let dns = Dns { host: text("/etc/resolv.conf").await, ..self.dns.clone() };
            (machine_hosts(pod, &text("/etc/hosts").await), resolv(pod, &dns))
        } else {
            (hosts(pod), resolv(pod, &self.dns))
        };
        Ok(PodConfig {
            uid,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            share_processes: pod.spec.as_ref().and_then(|it| it.share_process_namespace) == Some(true),
            kernel,
            hosts,
            names: name.line(),
            ports: ports(pod),
            resolv,
            hostname: name.kernel,
            volumes,
            sysctls: sysctls(pod),
            host,
            host_ports: host_ports(pod, &self.allowed),
        })
    }

    async fn changed(&self, pod: &Pod) {
        self.given.changed(pod).await;
    }

    async fn image(
        &self,
        pod: &Pod,
        container: &Container,
        tell: impl Fn(Looking) + Send + Sync,
    ) -> Result<Found<ImageFacts>, Refused> {
        let name = container.image.as_deref().unwrap_or_default();
        let policy = match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        let pulls = self.images.would_pull(name, policy);
        let (credentials, absent) = self.credentials(pod, if pulls { ANSWER } else { UNUSED_SECRETS }).await;
        if !absent.is_empty() {
            tell(Looking::Without(absent));
        }
        if pulls {
            tell(Looking::Pulling);
        }
        let began = std::time::Instant::now();
        let found = self.images.ensure(name, policy, &credentials).await;
        let image = found.map_err(|error| Refused { reason: error.reason.into(), message: error.message })?;
        tracing::debug!(asked = name, image = image.id, "an image for a container");
        let all = image.remark().into_iter().chain(self.given.remark(pod, container).map(str::to_owned));
        let remark = Some(all.collect::<Vec<_>>().join("; ")).filter(|it| !it.is_empty());
        let pulled = image.pulled.as_ref().and_then(|it| it.now);
        let pulled = pulled.map(|(bytes, took)| Download { took, waited: began.elapsed(), bytes });
        Ok(Found { name: image.name.clone(), id: image.reference.clone(), pulled, remark, image: facts(image) })
    }

    async fn container(
        &self,
        pod: &Pod,
        container: &Container,
        target: Option<&str>,
        image: &ImageFacts,
        attempt: u32,
        address: Option<IpAddr>,
    ) -> Result<ContainerConfig, Refused> {
        let state = pod.metadata.uid.as_deref().and_then(|uid| self.runtime.state(uid));
        let kernel = state.map_or(Kernel::Machine, |it| it.config.kernel);
        let facts = PodFacts { addresses: address.into_iter().collect(), target: target.map(str::to_owned), kernel };
        let config = self.given.container(pod, container, image, attempt, &facts).await;
        config.map_err(|error| Refused { reason: error.reason.into(), message: error.message })
    }

    async fn create(&self, config: PodConfig) -> Result<PodState, Error> {
        let (uid, ports, host) = (config.uid.clone(), config.ports.clone(), config.host);
        self.network.listen_for(&uid, &config.host_ports).await?;
        self.runtime.create(config).await?;
        let address = match host.network {
            true => IpAddr::from(network::ADDRESS),
            false => self.network.join(&uid, &ports).await?,
        };
        self.runtime.set_address(&uid, address)
    }

    async fn start(&self, uid: &str, config: ContainerConfig) -> Result<ContainerState, StartError> {
        self.runtime.start(uid, config).await
    }

    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<(), Error> {
        self.runtime.signal(uid, container, signal).await
    }

    async fn kill(&self, uid: &str, container: &str) -> Result<(), Error> {
        self.runtime.kill(uid, container).await
    }

    async fn freeze(&self, uid: &str, frozen: bool) -> Result<(), Error> {
        self.runtime.freeze(uid, frozen).await
    }

    async fn exec(&self, uid: &str, container: &str, command: Vec<String>, most: usize) -> Result<Ran, StartError> {
        let config =
            ExecConfig { args: command, env: Vec::new(), stdin: false, stdout: true, stderr: true, tty: false };
        let mut exec = self.runtime.exec(uid, container, config).await?;
        let outputs = [exec.stdout.take(), exec.stderr.take()].into_iter().flatten().map(|mut it| async move {
            let mut kept = Vec::new();
            let mut buffer = vec![0; 8 << 10];
            // What nobody wants is read all the same, or it would wait for a reader.
            while let Ok(count @ 1..) = it.read(&mut buffer).await {
                let wanted = most.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(buffer.get(..wanted).unwrap_or_default());
            }
            kept
        });
        let output = futures::future::join_all(outputs).await.concat();
        let code = (&mut exec.exit).await.map_err(|_| Error::Gone(uid.to_owned()))?;
        let mut output = Bytes::from(output);
        output.truncate(most);
        Ok(Ran { code, output })
    }

    async fn dial(&self, uid: &str, host: Option<&str>, port: u16) -> io::Result<Box<dyn Wire>> {
        let Some(host) = host else { return Ok(Box::new(self.runtime.dial(uid, port).await?)) };
        // Nobody gets into the host's network by what a pod says of its probes and hooks.
        let refused = |_| io::Error::new(io::ErrorKind::PermissionDenied, "this node asks its own pods only");
        let address = host.parse::<Ipv4Addr>().map_err(refused)?;
        Ok(Box::new(self.network.dial(SocketAddrV4::new(address, port)).await?))
    }

    fn state(&self, uid: &str) -> Option<PodState> {
        self.runtime.state(uid)
    }

    fn list(&self) -> Vec<PodState> {
        self.runtime.list()
    }

    fn watch(&self, uid: &str) -> Option<watch::Receiver<u64>> {
        self.runtime.watch(uid)
    }

    async fn stop(&self, uid: &str) -> Result<(), Error> {
        self.runtime.end(uid).await?;
        // What it had for itself alone is another's now.
        self.given.forget(uid);
        Ok(())
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        self.given.forget(uid);
        self.network.leave(uid).await;
        self.runtime.remove(uid).await
    }

    fn tail(&self, uid: &str, container: &str, attempt: u32, bytes: usize, lines: usize) -> String {
        self.runtime.log(uid, container, attempt).and_then(|it| it.tail(bytes, lines)).unwrap_or_default()
    }
}

fn facts(image: Image) -> ImageFacts {
    let Image { entrypoint, cmd, env, cwd, user, group, groups, user_name, stop_signal, root, .. } = image;
    let stop_signal = stop_signal.as_deref().and_then(signals::number);
    ImageFacts { root, entrypoint, cmd, env, cwd, user, group, groups, user_name, stop_signal }
}

fn ports(pod: &Pod) -> Vec<u16> {
    let containers = pod.spec.iter().flat_map(|it| it.containers.iter().chain(it.init_containers.iter().flatten()));
    let ports = containers.flat_map(|it| it.ports.iter().flatten());
    let tcp = ports.filter(|it| it.protocol.as_deref().is_none_or(|it| it == "TCP"));
    tcp.filter_map(|it| u16::try_from(it.container_port).ok()).collect()
}

fn sysctls(pod: &Pod) -> Vec<(String, String)> {
    let context = pod.spec.as_ref().and_then(|it| it.security_context.as_ref());
    let asked = context.and_then(|it| it.sysctls.as_deref()).unwrap_or_default();
    asked.iter().map(|it| (it.name.clone(), it.value.clone())).collect()
}
