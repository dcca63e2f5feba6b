//! What Kubernetes sees of a node: itself, as a Node with a Lease, and each sandbox that is somebody's, as a Pod.
//!
//! A projection, written after the fact and behind every request: nothing waits for it, and nothing is decided from it but
//! one thing, that a sandbox whose Pod a person deletes is ended. It works over the node's protocol, so that it does not
//! matter in which process the node is.

mod attend;
mod link;
mod machine;
mod object;
mod plan;
mod pods;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use kit::{Clock, Tasks};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use link::Link;
pub(crate) use machine::{Machine, available_memory, meminfo, process_count};
pub(crate) use object::quantity;

/// The field manager of all that is written here.
const MANAGER: &str = "insula-node";
/// What the node says that waits to be heard. A node cuts off who does not listen; then all is listed anew.
const UNHEARD: usize = 64;

/// What [`start`] is given.
pub struct Options {
    pub client: Client,
    /// The Node's name; see [`machine_name`].
    pub name: String,
    /// A directory on the file system that sandboxes fill: what is free there makes the Node's DiskPressure.
    pub disk: PathBuf,
    pub clock: Clock,
    pub tasks: Tasks,
    /// How many sandboxes there may be at once: the Node's capacity of Pods.
    pub most: usize,
    /// Whether the node runs Pods that are bound to it. Where it does not, the Node has a taint that keeps them away.
    pub runs_pods: bool,
}

impl Options {
    /// With the capacity of a node of [`crate::Options::new`].
    pub fn new(client: Client, name: impl Into<String>, disk: impl Into<PathBuf>, clock: Clock, tasks: Tasks) -> Self {
        Self { client, name: name.into(), disk: disk.into(), clock, tasks, most: 4096, runs_pods: false }
    }
}

/// Projects the node that `connect` reaches until the shutdown of the tasks. Returns at once.
///
/// - The Node is Ready, and its Lease renewed every ten seconds, while the node answers.
/// - A sandbox with the labels [`api::labels::POD_NAMESPACE`] and [`api::labels::POD`] is a Pod from a moment after its bind
///   until nothing of it is left. A Pod of this Node that bears the mark [`api::labels::PROJECTED`] and has no sandbox is deleted.
/// - A Pod that is deleted takes its sandbox with it, and is gone when the sandbox is.
/// - What is not marked as ours, a Node or a Pod, is never touched; that it is in the way is logged, for a Pod told by an
///   event too.
///
/// Server and node may be away at any time: everything is tried again, less and less often, up to once in five minutes.
pub fn start<F, S>(options: Options, connect: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = options.tasks.clone();
    let link = Link::new(connect, tasks.clone());
    tasks.platform("projection", async move {
        let shutdown = options.tasks.shutdown().clone();
        let (heard, hear) = mpsc::channel(UNHEARD);
        let (answers, answering) = watch::channel(false);
        let office = pods::Office { client: &options.client, node: &options.name, clock: &options.clock, link: &link };
        let attend = attend::Attend::new(&options, &link, answering);
        tokio::select! {
            () = shutdown.begun() => {}
            () = link.follow(&heard, &answers) => {}
            () = office.keep(hear) => {}
            () = attend.keep() => {}
        }
        Ok::<_, Infallible>(())
    });
}

/// This machine's host name, as the name of a Node: lower case, and of letters, digits, `-` and `.` only.
pub fn machine_name() -> String {
    valid_name(&rustix::system::uname().nodename().to_string_lossy())
}

/// As Kubernetes wants it of an object's name (RFC 1123, at most 253 characters) and, since it is a label too, at most 63.
fn valid_name(host: &str) -> String {
    let parts = host.split('.').map(|part| {
        let part: String = part
            .chars()
            .map(|it| it.to_ascii_lowercase())
            .map(|it| if it.is_ascii_lowercase() || it.is_ascii_digit() { it } else { '-' })
            .collect();
        part.trim_matches('-').to_owned()
    });
    let name = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
    let name: String = name.chars().take(63).collect();
    let name = name.trim_end_matches(['-', '.']);
    if name.is_empty() { "insula".to_owned() } else { name.to_owned() }
}

/// The objects of a kind. Untyped: little of each is read and written here, and the code of the whole types is megabytes.
pub(crate) fn objects<K: Resource<DynamicType = ()>>(client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
    let kind = ApiResource::erase::<K>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    }
}

/// What did not work; it is tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {doing}")]
    Api {
        doing: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error("cannot {doing}")]
    Unreachable {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot {doing}: the node says: {said}")]
    Refused { doing: &'static str, said: String },
    #[error("there is a {kind} {name:?} which is not ours: it is left alone, and {lost}")]
    Taken { kind: &'static str, name: String, lost: &'static str },
    #[error("gave up after {0} s")]
    Late(u64),
}

impl Error {
    fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { doing, source }
    }

    fn unreachable<E: Into<Box<dyn std::error::Error + Send + Sync>>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Unreachable { doing, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::valid_name;

    #[test]
    fn a_host_name_becomes_one_that_kubernetes_takes() {
        let long = "x".repeat(80);
        let table = [
            ("Toms-MacBook.local", "toms-macbook.local"),
            ("my_host", "my-host"),
            ("-a-.-b-", "a.b"),
            ("..", "insula"),
            ("größe", "gr--e"),
            (long.as_str(), &long[..63]),
        ];
        for (host, name) in table {
            assert_eq!(valid_name(host), name);
        }
    }
}
