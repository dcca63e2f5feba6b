//! Services say where their pods are: `pkg/controller/{endpoint,endpointslice,endpointslicemirroring}` of upstream. What
//! has no selector is its user's affair, but for the slices that mirror his Endpoints.

mod mirror;
mod plan;
mod slices;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::plan::{Face, MANAGED_BY};
use super::World;
use super::drive::drive;
use super::reader::{Kind, Reader, key};
use super::workload::{MANAGER, pods};
use super::write::set;
use crate::core::time;
use crate::object::status::Problem;
use crate::store::{Entry, Event, Key};
use crate::verbs::meta;

const ENDPOINTS: &str = "endpoints";
const SLICES: (&str, &str) = ("discovery.k8s.io", "endpointslices");
const WATCHED: [(&str, &str); 5] = [("", "services"), ("", "pods"), ("", "nodes"), ("", ENDPOINTS), SLICES];
/// The service that a slice is of.
const OF_SERVICE: &str = "kubernetes.io/service-name";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) async fn follow(world: Arc<World>) {
    let it = Finder::new(&world);
    drive(&world.core, &WATCHED, || it.all(), |change| it.wakes(change), |key| it.look(key)).await;
}

struct Finder<'a> {
    world: &'a World,
    services: Reader<Service>,
    nodes: Reader<Node>,
    times: Mutex<HashMap<Key, Times>>,
    /// Services that have just been deleted: their Endpoints go with them, whoever made those.
    deleted: Mutex<HashSet<Key>>,
}

/// The times of a service and of its pods' readiness as they were when it was last looked at.
#[derive(Default)]
struct Times {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl<'a> Finder<'a> {
    fn new(world: &'a World) -> Self {
        let core = &world.core;
        Self {
            world,
            services: Reader::new(core),
            nodes: Reader::new(core),
            times: Mutex::default(),
            deleted: Mutex::default(),
        }
    }

    /// Services, and what may be left of some that are gone.
    fn all(&self) -> Vec<Key> {
        let left = self.world.core.store.list("", ENDPOINTS, None, None, None).entries;
        let left = left.iter().map(|it| key::<Service>(&it.key.namespace, &it.key.name));
        self.services.list(None).iter().map(|it| it.key()).chain(left).collect()
    }

    fn wakes(&self, change: &Event) -> Vec<Key> {
        let of = &change.entry.key;
        let before = change.prev.as_deref();
        match &*of.resource {
            "services" => {
                if change.deleted {
                    self.deleted.lock().unwrap_or_else(PoisonError::into_inner).insert(of.clone());
                }
                vec![of.clone()]
            }
            "pods" => {
                let states = [Some(&*change.entry).filter(|_| !change.deleted), before];
                let [now, before] = states.map(|it| it.and_then(|it| self.world.pods.of(it)));
                if now.as_deref().map(Face::of) == before.as_deref().map(Face::of) {
                    return Vec::new();
                }
                let all = self.services.list(Some(&of.namespace));
                let of_it = all.iter().filter(|it| [&now, &before].into_iter().flatten().any(|pod| selects(it, pod)));
                of_it.map(|it| it.key()).collect()
            }
            "nodes" => {
                let zone = |it: &Entry| it.labels().get(ZONE).cloned();
                let same = before.is_some_and(|it| zone(it) == zone(&change.entry)) && !change.deleted;
                let all = if same { Vec::new() } else { self.services.list(None) };
                all.iter().filter(|it| selector_of(it).is_some()).map(|it| it.key()).collect()
            }
            // What this loop has just written says nothing new.
            _ if !change.deleted && is_untouched(&change.entry) => Vec::new(),
            ENDPOINTS => vec![key::<Service>(&of.namespace, &of.name)],
            _ => {
                let states = [Some(&*change.entry), before].into_iter().flatten();
                states
                    .filter_map(|it| it.labels().get(OF_SERVICE))
                    .map(|it| key::<Service>(&of.namespace, it))
                    .collect()
            }
        }
    }

    async fn look(&self, of: Key) -> Result<Option<Timestamp>, Problem> {
        let endpoints = Key::new("", ENDPOINTS, of.namespace.clone(), of.name.clone());
        let now = self.world.core.store.get(&endpoints);
        let Some(service) = self.services.get(&of.namespace, &of.name) else {
            self.times.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
            let deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner).contains(&of);
            if let Some(left) = now.filter(|it| deleted || is_ours(it)) {
                self.world.discard(&left).await?;
            }
            self.deleted.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
            mirror::look(self.world, &of, None).await?;
            return Ok(None);
        };
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
        if service.is_deleting() {
            return Ok(None);
        }
        mirror::look(self.world, &of, Some(&service)).await?;
        if selector_of(&service).is_none() {
            return Ok(None);
        }
        let mut pods = self.world.pods.list(Some(&of.namespace));
        pods.retain(|it| selects(&service, it) && plan::has_place(it));
        let trigger = self.trigger(&service, &pods);
        self.write(&service, now, &endpoints, &pods, trigger).await?;
        slices::write(self.world, &service, &pods, |name| self.nodes.get("", name), trigger).await?;
        Ok(None)
    }

