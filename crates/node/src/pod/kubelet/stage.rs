//! A world that does what a test says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kit::Clock;
use tokio::sync::{Notify, watch};

use super::spec;
use super::world::{Found, Looking, Node, Ran, Refused, Wire, World};
use crate::Error;
use crate::pod::{ContainerConfig, ContainerState, Exit, PodConfig, PodState, Processes, Root, StartError};

pub(super) const NODE: &str = "here";

type Dial = Box<dyn Fn(u16) -> io::Result<tokio::io::DuplexStream> + Send + Sync>;

pub(super) struct Stage {
    pub clock: Clock,
    pods: Mutex<BTreeMap<String, (PodState, watch::Sender<u64>)>>,
    /// What was done, in order.
    pub did: watch::Sender<Vec<String>>,
    /// Images that cannot be had.
    pub missing: Mutex<BTreeSet<String>>,
    /// Containers that end with this code as soon as they run.
    pub brief: Mutex<BTreeMap<String, i32>>,
    /// What a command comes to; one that is not here hangs.
    pub commands: Mutex<BTreeMap<String, Ran>>,
    pub dial: Mutex<Option<Dial>>,
    pub changed: Notify,
    /// While a test writes to it, no pod ends.
    pub ends: tokio::sync::RwLock<()>,
}

impl Stage {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            pods: Mutex::default(),
            did: watch::Sender::default(),
            missing: Mutex::default(),
            brief: Mutex::default(),
            commands: Mutex::default(),
            dial: Mutex::default(),
            changed: Notify::new(),
            ends: tokio::sync::RwLock::default(),
        }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, (PodState, watch::Sender<u64>)>> {
        self.pods.lock().unwrap()
    }

    fn log(&self, what: String) {
        self.did.send_modify(|all| all.push(what));
    }

    /// A pod that runs, from before.
    pub(super) fn put(&self, uid: &str, container: &str) {
        let now = self.clock.now();
        let id = format!("{uid}-{container}-0");
        let (name, stop_signal) = (container.to_owned(), None);
        let containers = vec![ContainerState { name, attempt: 0, id, started: now, exit: None, stop_signal }];
        let state =
            PodState { config: config(uid, "p"), alive: true, frozen: false, address: None, created: now, containers };
        self.pods().insert(uid.to_owned(), (state, watch::Sender::new(0)));
    }

    pub(super) fn exit(&self, uid: &str, container: &str, code: i32) {
        let now = self.clock.now();
        self.change(uid, |state| end(state, container, code, now));
    }

    fn change(&self, uid: &str, change: impl FnOnce(&mut PodState)) {
        if let Some((state, changes)) = self.pods().get_mut(uid) {
            change(state);
            changes.send_modify(|it| *it += 1);
        }
    }
}

fn end(state: &mut PodState, container: &str, code: i32, finished: Timestamp) {
    let running = state.containers.iter_mut().rev().find(|it| it.name == container && it.exit.is_none());
    if let Some(it) = running {
        let (message, unseen) = (String::new(), false);
        it.exit = Some(Exit { code, signal: None, out_of_memory: false, finished, message, unseen });
    }
}

fn config(uid: &str, name: &str) -> PodConfig {
    PodConfig {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        hostname: name.to_owned(),
        ..PodConfig::default()
    }
}

impl World for Stage {
    type Image = String;

    fn node(&self) -> Node {
        Node {
            name: NODE.to_owned(),
            addresses: vec![[10, 0, 0, 1].into()],
            cpu: 4000,
            memory: 1 << 34,
            pods: 10,
            ..Node::default()
        }
    }

    fn admit(&self, pod: &Pod) -> Result<(), Refused> {
        if pod.spec.as_ref().is_some_and(|it| it.host_network == Some(true)) {
            return Err(Refused { reason: "HostNetworkForbidden".into(), message: "not here".to_owned() });
        }
        Ok(())
    }

    async fn volumes(&self, pod: &Pod) -> Result<PodConfig, Refused> {
        self.log("volumes".to_owned());
        Ok(config(spec::uid(pod), pod.metadata.name.as_deref().unwrap()))
    }

    async fn changed(&self, _: &Pod) {
        self.changed.notified().await;
    }

