//! Level-triggered, shown: every turn taken twice, or any one event lost, and the end is the same.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::agents::*;
use control::Faults;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use ledger::Outcome;
use serde_json::{Value, json};
use testkit::{House, KEY_SECRET, agent_run, instance, policy, secret};

type Story = fn(&House) -> Pin<Box<dyn Future<Output = ()> + '_>>;

/// Long enough for a new list of every kind, and shorter than the runs' patience.
const LONG: Duration = Duration::from_secs(15 * 60);

fn patient(name: &str, with: impl FnOnce(&mut AgentRun)) -> AgentRun {
    agent_run(name, |it| {
        it.spec.timeout = Some("5h".into());
        with(it);
    })
}

/// Everything comes before what needs it, and the other way round.
fn comes_in_any_order(house: &House) -> Pin<Box<dyn Future<Output = ()> + '_>> {
    Box::pin(async move {
        house.create(&patient("early", |_| {})).await;
        house.create(&instance("me", |it| it.spec.policy_ref = Some("careful".into()))).await;
        house.create(&secret(KEY_SECRET, "x")).await;
        house.create(&policy("careful", |_| {})).await;
        house.create(&patient("late", |_| {})).await;
        house.create(&patient("empty", |it| it.spec.task = String::new())).await;
    })
}

fn a_session_and_a_limit(house: &House) -> Pin<Box<dyn Future<Output = ()> + '_>> {
    Box::pin(async move {
        house.create(&secret(KEY_SECRET, "x")).await;
        let limit = Subagents { max_concurrent: 1, ..Subagents::default() };
        house.create(&instance("me", |it| it.spec.agents.default.subagents = Some(limit))).await;
        for name in ["c", "b", "a"] {
            house.create(&patient(name, |it| it.spec.session_key = "chat".into())).await;
        }
        house.create(&patient("alone", |_| {})).await;
        house
            .edit::<SympoziumInstance>(
                "me",
                json!({"spec": {"agents": {"default": {"subagents": {"maxConcurrent": 3}}}}}),
            )
            .await;
    })
}

fn things_go(house: &House) -> Pin<Box<dyn Future<Output = ()> + '_>> {
    Box::pin(async move {
        house.create(&secret(KEY_SECRET, "x")).await;
        let remembering = |name: &str| {
            instance(name, |it| {
                it.spec.memory = Some(Memory { enabled: true, max_size_kb: 256, system_prompt: None });
            })
        };
        house.create(&remembering("me")).await;
        house.create(&remembering("you")).await;
        house.create(&patient("waits", |it| it.spec.model.auth_secret_ref = "never".into())).await;
        house.create(&patient("stays", |_| {})).await;
        house.create(&patient("yours", |it| it.spec.instance_ref = "you".into())).await;
        house.pass(LONG).await;
        house.delete::<AgentRun>("waits").await;
        house.delete_orphaning::<SympoziumInstance>("me").await;
    })
}

/// All objects, without what may differ between two tellings: times, versions, ids.
async fn end_of(house: &House) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for it in house.list::<AgentRun>().await {
        all.insert(format!("run {}", it.name_any()), plain(json!([it.status, it.finalizers(), it.spec])));
    }
    for it in house.list::<SympoziumInstance>().await {
        all.insert(format!("instance {}", it.name_any()), plain(json!([it.status, it.finalizers()])));
    }
    for it in house.list::<SympoziumPolicy>().await {
        all.insert(format!("policy {}", it.name_any()), plain(json!(it.status)));
    }
    for it in house.list::<ConfigMap>().await.into_iter().filter(|it| it.name_any().ends_with("-memory")) {
        all.insert(format!("config map {}", it.name_any()), plain(json!([it.data, it.metadata.labels])));
    }
    all
}

fn plain(mut it: Value) -> Value {
    match &mut it {
        Value::Object(fields) => {
            for time in ["lastTransitionTime", "startedAt", "completedAt", "durationMs"] {
                fields.remove(time);
            }
            fields.values_mut().for_each(|value| *value = plain(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| *value = plain(value.take())),
        _ => {}
    }
    it
}

type End = (BTreeMap<String, Value>, Vec<String>, u64);

/// Tells a story with a runner that answers at once, and lets time pass. Returns the end, the order in which the runs of
/// sessions were done, and how many events came.
async fn tell(house: House, story: Story, faults: Faults) -> (House, End) {
    let faults = Arc::new(faults);
    let house = house.start_over(faults.clone()).await;
    let (ledger, shutdown) = (house.ledger.clone(), house.tasks.shutdown().clone());
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let done = order.clone();
    house.tasks.tenant("runner", async move {
        loop {
            let lease = tokio::select! {
                lease = ledger.lease("test") => lease,
                () = shutdown.begun() => return,
            };
            let Ok(lease) = lease else { continue };
            if !lease.ticket.session.is_empty() {
                done.lock().unwrap().push(lease.ticket.name.clone());
            }
            let answer = lease.ticket.name.clone();
            let _ = ledger.finish(&lease.run, lease.epoch, Outcome::succeeded(answer)).await;
        }
    });
    story(&house).await;
    house.pass(LONG).await;
    let end = end_of(&house).await;
    let order = order.lock().unwrap().clone();
    (house, (end, order, faults.seen()))
}

fn same(it: &BTreeMap<String, Value>, end: &BTreeMap<String, Value>, when: &str) {
    assert_eq!(it.keys().collect::<Vec<_>>(), end.keys().collect::<Vec<_>>(), "{when}");
    for (name, value) in end {
        assert_eq!(it.get(name), Some(value), "{name}: {when}");
    }
}

async fn holds(story: Story) {
    let house = House::open().await;
    if !house.time_is_given() {
        return println!("skipped: hours pass in this story, and time is not given here");
    }
    let (mut house, (end, order, events)) = tell(house, story, Faults::default()).await;
    assert!(events > 10, "the story is told: {events}");
    let twice;
    (house, twice) = tell(house, story, Faults::twice()).await;
    same(&twice.0, &end, "every turn taken twice");
    assert_eq!(twice.1, order, "every turn taken twice");
    for n in 1..=events {
        let lossy;
        (house, lossy) = tell(house, story, Faults::losing(n)).await;
        // Not the order: a run of whose creation nobody heard comes later.
        same(&lossy.0, &end, &format!("event {n} of {events} lost"));
    }
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_in_any_order_ends_the_same_whatever_is_lost() {
    holds(comes_in_any_order).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_and_limits_end_the_same_whatever_is_lost() {
    holds(a_session_and_a_limit).await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_goes_whatever_is_lost() {
    holds(things_go).await;
}
