use std::time::Duration;

use api::agents::*;
use serde_json::json;
use testkit::{House, KEY_SECRET, agent_run, instance, policy, secret};

use crate::agent_run::condition;

#[tokio::test(start_paused = true)]
async fn a_policy_counts_whom_it_binds_and_says_what_it_does_not_understand() {
    let house = House::open().await;
    house
        .create(&policy("careful", |it| {
            it.spec.tool_gating = Some(ToolGating { default_action: "perhaps".into(), rules: None });
        }))
        .await;
    let bound = |count: i64| {
        move |it: &SympoziumPolicy| it.status.as_ref().is_some_and(|status| status.bound_instances == Some(count))
    };
    let it = house.until("careful", bound(0)).await;
    let said = &it.status.unwrap().conditions.unwrap()[0];
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "Invalid"));
    assert!(said.message.contains("perhaps"), "{}", said.message);
    for name in ["a", "b"] {
        house.create(&instance(name, |it| it.spec.policy_ref = Some("careful".into()))).await;
    }
    house.until("careful", bound(2)).await;
    house.edit::<SympoziumInstance>("a", json!({"spec": {"policyRef": "other"}})).await;
    house.until("careful", bound(1)).await;
    house.delete::<SympoziumInstance>("b").await;
    house.until("careful", bound(0)).await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_with_an_impossible_sandbox_says_so_and_its_runs_wait_until_it_is_edited() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "sk-test")).await;
    house
        .create(&policy("odd", |it| {
            it.spec.sandbox_policy = Some(SandboxPolicy {
                max_memory: Some("banana".into()),
                max_cpu: Some("-1".into()),
                default_image: Some("foo/bar:1".into()),
                ..Default::default()
            });
        }))
        .await;
    house.create(&instance("me", |it| it.spec.policy_ref = Some("odd".into()))).await;
    house.create(&agent_run("r", |_| {})).await;
    let said = |it: &SympoziumPolicy| it.status.iter().flat_map(|it| it.conditions.clone()).flatten().next();
    let it = house.until("odd", |it: &SympoziumPolicy| said(it).is_some()).await;
    let said = said(&it).unwrap();
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "Invalid"));
    let run = house.until("r", |run: &AgentRun| condition(run, "Accepted").0 == "False").await;
    for words in ["maxCPU", "\"-1\"", "maxMemory", "\"banana\"", "defaultImage", "\"foo/bar:1\""] {
        assert!(said.message.contains(words), "{words}: {}", said.message);
        assert!(condition(&run, "Accepted").2.contains(words), "{words}: {:?}", run.status);
    }
    assert!(house.nothing_is_due().await);
    house.pass(Duration::from_secs(1)).await;
    let mut told: Vec<String> = house.events("odd").await.into_iter().map(|(reason, _)| reason).collect();
    told.sort();
    assert_eq!(told, ["ImageMissing", "Invalid", "Invalid"]);
    let rules = json!({"maxCPU": "1", "maxMemory": "1Gi", "defaultImage": "host"});
    house.edit::<SympoziumPolicy>("odd", json!({"spec": {"sandboxPolicy": rules}})).await;
    assert_eq!(house.lease().await.ticket.job.sandbox.unwrap().cpu.as_deref(), Some("1"));
    house.end().await;
}
