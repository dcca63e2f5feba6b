//! A Kubernetes-compatible API server as one tower service. It knows no kinds but Kubernetes' own: everything else
//! arrives as CustomResourceDefinitions.
//!
//! In process it is the transport of a `kube::Client`; on a TLS listener it is what kubectl talks to.

mod access;
mod admission;
mod audit;
mod cel;
mod core;
mod count;
mod discovery;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod kinds;
mod kubelets;
mod listen;
mod local;
mod metrics;
mod object;
mod openapi;
mod peer;
mod pki;
mod proxy;
mod registry;
mod reviews;
mod store;
mod subject;
mod verbs;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kit::{Class, Clock, Tasks};
use serde_json::{Value, json};

use crate::access::User;
use crate::audit::Audit;
pub use crate::audit::AuditLog;
use crate::core::Core;
use crate::http::{FieldValidation, Service};
pub use crate::kubelets::Kubelets;
use crate::pki::Pki;
pub use crate::pki::PkiError;
use crate::registry::{cleanup, custom};
use crate::store::Store;
pub use crate::store::{BackupError, OpenError, Snapshot, restored};
use crate::verbs::patch::{Language, patch};
use crate::verbs::{Call, WriteOptions, create};

/// Where the objects are kept.
#[derive(Clone, Debug)]
pub enum Data {
    /// In memory alone; gone with the last [`ApiServer`].
    Memory,
    /// In `kubernetes.db` (and keys in `pki/`) in this directory, whose lock is the caller's.
    Dir(PathBuf),
}

/// What a server is made of.
pub struct Options {
    pub data: Data,
    pub clock: Clock,
    /// The server's loops and connections run on these and end with them.
    pub tasks: Tasks,
    /// The way to the nodes, for logs, commands and ports of pods; without it those are answered with an error.
    pub kubelets: Option<Kubelets>,
    /// Where it is written who asked for what; nowhere without it.
    pub audit: Option<AuditLog>,
    /// The directory in which the disks of PersistentVolumeClaims are made, as directories; this server alone writes there.
    /// Without it, claims are bound to volumes that are there, and none are made for them.
    pub volumes: Option<PathBuf>,
}

/// Why a server does not start, or a definition is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the store of the Kubernetes API")]
    Store(#[from] OpenError),
    #[error("cannot prepare TLS for the Kubernetes API")]
    Pki(#[from] PkiError),
    #[error("cannot listen on {at}")]
    Listen { at: SocketAddr, source: io::Error },
    /// In the API's own words.
    #[error("the CustomResourceDefinition {name} is refused: {why}")]
    Refused { name: String, why: String },
    /// It was taken, but another definition in its group has its names.
    #[error("the CustomResourceDefinition {name} is not established: {why}")]
    NotEstablished { name: String, why: String },
    #[error("the roles that are always there cannot be made")]
    Roles(#[source] io::Error),
    #[error("the classes that are always there cannot be made")]
    Classes(#[source] io::Error),
    #[error("cannot write the audit log {}", path.display())]
    Audit { path: PathBuf, source: io::Error },
    #[error("the namespace {name} cannot be created: {why}")]
    Namespace { name: &'static str, why: String },
}

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Store(_) | Self::Pki(_) | Self::Listen { .. } | Self::Audit { .. } | Self::Refused { .. } => {
                Class::Rejected
            }
            Self::NotEstablished { .. } => Class::Conflict,
            Self::Namespace { .. } | Self::Roles(_) | Self::Classes(_) => Class::Retry(None),
        }
    }
}

/// A running server. Cheap to clone; it lives as long as the tasks it was given.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
    pki: Arc<Pki>,
}

/// The namespaces that Kubernetes makes itself.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

