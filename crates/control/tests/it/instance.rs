use std::time::Duration;

use api::agents::*;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde_json::json;
use testkit::{House, KEY_SECRET, agent_run, config_map, instance, node, policy, runtime_class, secret};

fn phase(it: &SympoziumInstance) -> Option<InstancePhase> {
    it.status.as_ref().and_then(|status| status.phase)
}

/// The status as a user reads it.
fn words(it: &SympoziumInstance) -> String {
    serde_json::to_string(&it.status).unwrap()
}

fn seed() -> SympoziumInstance {
    testkit::yaml(include_str!("../../src/instance/seed-000.yaml"))
}

#[tokio::test(start_paused = true)]
async fn the_seeds_instance_says_what_it_lacks_and_heals_as_it_comes() {
    let house = House::open().await;
    house.create(&seed()).await;
    let it = house.until("my-agent", |it| phase(it) == Some(InstancePhase::Pending)).await;
    let lacks = ["openai-key", "restrictive", "telegram-creds", "github", "k8s-ops", "gpu-type=a100", "gvisor"];
    for lack in lacks {
        assert!(words(&it).contains(lack), "{lack} in {}", words(&it));
    }
    house.pass(Duration::from_secs(1)).await;
    let told = house.events("my-agent").await;
    for lack in lacks {
        assert_eq!(told.iter().filter(|(_, message)| message.contains(lack)).count(), 1, "{lack} in {told:?}");
    }
    house.create(&secret("openai-key", "x")).await;
    house.create(&secret("telegram-creds", "x")).await;
    house.create(&policy("restrictive", |_| {})).await;
    house.create(&node("gpu-1", &[("gpu-type", "a100")])).await;
    house.create(&runtime_class("gvisor", "native")).await;
    let healed = |it: &SympoziumInstance| {
        !["openai-key", "restrictive", "telegram-creds", "gpu-type", "gvisor"]
            .iter()
            .any(|lack| words(it).contains(lack))
    };
    let it = house.until("my-agent", healed).await;
    let channel = &it.status.unwrap().channels.unwrap()[0];
    assert_eq!(
        (channel.status, channel.message.as_deref()),
        (ChannelState::Pending, Some("the channel telegram is not served yet"))
    );
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_missing_later_is_said_too() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "x")).await;
    house.create(&instance("me", |_| {})).await;
    house.until("me", |it| phase(it) == Some(InstancePhase::Running)).await;
    house.delete::<k8s_openapi::api::core::v1::Secret>(KEY_SECRET).await;
    let it = house.until("me", |it| phase(it) == Some(InstancePhase::Pending)).await;
    assert!(words(&it).contains("Secret \\\"model-key\\\" not found"), "{}", words(&it));
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn it_counts_the_runs_that_go_on_and_those_it_ever_had() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "x")).await;
    house.create(&instance("me", |_| {})).await;
    for name in ["a", "b"] {
        house.create(&agent_run(name, |_| {})).await;
    }
    let (one, two) = (house.lease().await, house.lease().await);
    let counts = |active: i64, total: i64| {
        move |it: &SympoziumInstance| {
            let status = it.status.as_ref();
            status.is_some_and(|it| it.active_agent_pods == Some(active) && it.total_agent_runs == Some(total))
        }
    };
    house.until("me", counts(2, 2)).await;
    house.answer(one, "").await;
    house.until("me", counts(1, 2)).await;
    house.answer(two, "").await;
    house.until("me", counts(0, 2)).await;
    for name in ["a", "b"] {
        house.delete::<AgentRun>(name).await;
        house.until_gone::<AgentRun>(name).await;
    }
    house.pass(Duration::from_secs(1)).await;
    house.until("me", counts(0, 2)).await;
    house.end().await;
}

fn remembering(name: &str) -> SympoziumInstance {
    instance(name, |it| {
        it.spec.memory = Some(Memory { enabled: true, max_size_kb: 256, system_prompt: None });
    })
}

