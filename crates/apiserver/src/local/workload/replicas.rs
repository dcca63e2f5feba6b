//! ReplicaSets and ReplicationControllers: so many pods, neither more nor fewer.

mod rank;

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use self::rank::first_to_go;
use super::{claim, from_template, is_terminating, owners, pods, selector, slow_start};
use crate::local::World;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader};
use crate::object::selector::Labels;
use crate::object::status::Problem;
use crate::store::Key;

/// Pods that are made or deleted in one look, at most.
const BURST: usize = 500;

/// What wants a number of pods.
trait Replicated: Kind {
    const COMPONENT: &'static str;

    fn selector(&self) -> Option<Labels>;
    fn wants(&self) -> Wants<'_>;
    fn told(&self) -> ReplicaSetStatus;
}

/// How many, and what.
struct Wants<'a> {
    replicas: i32,
    template: Option<&'a PodTemplateSpec>,
    /// For so many seconds a pod is ready before it counts as available.
    min_ready: i32,
}

impl<'a> Wants<'a> {
    fn new(replicas: Option<i32>, template: Option<&'a PodTemplateSpec>, min_ready: Option<i32>) -> Self {
        Self { replicas: replicas.unwrap_or(1), template, min_ready: min_ready.unwrap_or_default() }
    }
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn selector(&self) -> Option<Labels> {
        selector(&self.spec.as_ref()?.selector)
    }

    fn wants(&self) -> Wants<'_> {
        let it = self.spec.as_ref();
        let template = it.and_then(|it| it.template.as_ref());
        Wants::new(it.and_then(|it| it.replicas), template, it.and_then(|it| it.min_ready_seconds))
    }

    fn told(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn selector(&self) -> Option<Labels> {
        let labels = self.spec.as_ref()?.selector.as_ref().filter(|it| !it.is_empty())?;
        let text: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Labels::parse(&text.join(",")).ok()
    }

    fn wants(&self) -> Wants<'_> {
        let it = self.spec.as_ref();
        let template = it.and_then(|it| it.template.as_ref());
        Wants::new(it.and_then(|it| it.replicas), template, it.and_then(|it| it.min_ready_seconds))
    }

    fn told(&self) -> ReplicaSetStatus {
        // The two kinds say the same of themselves.
        let told = self.status.as_ref().and_then(|it| serde_json::to_value(it).ok());
        told.and_then(|it| serde_json::from_value(it).ok()).unwrap_or_default()
    }
}

pub(crate) async fn replica_sets(world: Arc<World>) {
    follow::<ReplicaSet>(world).await;
}

pub(crate) async fn replication_controllers(world: Arc<World>) {
    follow::<ReplicationController>(world).await;
}

async fn follow<T: Replicated>(world: Arc<World>) {
    let sets: Reader<T> = Reader::new(&world.core);
    let said = world.events.of(&world.core, T::COMPONENT);
    let all = || sets.list(None).iter().map(|it| it.key()).collect();
    drive(
        &world.core,
        &[(T::GROUP, T::URL_PATH_SEGMENT), ("", "pods")],
        all,
        |change| match &*change.entry.key.resource {
            "pods" => owners(&world.pods, &sets, change, T::selector),
            _ => vec![change.entry.key.clone()],
        },
        |key| sync(&world, &sets, &said, key),
    )
    .await;
}

