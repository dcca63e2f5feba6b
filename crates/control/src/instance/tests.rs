//! Decisions as tables, and seed 000's own manifest as a snapshot.

use api::agents::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use testkit::instance;

use super::plan::plan;
use super::{Effect, Memory as Found, World};
use crate::machinery::Plan;

fn stored(with: impl FnOnce(&mut SympoziumInstance)) -> SympoziumInstance {
    instance("me", |it| {
        it.metadata.uid = Some("uid-me".into());
        it.metadata.generation = Some(1);
        with(it);
    })
}

fn status(plan: &Plan<Effect>) -> SympoziumInstanceStatus {
    serde_json::from_value(plan.status.clone().expect("a status")).unwrap()
}

fn said(plan: &Plan<Effect>) -> Vec<String> {
    plan.conditions.iter().map(|it| format!("{}={:?}/{}: {}", it.type_, it.status, it.reason, it.message)).collect()
}

fn told(plan: &Plan<Effect>) -> Vec<String> {
    plan.notes.iter().map(|it| format!("{}: {}", it.reason, it.message)).collect()
}

fn after(mut it: SympoziumInstance, plan: &Plan<Effect>) -> SympoziumInstance {
    let mut status = status(plan);
    let conditions = plan.conditions.iter().map(|it| Condition {
        type_: it.type_.into(),
        status: format!("{:?}", it.status),
        reason: it.reason.into(),
        message: it.message.clone(),
        observed_generation: None,
        last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
    });
    status.conditions = Some(conditions.collect());
    it.status = Some(status);
    it
}

/// Seed 000, value for value.
fn seed() -> SympoziumInstance {
    let mut it: SympoziumInstance = testkit::yaml(include_str!("seed-000.yaml"));
    it.metadata.uid = Some("uid-seed".into());
    it
}

fn nothing_there() -> World {
    World { missing_secrets: vec!["openai-key".into(), "telegram-creds".into()], ..World::default() }
}

#[test]
fn the_seeds_instance_names_everything_that_it_lacks() {
    let plan = plan(&seed(), &nothing_there());
    assert_eq!(status(&plan).phase, Some(InstancePhase::Pending));
    assert_eq!(
        said(&plan)[1..],
        [
            "KeysReady=False/SecretMissing: Secret \"openai-key\" not found",
            "PolicyReady=False/PolicyMissing: SympoziumPolicy \"restrictive\" not found",
            "ChannelsReady=False/SecretMissing: secret \"telegram-creds\" not found",
            "MCPServersReady=False/MCPServerMissing: MCPServer \"github\" not found",
            "SkillsReady=False/SkillPackMissing: SkillPack \"k8s-ops\" not found: skills are not served yet; \
             SkillPack \"memory\" not found: skills are not served yet",
            "NodesReady=False/NodeMissing: no Node has the labels gpu-type=a100",
            "RuntimeClassReady=False/RuntimeClassMissing: RuntimeClass \"gvisor\" not found",
            "MemoryReady=True/Ready: runs are told what is in it, and cannot write it yet",
            "AllServed=False/NotSupported: observability is not served yet: no telemetry leaves; \
             agentSandbox.warmPool is not read yet: the platform decides how many sandboxes are kept warm",
        ],
    );
    assert_eq!(told(&plan).len(), 10, "each thing in an event of its own");
    let channel = &status(&plan).channels.unwrap()[0];
    assert_eq!((channel.type_.as_str(), channel.status), ("telegram", ChannelState::Error));
    assert_eq!(channel.message.as_deref(), Some("secret \"telegram-creds\" not found"));
}

#[test]
fn what_appears_is_no_longer_named_and_what_was_told_is_not_told_again() {
    let seed = seed();
    let first = plan(&seed, &nothing_there());
    let seed = after(seed, &first);
    assert_eq!(told(&plan(&seed, &nothing_there())), [] as [String; 0]);
    let healed = World { missing_secrets: vec!["telegram-creds".into()], has_node: true, ..World::default() };
    let second = plan(&seed, &healed);
    let words = serde_json::to_string(&(said(&second), &second.status)).unwrap();
    assert!(!words.contains("openai-key") && !words.contains("gpu-type"), "{words}");
    assert_eq!(told(&second), [] as [String; 0]);
    let seed = after(seed, &second);
    let lost = plan(&seed, &nothing_there());
    assert_eq!(
        told(&lost),
        ["SecretMissing: Secret \"openai-key\" not found", "NodeMissing: no Node has the labels gpu-type=a100"],
    );
}

