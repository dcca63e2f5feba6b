//! Deployments: from one ReplicaSet to the next.

mod revisions;
mod rolling;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use self::rolling::{Bounds, Set};
use super::{claim, controller, is_controlled_by, is_terminating, owners, pods, reference, selector, short_hash};
use crate::local::World;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader, key};
use crate::object::status::Problem;
use crate::store::{Event, Key};

const COMPONENT: &str = "deployment-controller";
const HASH: &str = "pod-template-hash";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";

pub(crate) async fn follow(world: Arc<World>) {
    let loops = Loop {
        deployments: Reader::new(&world.core),
        sets: Reader::new(&world.core),
        said: world.events.of(&world.core, COMPONENT),
        world,
    };
    let all = || loops.deployments.list(None).iter().map(|it| it.key()).collect();
    let watched = [("apps", "deployments"), ("apps", "replicasets"), ("", "pods")];
    drive(&loops.world.core, &watched, all, |change| loops.wakes(change), |key| loops.sync(key)).await;
}

struct Loop {
    world: Arc<World>,
    deployments: Reader<Deployment>,
    sets: Reader<ReplicaSet>,
    said: Recorder,
}

/// A Deployment with its ReplicaSets.
struct Rollout<'a> {
    it: &'a Deployment,
    spec: &'a DeploymentSpec,
    /// The one that is as the Deployment is now.
    new: Option<Arc<ReplicaSet>>,
    /// The others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1)
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotation(annotation)?.parse().ok()
}

fn facts(set: &ReplicaSet) -> Set {
    let status = set.status.as_ref();
    let told = status.map_or(0, |it| it.replicas);
    Set {
        replicas: size(set),
        available: status.and_then(|it| it.available_replicas).unwrap_or_default(),
        most: number(set, MOST).unwrap_or(told),
    }
}

impl Rollout<'_> {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn recreates(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|it| it.type_.as_deref()) == Some("Recreate")
    }

    fn bounds(&self) -> Bounds {
        if self.recreates() {
            return Bounds { replicas: self.replicas(), surge: 0, unavailable: 0 };
        }
        let rolling = self.spec.strategy.as_ref().and_then(|it| it.rolling_update.as_ref());
        let (surge, unavailable) =
            (rolling.and_then(|it| it.max_surge.as_ref()), rolling.and_then(|it| it.max_unavailable.as_ref()));
        Bounds::new(self.replicas(), surge, unavailable)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }
}

/// The template as it was before it got the label of its ReplicaSet.
fn unlabelled(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH);
        }
        metadata.labels = metadata.labels.take().filter(|it| !it.is_empty());
    }
    template.metadata = template.metadata.filter(|it| *it != ObjectMeta::default());
    template
}