impl ApiServer {
    /// Opens the store (making it when it is new), makes the namespaces, roles and bindings that are always there, and
    /// starts the loops that the API itself needs. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the data cannot be opened; nothing was changed then.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let Options { data, clock, tasks, kubelets, audit, volumes } = options;
        let directory = match &data {
            Data::Memory => None,
            Data::Dir(directory) => Some(directory.join("pki")),
        };
        let store = Store::open(&data, clock.clone(), &tasks)?;
        // The first keys of a process wait some 30 ms for entropy: meanwhile the store is filled.
        let now = clock.now();
        let pki = tokio::task::spawn_blocking(move || Pki::open(directory.as_deref(), now));
        let open = |to: AuditLog| {
            let path = to.path.clone();
            Audit::open(to, clock.clone(), &tasks).map_err(|source| Error::Audit { path, source })
        };
        let audit = audit.map(open).transpose()?;
        let core = Core::new(store, clock, tasks, kubelets, audit);
        local::make_classes(&core, volumes.is_some())
            .await
            .map_err(|problem| Error::Classes(io::Error::other(problem.message)))?;
        for name in NAMESPACES {
            ensure_namespace(&core, name).await?;
        }
        access::defaults::ensure(&core).await.map_err(|error| Error::Roles(io::Error::other(error)))?;
        let (pki, tokens) = pki.await.map_err(|_| PkiError::Interrupted)??;
        let pki = Arc::new(pki);
        core.keep(tokens);
        let server = Self { core, pki };
        local::start(&server.core, server.pki.authority(), volumes);
        server.core.tasks.platform("custom resource definitions", cleanup::run(server.core.clone()));
        Ok(server)
    }

    /// A client whose transport is this server: no socket, as a member of `system:masters`.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(Service::new(self.core.clone(), Some(User::admin()), None), "default")
    }

    /// Serves the API over TLS (HTTP/1.1 and HTTP/2) until the shutdown, and returns the bound address as soon as it
    /// does. The serving certificate is for loopback. Who shows neither a client certificate of
    /// [`ApiServer::kubeconfig`]'s kind nor the token of a service account is anonymous, and may ask for health alone.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(&self, at: SocketAddr) -> Result<SocketAddr, Error> {
        let bound = listen::listen(self.core.clone(), self.pki.tls.clone(), at).await;
        bound.map_err(|source| Error::Listen { at, source })
    }

    /// A kubeconfig (YAML) for the administrator of the server at this address, with its authority and his certificate
    /// in it. Where data is kept in a directory, it goes on working after a restart.
    pub fn kubeconfig(&self, server: SocketAddr) -> String {
        self.pki.kubeconfig(&format!("https://{server}"))
    }

    /// Takes definitions over by server-side apply. When it returns, all of them are established and served. Writes
    /// nothing for a definition that is there already.
    ///
    /// # Errors
    /// When a definition is refused, or its names are another's.
    pub async fn install(&self, definitions: Vec<CustomResourceDefinition>) -> Result<(), Error> {
        for definition in definitions {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let refused = |why: String| Error::Refused { name: name.clone(), why };
            let mut value = serde_json::to_value(&definition).map_err(|error| refused(error.to_string()))?;
            let root = value.as_object_mut().ok_or_else(|| refused("it is no object".into()))?;
            root.insert("apiVersion".into(), json!(format!("{}/v1", custom::GROUP)));
            root.insert("kind".into(), json!("CustomResourceDefinition"));
            root.shift_remove("status");
            let mut call = call(&self.core, custom::GROUP, custom::PLURAL, &name)
                .ok_or_else(|| refused("the kind is not served".into()))?;
            let options = WriteOptions {
                dry_run: false,
                manager: "installer".into(),
                validation: FieldValidation::Strict,
                force: true,
                said: Default::default(),
            };
            let written = patch(&mut call, Language::Apply, &Bytes::from(value.to_string()), &options).await;
            let written = written.map_err(|problem| refused(problem.message))?;
            let stored = written.object.served(&call.resource);
            if !custom::condition_is(&stored, "Established", "True") {
                let all = stored.pointer("/status/conditions").and_then(Value::as_array);
                let why = all.into_iter().flatten().find(|it| it.get("status").is_some_and(|it| it == "False"));
                let why = why
                    .and_then(|it| it.get("message"))
                    .and_then(Value::as_str)
                    .unwrap_or("its names are not accepted");
                return Err(Error::NotEstablished { name, why: why.to_owned() });
            }
        }
        Ok(())
    }
}

/// A call of our own, as the administrator.
fn call(core: &Arc<Core>, group: &str, plural: &str, name: &str) -> Option<Call> {
    let resource = core.registry.now().find(group, "v1", plural)?.clone();
    Some(Call {
        core: core.clone(),
        resource,
        user: User::admin(),
        namespace: String::new(),
        name: name.to_owned(),
        subresource: String::new(),
        warnings: Vec::new(),
        annotations: Default::default(),
    })
}

async fn ensure_namespace(core: &Arc<Core>, name: &'static str) -> Result<(), Error> {
    let failed = |why: String| Error::Namespace { name, why };
    let mut call = call(core, "", "namespaces", "").ok_or_else(|| failed("the kind is not served".into()))?;
    if core.store.get(&call.resource.key("", name)).is_some() {
        return Ok(());
    }
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let options = WriteOptions {
        dry_run: false,
        manager: "apiserver".into(),
        validation: FieldValidation::Ignore,
        force: false,
        said: Default::default(),
    };
    create::create(&mut call, object, &options).await.map_err(|problem| failed(problem.message))?;
    Ok(())
}