async fn sync<T: Replicated>(
    world: &World,
    sets: &Reader<T>,
    said: &Recorder,
    key: Key,
) -> Result<Option<Timestamp>, Problem> {
    let Some(set) = sets.get(&key.namespace, &key.name) else { return Ok(None) };
    let Some(selector) = set.selector() else { return Ok(None) };
    let mine = async || -> Result<Vec<Arc<Pod>>, Problem> {
        let mut mine = claim(world, &world.pods, &*set, &selector).await?;
        mine.retain(|it| pods::is_active(it));
        Ok(mine)
    };
    let before = mine().await?;
    let have = i64::try_from(before.len()).unwrap_or(i64::MAX);
    let lack = i64::from(set.wants().replicas) - have;
    let problem = match set.is_deleting() || lack == 0 {
        true => None,
        false => manage(world, sets, said, &*set, before, lack).await,
    };
    let failure =
        problem.as_ref().map(|it| (if lack > 0 { "FailedCreate" } else { "FailedDelete" }, it.message.clone()));
    let now = world.core.clock.now();
    let mine = mine().await?;
    let status = tell(&*set, &mine, failure, now);
    if status != set.told() {
        world.set_status(&*set, &status).await?;
    }
    if let Some(problem) = problem {
        return Err(problem);
    }
    let available = mine.iter().filter_map(|it| pods::available_from(it, set.wants().min_ready));
    Ok(available.filter(|it| *it > now).min())
}

/// Makes what is lacking, or deletes what is too much.
async fn manage<T: Replicated>(
    world: &World,
    sets: &Reader<T>,
    said: &Recorder,
    set: &T,
    mine: Vec<Arc<Pod>>,
    lack: i64,
) -> Option<Problem> {
    let many = usize::try_from(lack.unsigned_abs()).unwrap_or(BURST).min(BURST);
    if lack > 0 {
        let template = set.wants().template?;
        let pod = from_template(template, set);
        let pod = &pod;
        let (_, problem) = slow_start(many, |_| world.create_pod(said, set, pod)).await;
        return problem.filter(|it| !is_terminating(it));
    }
    let doomed = first_to_go(mine, siblings(world, sets, set), many, world.core.clock.now());
    let gone = join_all(doomed.iter().map(|it| world.delete_pod(said, set, it))).await;
    gone.into_iter().find_map(Result::err)
}

/// The active pods of this one and, where others have the same owner, of those: they are to be spread, too.
fn siblings<T: Replicated>(world: &World, sets: &Reader<T>, set: &T) -> Vec<Arc<Pod>> {
    let owner = super::controller(set).map(|it| it.uid.clone());
    let related: Vec<String> = match owner {
        None => vec![set.uid().to_owned()],
        Some(owner) => {
            let all = sets.list(Some(set.namespace()));
            let same = all.iter().filter(|it| super::controller(&***it).is_some_and(|it| it.uid == owner));
            same.map(|it| it.uid().to_owned()).collect()
        }
    };
    let mut pods = world.pods.list(Some(set.namespace()));
    pods.retain(|it| pods::is_active(it) && super::controller(&**it).is_some_and(|by| related.contains(&by.uid)));
    pods
}

fn tell<T: Replicated>(
    set: &T,
    mine: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let labels = set.wants().template.and_then(|it| it.metadata.as_ref()?.labels.as_ref());
    let labelled = |pod: &Pod| labels.into_iter().flatten().all(|(name, value)| pod.label(name) == Some(value));
    let count = |of: &dyn Fn(&Pod) -> bool| i32::try_from(mine.iter().filter(|it| of(it)).count()).unwrap_or(i32::MAX);
    let some = |count: i32| Some(count).filter(|it| *it > 0);
    let before = set.told();
    let mut conditions = before.conditions.unwrap_or_default();
    match failure {
        None => conditions.retain(|it| it.type_ != "ReplicaFailure"),
        // What went wrong first is said until it goes well.
        Some(_) if conditions.iter().any(|it| it.type_ == "ReplicaFailure") => {}
        Some((reason, message)) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(now)),
            reason: Some(reason.to_owned()),
            message: Some(message),
        }),
    }
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: some(count(&labelled)),
        ready_replicas: some(count(&pods::is_ready)),
        available_replicas: some(count(&|it| pods::is_available(it, set.wants().min_ready, now))),
        observed_generation: set.metadata().generation,
        conditions: Some(conditions).filter(|it| !it.is_empty()),
        ..ReplicaSetStatus::default()
    }
}