    /// The earliest of what has changed since the last look, as far as it says when it did.
    fn trigger(&self, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let mut all = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(service.key()).or_default();
        let ready = |it: &Arc<Pod>| {
            let at = pods::condition(it, "Ready")?.last_transition_time.as_ref()?.0;
            Some((it.name().to_owned(), at))
        };
        let times: HashMap<String, Timestamp> = pods.iter().filter_map(ready).collect();
        let newer = |now: &Timestamp, before: Option<&Timestamp>| before.is_none_or(|it| now > it);
        let of_pods = times.iter().filter(|(name, at)| newer(at, known.pods.get(*name))).map(|it| *it.1).min();
        let created = service.metadata.creation_timestamp.as_ref().map(|it| it.0);
        let of_service = created.filter(|it| newer(it, known.service.as_ref()));
        *known = Times { service: created, pods: times };
        [of_pods, of_service].into_iter().flatten().min()
    }

    async fn write(
        &self,
        service: &Service,
        now: Option<Arc<Entry>>,
        key: &Key,
        pods: &[Arc<Pod>],
        trigger: Option<Timestamp>,
    ) -> Result<(), Problem> {
        let (mut subsets, truncated) = plan::subsets(service, pods);
        let mut labels = plan::labels(service);
        labels.insert(MANAGED_BY.0.into(), json!(MANAGED_BY.1));
        if let Some(entry) = &now {
            let value = entry.value();
            let is = value.get("subsets").and_then(Value::as_array).cloned().unwrap_or_default();
            let noted = meta::keyed(&value, "annotations", OVER_CAPACITY).is_some();
            let as_labelled = value.pointer("/metadata/labels").and_then(Value::as_object) == Some(&labels);
            if is == subsets && noted == truncated && as_labelled {
                return Ok(());
            }
        }
        let fill = |it: &mut Value| {
            set(it, &["metadata", "labels"], Value::Object(labels));
            annotate(it, trigger);
            set(
                it,
                &["metadata", "annotations", OVER_CAPACITY],
                if truncated { json!("truncated") } else { Value::Null },
            );
            set(it, &["subsets"], if subsets.is_empty() { Value::Null } else { json!(std::mem::take(&mut subsets)) });
        };
        match now {
            Some(entry) => self.world.replace(&entry, "", fill).await,
            None => {
                let mut object = json!({"apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {"name": &*key.name, "namespace": &*key.namespace}});
                fill(&mut object);
                made(self.world.make(key, object).await)
            }
        }
    }
}

/// Whether this loop made the Endpoints.
fn is_ours(entry: &Entry) -> bool {
    entry.labels().get(MANAGED_BY.0).is_some_and(|it| it == MANAGED_BY.1)
}

/// Whether nobody but controllers has ever written the object.
fn is_untouched(entry: &Entry) -> bool {
    #[derive(Deserialize)]
    struct Object {
        metadata: Books,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Books {
        managed_fields: Vec<Book>,
    }
    #[derive(Deserialize)]
    struct Book {
        manager: String,
    }
    let books = serde_json::from_slice::<Object>(&entry.json).map(|it| it.metadata.managed_fields);
    books.is_ok_and(|it| it.iter().all(|it| it.manager == MANAGER))
}

/// Says when what led to a change happened.
fn annotate(object: &mut Value, trigger: Option<Timestamp>) {
    set(object, &["metadata", "annotations", TRIGGER], trigger.map_or(Value::Null, |it| json!(time(it))));
}

/// A creation: nothing is made in a namespace that goes.
fn made(done: Result<(), Problem>) -> Result<(), Problem> {
    done.or_else(|problem| if super::workload::is_terminating(&problem) { Ok(()) } else { Err(problem) })
}

/// The labels that the pods of a service have; none when it has no pods of its own.
fn selector_of(service: &Service) -> Option<&std::collections::BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    spec.selector.as_ref().filter(|it| !it.is_empty() && spec.type_.as_deref() != Some("ExternalName"))
}

fn selects(service: &Service, pod: &Pod) -> bool {
    selector_of(service).is_some_and(|it| it.iter().all(|(key, value)| pod.label(key) == Some(value)))
}

/// An owner reference by which the service or the Endpoints go with what is made of them.
fn owned_by<T: Kind>(owner: &T) -> Value {
    json!([super::workload::reference(owner)])
}

type Labels = Map<String, Value>;