#[test]
fn an_instance_that_lacks_nothing_runs_and_counts_its_runs() {
    let it = stored(|it| it.status = Some(SympoziumInstanceStatus { total_agent_runs: Some(7), ..Default::default() }));
    let plan = plan(&it, &World { active: 2, runs: 3, submitted: 5, ..World::default() });
    let status = status(&plan);
    assert_eq!((status.phase, status.active_agent_pods), (Some(InstancePhase::Running), Some(2)));
    assert_eq!(status.total_agent_runs, Some(7), "it never goes down");
    assert_eq!(said(&plan), ["Ready=True/Ready: ", "KeysReady=True/Ready: "]);
}

#[test]
fn what_can_never_be_is_an_error() {
    let channel = |it: &mut SympoziumInstance| {
        it.spec.channels = Some(vec![Channel { type_: "pigeon".into(), config_ref: None, access_control: None }]);
    };
    let limit = |it: &mut SympoziumInstance| {
        it.spec.agents.default.subagents = Some(Subagents { max_concurrent: 0, ..Default::default() });
    };
    let memory = |it: &mut SympoziumInstance| {
        let limits = Some([("memory".to_owned(), api::Quantity::Number(-1))].into());
        let resources = Some(api::agents::ResourceRequirements { limits, ..Default::default() });
        it.spec.agents.default.sandbox = Some(InstanceSandbox { resources, ..Default::default() });
    };
    for (it, message) in [
        (
            stored(memory),
            "agents.default.sandbox.resources.limits.memory: \"-1\" is not an amount, such as 500m or 256Mi",
        ),
        (stored(channel), "channel type \"pigeon\" is none of telegram, whatsapp, discord, slack"),
        (stored(limit), "agents.default.subagents.maxConcurrent is 0: no run may start"),
    ] {
        let plan = plan(&it, &World::default());
        assert_eq!(status(&plan).phase, Some(InstancePhase::Error));
        assert_eq!(told(&plan), [format!("Invalid: {message}")]);
    }
}

#[test]
fn the_memory_is_made_where_there_is_none_and_taken_away_only_if_it_is_ours() {
    let memory = |it: &mut SympoziumInstance| {
        it.spec.memory = Some(Memory { enabled: true, max_size_kb: 256, system_prompt: None });
    };
    let it = stored(memory);
    let world = |ours| World {
        manager: "insula-x".into(),
        memory: Some(Found { uid: "uid-cm".into(), ours }),
        ..World::default()
    };
    let born = plan(&it, &World { manager: "insula-x".into(), ..World::default() });
    assert_eq!(
        born.seed[0].object,
        serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "namespace": "default", "name": "me-memory",
                "labels": {
                    "sympozium.ai/instance": "me", "sympozium.ai/component": "memory",
                    "app.kubernetes.io/managed-by": "insula-x",
                },
                "ownerReferences": [{
                    "apiVersion": "sympozium.ai/v1alpha1", "kind": "SympoziumInstance", "name": "me", "uid": "uid-me",
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "data": {"MEMORY.md": ""},
        }),
    );
    assert_eq!(plan(&it, &world(true)).seed, [], "what is in it by now is the user's");
    assert_eq!(plan(&stored(|_| {}), &World::default()).seed, []);

    let deleted = stored(|it| {
        memory(it);
        it.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    });
    let end = plan(&deleted, &world(true));
    assert_eq!(end.prune.iter().map(|it| it.uid.as_str()).collect::<Vec<_>>(), ["uid-cm"]);
    assert_eq!(end.effects, [Effect::Forget { namespace: "default".into(), instance: "me".into() }]);
    assert!(end.release_finalizer && end.seed.is_empty());
    assert_eq!(plan(&deleted, &world(false)).prune, []);
}