#[tokio::test(start_paused = true)]
async fn the_memory_is_made_once_and_goes_with_the_instance_whatever_the_cascade() {
    let house = House::open().await;
    house.create(&remembering("me")).await;
    let made = house.until("me-memory", |_: &ConfigMap| true).await;
    assert_eq!(made.owner_references()[0].name, "me");
    house.edit::<ConfigMap>("me-memory", json!({"data": {"MEMORY.md": "likes tea"}})).await;
    house.create(&secret(KEY_SECRET, "x")).await;
    house.create(&agent_run("r", |_| {})).await;
    assert_eq!(house.lease().await.ticket.job.system, "# Memory\n\nlikes tea");
    house.edit::<SympoziumInstance>("me", json!({"spec": {"memory": {"maxSizeKB": 512}}})).await;
    house.pass(Duration::from_secs(1)).await;
    let kept = house.get::<ConfigMap>("me-memory").await.unwrap();
    assert_eq!(kept.data.unwrap()["MEMORY.md"], "likes tea");
    house.delete_orphaning::<SympoziumInstance>("me").await;
    house.until_gone::<SympoziumInstance>("me").await;
    house.until_gone::<ConfigMap>("me-memory").await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_users_own_config_map_is_neither_overwritten_nor_taken_away() {
    let house = House::open().await;
    house.create(&config_map("me-memory", &[("MEMORY.md", "mine")])).await;
    house.create(&remembering("me")).await;
    house.until("me", |it: &SympoziumInstance| phase(it).is_some()).await;
    house.delete::<SympoziumInstance>("me").await;
    house.until_gone::<SympoziumInstance>("me").await;
    house.pass(Duration::from_secs(1)).await;
    let kept = house.get::<ConfigMap>("me-memory").await.expect("it stays");
    assert_eq!(kept.data.unwrap()["MEMORY.md"], "mine");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_made_anew_remembers_nothing_of_the_old_ones_sessions() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "x")).await;
    house.create(&instance("me", |_| {})).await;
    let chat = |name: &str| agent_run(name, |it| it.spec.session_key = "chat".into());
    house.create(&chat("a")).await;
    let lease = house.lease().await;
    house.answer(lease, "first").await;
    house.create(&chat("b")).await;
    let lease = house.lease().await;
    assert_eq!(lease.history.len(), 1);
    house.answer(lease, "second").await;
    house.delete::<SympoziumInstance>("me").await;
    house.until_gone::<SympoziumInstance>("me").await;
    house.create(&instance("me", |_| {})).await;
    house.create(&chat("c")).await;
    assert_eq!(house.lease().await.history.len(), 0);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_name_has_its_memory_and_one_that_is_too_long_for_it_says_so() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "x")).await;
    let remembers = |it: &mut SympoziumInstance| {
        it.spec.memory = Some(Memory { enabled: true, max_size_kb: 256, system_prompt: None });
    };
    let (long, longest, too_long) = ("a".repeat(64), "b".repeat(246), "c".repeat(247));
    for name in [&long, &longest, &too_long] {
        house.create(&instance(name, remembers)).await;
    }
    for name in [&long, &longest] {
        house.until(&format!("{name}-memory"), |_: &ConfigMap| true).await;
        house.until(name, |it| phase(it) == Some(InstancePhase::Running)).await;
        house.delete::<SympoziumInstance>(name).await;
        house.until_gone::<ConfigMap>(&format!("{name}-memory")).await;
    }
    let it = house.until(&too_long, |it| phase(it) == Some(InstancePhase::Error)).await;
    let conditions = it.status.unwrap().conditions.unwrap();
    let said = conditions.iter().find(|it| it.type_ == "MemoryReady").unwrap();
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "Invalid"));
    assert!(said.message.contains("254 characters") && said.message.contains("shorter name"), "{}", said.message);
    house.delete::<SympoziumInstance>(&too_long).await;
    house.until_gone::<SympoziumInstance>(&too_long).await;
    house.end().await;
}