    async fn image(
        &self,
        _: &Pod,
        container: &Container,
        tell: impl Fn(Looking) + Send + Sync,
    ) -> Result<Found<String>, Refused> {
        let name = container.image.clone().unwrap();
        if self.missing.lock().unwrap().contains(&name) {
            tell(Looking::Pulling);
            return Err(Refused { reason: "ErrImagePull".into(), message: format!("{name}: not found") });
        }
        Ok(Found { name: name.clone(), id: "sha256:1".to_owned(), pulled: None, remark: None, image: name })
    }

    async fn container(
        &self,
        _: &Pod,
        container: &Container,
        _: Option<&str>,
        _: &String,
        attempt: u32,
        _: Option<IpAddr>,
    ) -> Result<ContainerConfig, Refused> {
        Ok(ContainerConfig {
            name: container.name.clone(),
            attempt,
            root: Root::Host,
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            mounts: Vec::new(),
            user: 7,
            group: 8,
            groups: vec![8, 9],
            read_only_root: false,
            capabilities: Vec::new(),
            privileged: false,
            filter: None,
            processes: Processes::Own,
            stdin: false,
            stdin_once: false,
            tty: false,
            limits: wire::node::Limits::default(),
            oom_score_adj: 0,
            termination_message_path: String::new(),
            stop_signal: None,
        })
    }

    async fn create(&self, config: PodConfig) -> Result<PodState, Error> {
        let (now, uid) = (self.clock.now(), config.uid.clone());
        self.log(format!("create {}", config.name));
        let address = Some([10, 1, 0, 2].into());
        let state = PodState { config, alive: true, frozen: false, address, created: now, containers: Vec::new() };
        self.pods().insert(uid, (state.clone(), watch::Sender::new(0)));
        Ok(state)
    }

    async fn start(&self, uid: &str, config: ContainerConfig) -> Result<ContainerState, StartError> {
        self.log(format!("start {}", config.name));
        let (name, attempt, started) = (config.name, config.attempt, self.clock.now());
        let id = format!("{uid}-{name}-{attempt}");
        let stop_signal = config.stop_signal;
        let container = ContainerState { name: name.clone(), attempt, id, started, exit: None, stop_signal };
        let code = self.brief.lock().unwrap().get(&name).copied();
        self.change(uid, |state| {
            state.containers.push(container.clone());
            code.into_iter().for_each(|code| end(state, &name, code, started));
        });
        Ok(container)
    }

    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<(), Error> {
        self.log(format!("signal {signal} {container}"));
        self.exit(uid, container, 128 + signal);
        Ok(())
    }

    async fn kill(&self, uid: &str, container: &str) -> Result<(), Error> {
        self.log(format!("kill {container}"));
        self.exit(uid, container, 137);
        Ok(())
    }

    async fn freeze(&self, uid: &str, frozen: bool) -> Result<(), Error> {
        self.log(if frozen { "freeze" } else { "thaw" }.to_owned());
        self.change(uid, |state| state.frozen = frozen);
        Ok(())
    }

    async fn exec(&self, _: &str, _: &str, command: Vec<String>, most: usize) -> Result<Ran, StartError> {
        let ran = self.commands.lock().unwrap().get(&command.join(" ")).cloned();
        match ran {
            Some(ran) => Ok(Ran { output: ran.output.slice(..most.min(ran.output.len())), ..ran }),
            None => std::future::pending().await,
        }
    }

    async fn dial(&self, _: &str, _: Option<&str>, port: u16) -> io::Result<Box<dyn Wire>> {
        match &*self.dial.lock().unwrap() {
            Some(dial) => Ok(Box::new(dial(port)?)),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    fn state(&self, uid: &str) -> Option<PodState> {
        self.pods().get(uid).map(|it| it.0.clone())
    }

    fn list(&self) -> Vec<PodState> {
        self.pods().values().map(|it| it.0.clone()).collect()
    }

    fn watch(&self, uid: &str) -> Option<watch::Receiver<u64>> {
        self.pods().get(uid).map(|it| it.1.subscribe())
    }

    async fn stop(&self, uid: &str) -> Result<(), Error> {
        let _ends = self.ends.read().await;
        self.log("stop".to_owned());
        self.change(uid, |state| state.alive = false);
        Ok(())
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        let _ends = self.ends.read().await;
        self.log(format!("remove {uid}"));
        self.pods().remove(uid);
        Ok(())
    }

    fn tail(&self, _: &str, _: &str, _: u32, bytes: usize, lines: usize) -> String {
        format!("the last {lines} lines, {bytes} bytes at most")
    }
}

pub(super) fn ran(code: i32, output: &str) -> Ran {
    Ran { code, output: Bytes::from(output.to_owned()) }
}
