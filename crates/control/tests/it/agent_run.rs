use std::time::Duration;

use api::agents::*;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;
use ledger::{Cause, Lease, Outcome, Step, Tokens};
use serde_json::json;
use testkit::{House, KEY_SECRET, agent_run, instance, policy, runtime_class, secret};

/// An instance and its key.
async fn house() -> House {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "sk-test")).await;
    house.create(&instance("me", |_| {})).await;
    house
}

pub(crate) fn phase(run: &AgentRun) -> Option<RunPhase> {
    run.status.as_ref().and_then(|status| status.phase)
}

/// What a condition says: its status, its reason and its message.
pub(crate) fn condition(run: &AgentRun, type_: &str) -> (String, String, String) {
    let said = run.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let it = said.into_iter().find(|it| it.type_ == type_);
    it.map(|it| (it.status.clone(), it.reason.clone(), it.message.clone())).unwrap_or_default()
}

fn error(run: &AgentRun) -> &str {
    run.status.as_ref().and_then(|status| status.error.as_deref()).unwrap_or_default()
}

async fn until_phase(house: &House, name: &str, wanted: RunPhase) -> AgentRun {
    house.until(name, |run: &AgentRun| phase(run) == Some(wanted)).await
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_from_its_object_to_the_ledger_and_back() {
    let house = house().await;
    let made = house.create(&agent_run("r", |it| it.spec.task = "say 42".into())).await;
    let lease = house.lease().await;
    assert_eq!((lease.run.as_str(), lease.ticket.job.task.as_str()), (made.uid().unwrap().as_str(), "say 42"));
    let running = until_phase(&house, "r", RunPhase::Running).await;
    assert_eq!(running.finalizers(), ["sympozium.ai/agentrun-finalizer"]);
    assert!(running.status.as_ref().unwrap().started_at.is_some());
    assert_eq!(condition(&running, "Started").0, "True");

    let usage = Tokens { input: 3, output: 2, total: 5 };
    let message = json!({"role": "assistant", "content": "42"});
    house.ledger.append(&lease.run, lease.epoch, Step::Answered { message, usage, cut: None }).await.unwrap();
    house.answer(lease, "42\n").await;
    let ended = until_phase(&house, "r", RunPhase::Succeeded).await;
    let status = ended.status.as_ref().unwrap();
    assert_eq!(status.result.as_deref(), Some("42\n"));
    let used = status.token_usage.unwrap();
    assert_eq!((used.input_tokens, used.output_tokens, used.total_tokens), (3, 2, 5));
    assert!(status.completed_at.is_some() && status.error.is_none());
    assert_eq!(condition(&ended, "Complete"), ("True".into(), "Succeeded".into(), String::new()));
    assert_eq!(status.conditions.as_ref().unwrap()[0].observed_generation, Some(1));
    house.pass(Duration::from_secs(1)).await;
    let told: Vec<String> = house.events("r").await.into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(told, ["Running", "Succeeded"]);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_run_lacks_is_named_and_healed_one_by_one() {
    let house = House::open().await;
    house
        .create(&agent_run("r", |it| {
            let runtime_class = Some("gvisor".to_owned());
            it.spec.agent_sandbox = Some(RunAgentSandbox { enabled: true, runtime_class, ..Default::default() });
        }))
        .await;
    let says = |words: &'static str| move |run: &AgentRun| condition(run, "Accepted").2 == words;
    let run = house.until("r", says("SympoziumInstance \"me\" not found")).await;
    assert_eq!(phase(&run), Some(RunPhase::Pending));
    assert_eq!(condition(&run, "Accepted").1, "InstanceMissing");
    house.create(&instance("me", |it| it.spec.policy_ref = Some("careful".into()))).await;
    house
        .until(
            "r",
            says("SympoziumPolicy \"careful\" not found; Secret \"model-key\" not found; RuntimeClass \"gvisor\" not found"),
        )
        .await;
    house.create(&policy("careful", |_| {})).await;
    house.until("r", says("Secret \"model-key\" not found; RuntimeClass \"gvisor\" not found")).await;
    house.create(&runtime_class("gvisor", "runsc")).await;
    house.until("r", says("Secret \"model-key\" not found; RuntimeClass \"gvisor\" needs the handler \"runsc\", which this machine has not")).await;
    house.delete_of_cluster::<RuntimeClass>("gvisor").await;
    house.create(&runtime_class("gvisor", "native")).await;
    house.until("r", says("Secret \"model-key\" not found")).await;
    house.create(&secret(KEY_SECRET, "sk-test")).await;
    let lease = house.lease().await;
    assert_eq!(lease.ticket.job.sandbox.as_ref().unwrap().runtime_class.as_deref(), Some("native"));
    house.answer(lease, "healed").await;
    until_phase(&house, "r", RunPhase::Succeeded).await;
    house.pass(Duration::from_secs(1)).await;
    let told = house.events("r").await;
    for what in [
        "SympoziumInstance \"me\"",
        "SympoziumPolicy \"careful\"",
        "Secret \"model-key\"",
        "RuntimeClass \"gvisor\" not",
    ] {
        assert_eq!(told.iter().filter(|(_, message)| message.starts_with(what)).count(), 1, "{what} in {told:?}");
    }
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lacks_something_until_its_timeout_fails_and_names_it() {
    let house = House::open().await;
    if !house.time_is_given() {
        return println!("skipped: minutes pass in this story, and time is not given here");
    }
    house.create(&instance("me", |_| {})).await;
    house.create(&agent_run("r", |it| it.spec.timeout = Some("90s".into()))).await;
    until_phase(&house, "r", RunPhase::Pending).await;
    house.pass(Duration::from_secs(85)).await;
    assert_eq!(phase(&house.get("r").await.unwrap()), Some(RunPhase::Pending));
    let run = until_phase(&house, "r", RunPhase::Failed).await;
    assert_eq!(error(&run), "timeout: not started within 1m30s, since Secret \"model-key\" not found");
    // What comes too late changes nothing.
    house.create(&secret(KEY_SECRET, "sk-test")).await;
    assert!(house.nothing_is_due().await);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_never_go_fails_at_once() {
    let house = house().await;
    house.create(&agent_run("empty", |it| it.spec.task = String::new())).await;
    house
        .create(&agent_run("deep", |it| {
            it.spec.parent = Some(ParentRun { run_name: "p".into(), session_key: "s".into(), spawn_depth: 3 });
        }))
        .await;
    let run = until_phase(&house, "empty", RunPhase::Failed).await;
    assert_eq!(error(&run), "spec.task is empty: there is nothing to do");
    let run = until_phase(&house, "deep", RunPhase::Failed).await;
    assert_eq!(error(&run), "spec.parent.spawnDepth is 3, and maxDepth is 2");
    assert!(house.nothing_is_due().await);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_over_the_limit_waits_and_a_raised_limit_lets_it_go() {
    let house = House::open().await;
    house.create(&secret(KEY_SECRET, "sk-test")).await;
    house
        .create(&policy("one", |it| it.spec.subagent_policy = Some(SubagentPolicy { max_depth: 1, max_concurrent: 1 })))
        .await;
    house.create(&instance("me", |it| it.spec.policy_ref = Some("one".into()))).await;
    for name in ["a", "b", "c"] {
        house.create(&agent_run(name, |_| {})).await;
    }
    // Which of them is first is nobody's promise: they have no session.
    let first = house.lease().await;
    for name in ["a", "b", "c"].into_iter().filter(|it| *it != first.ticket.name) {
        let run = house.until(name, |run: &AgentRun| condition(run, "Started").1 == "Queued").await;
        assert_eq!(phase(&run), Some(RunPhase::Pending));
    }
    assert!(house.nothing_is_due().await);
    house.edit::<SympoziumPolicy>("one", json!({"spec": {"subagentPolicy": {"maxConcurrent": 2}}})).await;
    let second = house.lease().await;
    assert!(house.nothing_is_due().await);
    house.answer(first, "a").await;
    house.answer(second, "b").await;
    let third = house.lease().await;
    house.answer(third, "c").await;
    for name in ["a", "b", "c"] {
        until_phase(&house, name, RunPhase::Succeeded).await;
    }
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn runs_of_a_session_go_in_the_order_of_their_creation_even_if_the_first_lacks_something() {
    let house = house().await;
    let chat = |name: &str, key: &str| {
        agent_run(name, |it| {
            it.spec.session_key = "chat".into();
            it.spec.model.auth_secret_ref = key.into();
        })
    };
    for (name, key) in [("z-first", "late"), ("y-second", KEY_SECRET), ("x-third", KEY_SECRET)] {
        house.create(&chat(name, key)).await;
        // Within one second only our own API server's uids tell what was made first.
        house.pass(Duration::from_secs(1)).await;
    }
    house.create(&agent_run("elsewhere", |_| {})).await;
    let lease = house.lease().await;
    assert_eq!(lease.ticket.name, "elsewhere");
    house.answer(lease, "").await;
    let third = house.until("x-third", |run: &AgentRun| phase(run) == Some(RunPhase::Pending)).await;
    assert_eq!(condition(&third, "Accepted").2, "waits for y-second, an earlier run of its session");
    assert!(house.nothing_is_due().await);
    house.create(&secret("late", "sk-test")).await;
    for name in ["z-first", "y-second", "x-third"] {
        let lease = house.lease().await;
        assert_eq!(lease.ticket.name, name);
        house.answer(lease, name).await;
        until_phase(&house, name, RunPhase::Succeeded).await;
    }
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_run_frees_the_one_behind_it() {
    let house = house().await;
    let chat = |name: &str, key: &str| {
        agent_run(name, |it| {
            it.spec.session_key = "chat".into();
            it.spec.model.auth_secret_ref = key.into();
        })
    };
    house.create(&chat("stuck", "never")).await;
    house.pass(Duration::from_secs(1)).await;
    house.create(&chat("behind", KEY_SECRET)).await;
    until_phase(&house, "behind", RunPhase::Pending).await;
    house.delete::<AgentRun>("stuck").await;
    assert_eq!(house.lease().await.ticket.name, "behind");
    house.end().await;
}

async fn stopped(lease: &Lease) {
    tokio::time::timeout(Duration::from_secs(5), lease.cancelled()).await.expect("the lease is taken away");
}

#[tokio::test(start_paused = true)]
async fn deleting_a_run_stops_it_and_leaves_nothing() {
    let house = house().await;
    house.create(&agent_run("r", |_| {})).await;
    let lease = house.lease().await;
    until_phase(&house, "r", RunPhase::Running).await;
    house.delete_orphaning::<AgentRun>("r").await;
    stopped(&lease).await;
    house.until_gone::<AgentRun>("r").await;
    assert_eq!(house.ledger.run(&lease.run).await.unwrap(), None);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_can_be_deleted_at_every_stage_and_without_its_instance() {
    let house = house().await;
    house.create(&agent_run("lacking", |it| it.spec.instance_ref = "nobody".into())).await;
    until_phase(&house, "lacking", RunPhase::Pending).await;
    house.create(&agent_run("failed", |it| it.spec.task = String::new())).await;
    until_phase(&house, "failed", RunPhase::Failed).await;
    house.create(&agent_run("done", |_| {})).await;
    let lease = house.lease().await;
    house.answer(lease, "ok").await;
    until_phase(&house, "done", RunPhase::Succeeded).await;
    house.delete_orphaning::<SympoziumInstance>("me").await;
    house.until_gone::<SympoziumInstance>("me").await;
    for name in ["lacking", "failed", "done"] {
        house.delete::<AgentRun>(name).await;
        house.until_gone::<AgentRun>(name).await;
    }
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn deleting_an_instance_cancels_its_runs_and_they_stay_as_objects() {
    let house = house().await;
    house.create(&agent_run("going", |_| {})).await;
    let lease = house.lease().await;
    house.delete::<SympoziumInstance>("me").await;
    stopped(&lease).await;
    house.until_gone::<SympoziumInstance>("me").await;
    let run = until_phase(&house, "going", RunPhase::Failed).await;
    assert_eq!(condition(&run, "Complete").1, "Cancelled");
    assert!(error(&run).contains("instance") && error(&run).contains("deleted"), "{}", error(&run));
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_runner_says_of_a_failure_reaches_the_status() {
    let house = house().await;
    house.create(&agent_run("r", |_| {})).await;
    let lease = house.lease().await;
    let outcome = Outcome::failed(Cause::Timeout, "timeout: no end after 2s");
    house.ledger.finish(&lease.run, lease.epoch, outcome).await.unwrap();
    let run = until_phase(&house, "r", RunPhase::Failed).await;
    assert_eq!(error(&run), "timeout: no end after 2s");
    assert_eq!(condition(&run, "Complete").1, "Timeout");
    assert_eq!(condition(&run, "Started").0, "True");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_run_goes_without_is_told_at_its_end_though_nobody_looked_before() {
    let mut house = house().await;
    house.create(&agent_run("r", |it| it.spec.env = Some([("A".to_owned(), "b".to_owned())].into()))).await;
    let lease = house.lease().await;
    house.stop_control().await;
    let before: AgentRun = house.get("r").await.unwrap();
    house.delete_orphaning::<SympoziumInstance>("me").await;
    house.answer(lease, "ok").await;
    house.restart_control().await;
    let run = until_phase(&house, "r", RunPhase::Succeeded).await;
    let said = "spec.env is not served yet: the run goes without it";
    assert_eq!(condition(&run, "Accepted"), ("True".into(), "Accepted".into(), said.into()), "{:?}", before.status);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn new_controllers_go_on_where_the_old_ones_stopped() {
    let mut house = house().await;
    house.create(&agent_run("going", |_| {})).await;
    let lease = house.lease().await;
    until_phase(&house, "going", RunPhase::Running).await;
    house.stop_control().await;
    house.answer(lease, "while nobody looked").await;
    house.create(&agent_run("new", |_| {})).await;
    house.restart_control().await;
    let run = until_phase(&house, "going", RunPhase::Succeeded).await;
    assert_eq!(run.status.unwrap().result.as_deref(), Some("while nobody looked"));
    assert_eq!(house.lease().await.ticket.name, "new");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_finished_run_is_never_started_again_even_if_the_ledger_forgot_it() {
    let mut house = house().await;
    house.create(&agent_run("r", |_| {})).await;
    let lease = house.lease().await;
    house.answer(lease, "once").await;
    let before = until_phase(&house, "r", RunPhase::Succeeded).await;
    house.lose_ledger().await;
    assert!(house.nothing_is_due().await);
    let after: AgentRun = house.get("r").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version(), "and nothing was written");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_where_nothing_changed() {
    let house = house().await;
    house.create(&agent_run("lacking", |it| it.spec.instance_ref = "nobody".into())).await;
    house.create(&agent_run("going", |_| {})).await;
    let _lease = house.lease().await;
    until_phase(&house, "lacking", RunPhase::Pending).await;
    until_phase(&house, "going", RunPhase::Running).await;
    house.pass(Duration::from_secs(1)).await;
    let versions = || async {
        let runs = house.list::<AgentRun>().await.into_iter();
        let instances = house.list::<SympoziumInstance>().await.into_iter();
        let mut all: Vec<_> = runs.map(|it| it.resource_version()).collect();
        all.extend(instances.map(|it| it.resource_version()));
        all
    };
    let before = versions().await;
    // Secrets come and go: each wakes whom it may concern.
    for name in ["other", "another"] {
        house.create(&secret(name, "x")).await;
    }
    house.edit::<Secret>(KEY_SECRET, json!({"metadata": {"labels": {"touched": "yes"}}})).await;
    house.pass(Duration::from_secs(2)).await;
    assert_eq!(versions().await, before);
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_write_into_a_status_stays() {
    let house = house().await;
    house.create(&agent_run("r", |_| {})).await;
    let lease = house.lease().await;
    until_phase(&house, "r", RunPhase::Running).await;
    house.write_status::<AgentRun>("r", json!({"traceID": "4bf92f35"})).await;
    house.answer(lease, "ok").await;
    let run = until_phase(&house, "r", RunPhase::Succeeded).await;
    assert_eq!(run.status.unwrap().trace_id.as_deref(), Some("4bf92f35"));
    house.end().await;
}

const MODELS: &str = "
rules:
- {match: {model: good}, answer: forty-two}
- {match: {model: bad}, status: 401}
- {match: {model: busy}, times: 1, status: 429, retryAfter: 0s}
- {match: {model: busy}, answer: at last}
- {match: {model: down}, status: 503, message: out of order}
- {match: {model: mute}, answer: never, delay: 1h}
- {match: {model: handy, results: 0}, calls: [{name: no_such_tool, arguments: {}}]}
- {match: {model: handy, results: 1}, answer: without tools}
";

#[tokio::test(start_paused = true)]
async fn whatever_a_model_does_a_run_says_so_and_ends() {
    let house = House::open().await;
    let url = house.hire(MODELS).await;
    house.create(&secret(KEY_SECRET, "sk-very-secret")).await;
    house
        .create(&instance("me", |it| {
            it.spec.agents.default.base_url = Some(url);
            it.spec.agents.default.subagents = Some(Subagents { max_concurrent: 10, ..Subagents::default() });
        }))
        .await;
    for name in ["good", "bad", "busy", "down", "mute", "handy"] {
        let impatient = ["down", "mute"].contains(&name).then(|| "2s".to_owned());
        house
            .create(&agent_run(name, |it| {
                it.spec.model.model = name.into();
                it.spec.timeout = impatient;
            }))
            .await;
    }
    let retrying = |run: &AgentRun| condition(run, "Complete").1 == "Retrying";
    let down = house.until("down", retrying).await;
    assert_eq!(phase(&down), Some(RunPhase::Running));
    assert!(condition(&down, "Complete").2.contains("503 Service Unavailable: out of order"), "{:?}", down.status);
    for (name, answer) in [("good", "forty-two"), ("busy", "at last"), ("handy", "without tools")] {
        let status = until_phase(&house, name, RunPhase::Succeeded).await.status.unwrap();
        assert_eq!(status.result.as_deref(), Some(answer));
        assert!(status.token_usage.unwrap().total_tokens > 0);
    }
    for (name, said) in [("bad", "401"), ("down", "out of order"), ("mute", "had not begun to answer")] {
        let run = until_phase(&house, name, RunPhase::Failed).await;
        assert_eq!(condition(&run, "Complete").1, "ProviderFailed", "{name}");
        assert!(error(&run).contains(said), "{name}: {}", error(&run));
        assert_eq!(error(&run).starts_with("timeout: "), name != "bad", "{name}: {}", error(&run));
        assert!(!serde_json::to_string(&run.status).unwrap().contains("sk-very-secret"));
    }
    let told = house.events("down").await;
    assert_eq!(told.iter().filter(|(reason, _)| reason == "Retrying").count(), 1, "{told:?}");
    house.end().await;
}