impl Loop {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        let key_ = &change.entry.key;
        match &*key_.resource {
            "deployments" => vec![key_.clone()],
            "replicasets" => owners(&self.sets, &self.deployments, change, |it| selector(&it.spec.as_ref()?.selector)),
            // One that is recreated waits for the last pod to go.
            _ if change.deleted || self.world.pods.of(&change.entry).is_some_and(|it| pods::is_over(&it)) => {
                let pod = self.world.pods.of(&change.entry);
                let set = pod.as_deref().and_then(controller).map(|it| self.sets.get(&key_.namespace, &it.name));
                let set = set.flatten();
                let owner = set
                    .as_deref()
                    .and_then(controller)
                    .filter(|it| it.kind == <Deployment as k8s_openapi::Resource>::KIND);
                owner.map(|it| key::<Deployment>(&key_.namespace, &it.name)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        let Some(it) = self.deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(spec) = it.spec.as_ref() else { return Ok(None) };
        let Some(selector) = selector(&spec.selector) else { return Ok(None) };
        if selector.is_empty() {
            self.said.warning(
                &*it,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(None);
        }
        let mut sets = claim(&self.world, &self.sets, &*it, &selector).await?;
        sets.sort_by(|a, b| {
            let at = |it: &ReplicaSet| (it.metadata.creation_timestamp.clone(), it.name().to_owned());
            at(a).cmp(&at(b))
        });
        let wanted = Some(unlabelled(&spec.template));
        let is_new =
            |set: &&Arc<ReplicaSet>| set.spec.as_ref().and_then(|it| it.template.as_ref()).map(unlabelled) == wanted;
        let new = sets.iter().find(is_new).cloned();
        let old = sets.into_iter().filter(|set| new.as_ref().is_none_or(|it| it.uid() != set.uid())).collect();
        let mut rollout = Rollout { it: &it, spec, new, old };
        if !it.is_deleting() {
            let paused = spec.paused == Some(true);
            if self.tell_paused(&rollout, paused).await? || self.revise(&rollout).await? {
                // What was written wakes this up again.
                return Ok(None);
            }
            let scaled = rollout
                .all()
                .any(|set| size(set) > 0 && number(set, DESIRED).is_some_and(|it| it != rollout.replicas()));
            let acted = match paused || scaled {
                true => self.scale(&rollout).await?,
                false if rollout.recreates() => self.recreate(&mut rollout).await?,
                false => self.roll(&mut rollout).await?,
            };
            if !acted && (paused || status::is_complete(&rollout, &status::counts(&rollout))) {
                self.forget_oldest(&rollout).await?;
            }
        }
        self.tell(&rollout).await
    }

    /// True when something was scaled.
    async fn roll(&self, rollout: &mut Rollout<'_>) -> Result<bool, Problem> {
        if rollout.new.is_none() {
            self.make(rollout).await?;
            return Ok(true);
        }
        let Some(new) = &rollout.new else { return Ok(false) };
        let old: Vec<Set> = rollout.old.iter().map(|it| facts(it)).collect();
        let next = rolling::next_new(rollout.bounds(), facts(new), &old);
        if size(new) != next {
            return self.resize(rollout, new, next).await;
        }
        let mut acted = false;
        for (set, next) in rollout.old.iter().zip(rolling::next_old(rollout.bounds(), facts(new), &old)) {
            acted |= size(set) != next && self.resize(rollout, set, next).await?;
        }
        Ok(acted)
    }

    async fn recreate(&self, rollout: &mut Rollout<'_>) -> Result<bool, Problem> {
        let mut acted = false;
        for set in &rollout.old {
            acted |= size(set) > 0 && self.resize(rollout, set, 0).await?;
        }
        if acted || self.old_run(rollout) {
            return Ok(true);
        }
        match &rollout.new {
            None => self.make(rollout).await.map(|()| true),
            Some(new) if size(new) == rollout.replicas() => Ok(false),
            Some(new) => self.resize(rollout, new, rollout.replicas()).await,
        }
    }

    /// Whether there is a pod that has not ended of a ReplicaSet that is not the new one.
    fn old_run(&self, rollout: &Rollout<'_>) -> bool {
        let pods = self.world.pods.list(Some(rollout.it.namespace()));
        let of_old = |pod: &&Arc<Pod>| rollout.old.iter().any(|it| is_controlled_by(&***pod, &**it));
        pods.iter().filter(of_old).any(|it| !pods::is_over(it))
    }

    /// Follows a change of the number of replicas, without rolling.
    async fn scale(&self, rollout: &Rollout<'_>) -> Result<bool, Problem> {
        let active: Vec<&Arc<ReplicaSet>> = rollout.all().filter(|it| size(it) > 0).collect();
        let latest = match active.as_slice() {
            [] => rollout.new.as_ref().or_else(|| rollout.old.last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(one) = latest {
            return self.resize(rollout, one, rollout.replicas()).await;
        }
        let mut acted = false;
        if let Some(new) = &rollout.new {
            let it = facts(new);
            let full = it.replicas == rollout.replicas()
                && number(new, DESIRED) == Some(rollout.replicas())
                && it.available == rollout.replicas();
            if full {
                for set in rollout.old.iter().filter(|it| size(it) > 0) {
                    acted |= self.resize(rollout, set, 0).await?;
                }
                return Ok(acted);
            }
        }
        if rollout.recreates() {
            return Ok(false);
        }
        let mut sets = active;
        let grows = rollout.bounds().most() > sets.iter().map(|it| size(it)).fold(0, i32::saturating_add);
        let created = |it: &ReplicaSet| it.metadata.creation_timestamp.clone();
        // The largest first; of equals the newest when it grows, and the oldest when it shrinks.
        sets.sort_by(|a, b| {
            let newer = created(b).cmp(&created(a));
            size(b).cmp(&size(a)).then(if grows { newer } else { newer.reverse() })
        });
        let sizes = rolling::in_proportion(rollout.bounds(), &sets.iter().map(|it| facts(it)).collect::<Vec<_>>());
        for (set, size) in sets.iter().zip(sizes) {
            acted |= self.resize(rollout, set, size).await?;
        }
        Ok(acted)
    }

    /// Gives a ReplicaSet its size, and notes what the Deployment's was. True when anything changed.
    async fn resize(&self, rollout: &Rollout<'_>, set: &Arc<ReplicaSet>, to: i32) -> Result<bool, Problem> {
        let from = size(set);
        let notes = sizes(rollout);
        let noted = notes.iter().all(|(name, value)| set.annotation(name) == Some(value));
        if from == to && noted {
            return Ok(false);
        }
        let change = json!({"metadata": {"annotations": notes}, "spec": {"replicas": to}});
        self.world.change(&**set, change).await?;
        if from != to {
            let how = if to > from { "up" } else { "down" };
            let message = format!("Scaled {how} replica set {} from {from} to {to}", set.name());
            self.said.normal(rollout.it, "ScalingReplicaSet", message);
        }
        Ok(true)
    }

    /// Makes the new ReplicaSet.
    async fn make(&self, rollout: &mut Rollout<'_>) -> Result<(), Problem> {
        let it = rollout.it;
        let collisions = it.status.as_ref().and_then(|it| it.collision_count);
        let mut template = rollout.spec.template.clone();
        let hash = short_hash(&unlabelled(&template), collisions);
        let label = |to: Option<BTreeMap<String, String>>| {
            let mut labels = to.unwrap_or_default();
            labels.insert(HASH.to_owned(), hash.clone());
            Some(labels)
        };
        let metadata = template.metadata.get_or_insert_default();
        metadata.labels = label(metadata.labels.take());
        let mut selector = rollout.spec.selector.clone();
        selector.match_labels = label(selector.match_labels.take());
        let old: Vec<Set> = rollout.old.iter().map(|it| facts(it)).collect();
        let replicas = match rollout.recreates() {
            true => rollout.replicas(),
            false => rolling::next_new(rollout.bounds(), Set::default(), &old),
        };
        let mut annotations = revisions::passed_on(it);
        annotations.extend(sizes(rollout));
        annotations.insert(revisions::REVISION.to_owned(), revisions::next(&rollout.old).to_string());
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", it.name())),
                namespace: it.metadata.namespace.clone(),
                labels: template.metadata.as_ref().and_then(|it| it.labels.clone()),
                annotations: Some(annotations),
                owner_references: Some(vec![reference(it)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: rollout.spec.min_ready_seconds.filter(|it| *it > 0),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        match self.world.create(&set).await {
            Ok(_) if replicas > 0 => {
                let message = format!("Scaled up replica set {} from 0 to {replicas}", set.name());
                self.said.normal(it, "ScalingReplicaSet", message);
            }
            Ok(_) => {}
            Err(problem) if problem.reason == "AlreadyExists" => {
                return self.collided(rollout, &set, collisions).await;
            }
            Err(problem) if is_terminating(&problem) => return Ok(()),
            Err(problem) => {
                let message = format!("Failed to create new replica set {:?}: {}", set.name(), problem.message);
                if rollout.spec.progress_deadline_seconds.is_some() {
                    self.progress(rollout, "False", "ReplicaSetCreateError", message.clone()).await?;
                }
                self.said.warning(it, "ReplicaSetCreateError", message);
                return Err(problem);
            }
        }
        rollout.new = self.sets.get(it.namespace(), set.name());
        if rollout.spec.progress_deadline_seconds.is_some() {
            let message = format!("Created new replica set {:?}", set.name());
            self.progress(rollout, "True", "NewReplicaSetCreated", message).await?;
        }
        Ok(())
    }

    /// Another one has the name of the new ReplicaSet: the next one has another name.
    async fn collided(&self, rollout: &Rollout<'_>, set: &ReplicaSet, collisions: Option<i32>) -> Result<(), Problem> {
        let there = self.sets.get(rollout.it.namespace(), set.name());
        if there.is_some_and(|it| is_controlled_by(&*it, rollout.it) && it.is_deleting()) {
            // It goes; its end wakes this up.
            return Ok(());
        }
        let mut status = rollout.it.status.clone().unwrap_or_default();
        status.collision_count = Some(collisions.unwrap_or_default().saturating_add(1));
        self.world.set_status(rollout.it, &status).await
    }
}

/// What each ReplicaSet notes of its Deployment's size.
fn sizes(rollout: &Rollout<'_>) -> BTreeMap<String, String> {
    let most = rollout.bounds().most();
    BTreeMap::from([(DESIRED.to_owned(), rollout.replicas().to_string()), (MOST.to_owned(), most.to_string())])
}

/// A change of annotations, as a merge patch.
fn annotate(annotations: &BTreeMap<String, String>) -> Value {
    let all: Map<String, Value> = annotations.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({"metadata": {"annotations": all}})
}
