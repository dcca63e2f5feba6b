//! What a kubelet acts through: processes, images, volumes. One door, so that a script can stand for all of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::Error;
use crate::pod::{ContainerConfig, ContainerState, PodConfig, PodState, StartError};

/// Why something about a pod does not work: a kubelet's reason, and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// `ErrImagePull`, `CreateContainerConfigError`, `FailedMount`, `OutOfcpu`, ...
    pub reason: Cow<'static, str>,
    pub message: String,
}

/// An image that is there.
#[derive(Clone, Debug)]
pub(crate) struct Found<I> {
    /// As `status.containerStatuses[].image` and `imageID` show it.
    pub name: String,
    pub id: String,
    /// `None`: it was there.
    pub pulled: Option<Download>,
    /// What the event says beyond a kubelet's words: that a name stands for the machine's own files.
    pub remark: Option<String>,
    pub image: I,
}

/// What there is to tell while an image is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Looking {
    /// A registry is going to be asked.
    Pulling,
    /// Pull secrets of these names are not there.
    Without(Vec<String>),
}

/// How an image came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Download {
    pub took: Duration,
    /// With the time that it waited for others.
    pub waited: Duration,
    pub bytes: u64,
}

/// What a command in a container came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub code: i32,
    /// Both of its outputs, as far as they were wanted.
    pub output: Bytes,
}

/// A connection into a pod's network.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// What this node is, as far as a pod is admitted by it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    /// Thousandths of a processor, bytes, pods.
    pub cpu: u64,
    pub memory: u64,
    pub pods: usize,
    /// Why it cannot freeze pods.
    pub no_freezer: Option<String>,
}

/// Everything that outlives the call is the implementor's; futures are dropped when nobody wants their result any more.
pub(crate) trait World: Send + Sync + 'static {
    /// An image, as [`World::container`] wants it.
    type Image: Clone + Send + Sync + 'static;

    fn node(&self) -> Node;
    /// What this node does not do for anybody (privileged containers, the host's namespaces): reason and message of the pod's end.
    fn admit(&self, pod: &Pod) -> Result<(), Refused>;

    /// Brings the pod's volumes up to date and says how the pod is to be made. Idempotent.
    fn volumes(&self, pod: &Pod) -> impl Future<Output = Result<PodConfig, Refused>> + Send;
    /// Returns when [`World::volumes`] should be called again.
    fn changed(&self, pod: &Pod) -> impl Future<Output = ()> + Send;
    /// The image by the container's pull policy. `tell` is called with what its user should know meanwhile.
    fn image(
        &self,
        pod: &Pod,
        container: &Container,
        tell: impl Fn(Looking) + Send + Sync,
    ) -> impl Future<Output = Result<Found<Self::Image>, Refused>> + Send;
    /// What a container is started with. Reason of a refusal: `CreateContainerConfigError`.
    fn container(
        &self,
        pod: &Pod,
        container: &Container,
        target: Option<&str>,
        image: &Self::Image,
        attempt: u32,
        address: Option<IpAddr>,
    ) -> impl Future<Output = Result<ContainerConfig, Refused>> + Send;

    fn create(&self, config: PodConfig) -> impl Future<Output = Result<PodState, Error>> + Send;
    fn start(
        &self,
        uid: &str,
        config: ContainerConfig,
    ) -> impl Future<Output = Result<ContainerState, StartError>> + Send;
    fn signal(&self, uid: &str, container: &str, signal: i32) -> impl Future<Output = Result<(), Error>> + Send;
    fn kill(&self, uid: &str, container: &str) -> impl Future<Output = Result<(), Error>> + Send;
    /// Has all processes of all containers stand still, or go on: all or none.
    fn freeze(&self, uid: &str, frozen: bool) -> impl Future<Output = Result<(), Error>> + Send;
    /// Runs a command to its end and keeps the first `most` bytes of what it says. Killed when dropped.
    fn exec(
        &self,
        uid: &str,
        container: &str,
        command: Vec<String>,
        most: usize,
    ) -> impl Future<Output = Result<Ran, StartError>> + Send;
    /// A port on the pod's own loopback; with a host, of another pod of this node.
    fn dial(&self, uid: &str, host: Option<&str>, port: u16) -> impl Future<Output = io::Result<Box<dyn Wire>>> + Send;
    fn state(&self, uid: &str) -> Option<PodState>;
    fn list(&self) -> Vec<PodState>;
    fn watch(&self, uid: &str) -> Option<watch::Receiver<u64>>;
    /// Ends the pod's first process and with it everything in the pod; what is known of it, its volumes and logs stay.
    fn stop(&self, uid: &str) -> impl Future<Output = Result<(), Error>> + Send;
    /// Nothing of it is left. Idempotent.
    fn remove(&self, uid: &str) -> impl Future<Output = Result<(), Error>> + Send;
    /// The end of a container's log.
    fn tail(&self, uid: &str, container: &str, attempt: u32, bytes: usize, lines: usize) -> String;
}
