//! Decisions as tables: a run, a world, and what follows.

use std::sync::Arc;
use std::time::Duration;

use api::agents::*;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use ledger::{Action, Cause, Outcome, Run, State, Ticket, Tokens, Usage};
use serde_json::json;
use testkit::{agent_run, instance, policy};

use super::Effect;
use super::look::{Key, World};
use super::plan::plan;
use crate::kinds::Class;
use crate::machinery::Plan;

fn now() -> Timestamp {
    "2026-03-26T12:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

/// A stored run, made now.
fn run(with: impl FnOnce(&mut AgentRun)) -> AgentRun {
    agent_run("r", |it| {
        it.metadata.uid = Some("uid-r".into());
        it.metadata.creation_timestamp = Some(Time(now()));
        it.metadata.generation = Some(1);
        with(it);
    })
}

/// Everything that the run names is there.
fn world() -> World {
    World { instance: Some(Arc::new(instance("me", |_| {}))), secret: Key::There, class: native(), ..World::default() }
}

fn native() -> Class {
    Class::There { handler: "native".into() }
}

fn isolated(class: &str, pool: &str) -> RunAgentSandbox {
    let name = |it: &str| Some(it.to_owned()).filter(|it| !it.is_empty());
    RunAgentSandbox { enabled: true, runtime_class: name(class), warm_pool_ref: name(pool), resources: None }
}

fn world_of(with: impl FnOnce(&mut SympoziumInstance)) -> World {
    World { instance: Some(Arc::new(instance("me", with))), ..world() }
}

/// With a policy on sandboxes.
fn ruled(with: impl FnOnce(&mut SandboxPolicy)) -> World {
    let mut rules = SandboxPolicy::default();
    with(&mut rules);
    World { policy: Some(Arc::new(policy("careful", |it| it.spec.sandbox_policy = Some(rules)))), ..world() }
}

fn known(state: State) -> World {
    let run = Run {
        namespace: "default".into(),
        name: "r".into(),
        state,
        attempt: 1,
        started: Some(later(1)),
        finished: None,
        usage: Usage { tokens: Tokens { input: 10, output: 5, total: 15 }, tool_calls: 2 },
        pod: Some("me-1".into()),
        trouble: None,
        without: Vec::new(),
    };
    World { known: Some(run), ..world() }
}

fn done(outcome: Outcome) -> World {
    let mut world = known(State::Done(outcome));
    world.known.as_mut().unwrap().finished = Some(later(3));
    world
}

fn status(plan: &Plan<Effect>) -> AgentRunStatus {
    serde_json::from_value(plan.status.clone().expect("a status")).unwrap()
}

fn phase(plan: &Plan<Effect>) -> RunPhase {
    status(plan).phase.unwrap()
}

/// Type, status and reason of each condition.
fn conditions(plan: &Plan<Effect>) -> Vec<String> {
    plan.conditions.iter().map(|it| format!("{}={:?}/{}", it.type_, it.status, it.reason)).collect()
}

fn submitted(plan: &Plan<Effect>) -> &Ticket {
    match plan.effects.as_slice() {
        [Effect::Submit(ticket)] => ticket,
        other => panic!("not submitted: {other:?}"),
    }
}

/// The run as it is after the plan was acted on.
fn after(mut run: AgentRun, plan: &Plan<Effect>) -> AgentRun {
    let mut status = status(plan);
    status.conditions = Some(
        plan.conditions
            .iter()
            .map(|it| Condition {
                type_: it.type_.into(),
                status: format!("{:?}", it.status),
                reason: it.reason.into(),
                message: it.message.clone(),
                observed_generation: None,
                last_transition_time: Time(now()),
            })
            .collect(),
    );
    run.status = Some(status);
    run
}

#[test]
fn a_run_that_lacks_nothing_is_submitted_with_all_that_its_brain_must_know() {
    let run = run(|it| {
        it.spec.session_key = "s".into();
        it.spec.system_prompt = Some("Be brief.".into());
        it.spec.timeout = Some("90s".into());
        it.spec.model.thinking = Some("high".into());
        it.spec.tool_policy = Some(ToolPolicy { allow: Some(vec!["read_file".into()]), deny: None });
    });
    let mut world = world_of(|it| {
        it.spec.policy_ref = Some("careful".into());
        it.spec.agents.default.base_url = Some("http://model/v1".into());
        it.spec.memory = Some(Memory { enabled: true, max_size_kb: 256, system_prompt: Some("You are Ada.".into()) });
    });
    world.policy = Some(Arc::new(policy("careful", |it| {
        it.spec.subagent_policy = Some(SubagentPolicy { max_depth: 1, max_concurrent: 3 });
        it.spec.tool_gating = Some(ToolGating {
            default_action: "ask".into(),
            rules: Some(vec![
                ToolRule { tool: "read_file".into(), action: "allow".into() },
                ToolRule { tool: "write_file".into(), action: "perhaps".into() },
            ]),
        });
    })));
    world.memory = Some("likes tea".into());
    let plan = plan(&run, &world, now());
    assert_eq!(plan.status, None, "the ledger's own news brings the status");
    let ticket = submitted(&plan);
    assert_eq!((ticket.run.as_str(), ticket.limit, ticket.timeout), ("uid-r", 3, Duration::from_secs(90)));
    assert_eq!((ticket.session.as_str(), ticket.created), ("s", now()));
    let job = &ticket.job;
    assert_eq!(job.system, "You are Ada.\n\nBe brief.\n\n# Memory\n\nlikes tea");
    assert_eq!((job.model.as_str(), job.base_url.as_str()), ("scripted", "http://model/v1"));
    assert_eq!((job.thinking.as_deref(), job.secret.as_deref()), (Some("high"), Some("model-key")));
    assert_eq!(job.tools.allow, ["read_file"]);
    let gate = job.tools.gate.as_ref().unwrap();
    assert_eq!((gate.policy.as_str(), gate.default), ("careful", Action::Ask));
    let rules = [("read_file".to_owned(), Action::Allow), ("write_file".to_owned(), Action::Deny)];
    assert_eq!(gate.rules, rules, "a word that nobody knows denies");
}

#[test]
fn what_is_missing_is_named_and_waited_for_and_told_once() {
    type Table = [(&'static str, World, Box<dyn Fn(&mut AgentRun)>, &'static str)];
    let table: &Table = &[
        ("InstanceMissing", World::default(), Box::new(|_| {}), "SympoziumInstance \"me\" not found"),
        (
            "SecretMissing",
            World { secret: Key::NoSecret, ..world() },
            Box::new(|_| {}),
            "Secret \"model-key\" not found",
        ),
        (
            "SecretMissing",
            world_of(|it| it.spec.auth_refs = None),
            Box::new(|it| it.spec.model.auth_secret_ref = String::new()),
            "no Secret with the model's key is named: set spec.model.authSecretRef, or authRefs of the instance",
        ),
        (
            "PolicyMissing",
            world_of(|it| it.spec.policy_ref = Some("nowhere".into())),
            Box::new(|_| {}),
            "SympoziumPolicy \"nowhere\" not found",
        ),
        (
            "RuntimeClassMissing",
            World { class: Class::Missing, ..world() },
            Box::new(|it| it.spec.agent_sandbox = Some(isolated("gvisor", ""))),
            "RuntimeClass \"gvisor\" not found",
        ),
        (
            "RuntimeHandlerMissing",
            World { class: Class::NoHandler("runsc".into()), ..world() },
            Box::new(|it| it.spec.agent_sandbox = Some(isolated("gvisor", ""))),
            "RuntimeClass \"gvisor\" needs the handler \"runsc\", which this machine has not",
        ),
        (
            "WarmPoolMissing",
            world(),
            Box::new(|it| it.spec.agent_sandbox = Some(isolated("gvisor", "pool"))),
            "agentSandbox.warmPoolRef: there is no warm pool \"pool\"; the platform keeps sandboxes warm by itself",
        ),
        ("NotSupported", world(), Box::new(|it| it.spec.mode = Mode::Server), "mode server is not served yet"),
        (
            "ImageMissing",
            world(),
            Box::new(|it| {
                it.spec.sandbox = Some(RunSandbox { image: Some("nope:1".into()), ..Default::default() });
            }),
            "spec.sandbox.image: the image \"nope:1\" is not on this machine; name `host`, this machine's own programs, or none",
        ),
        (
            "ImageMissing",
            ruled(|rules| rules.default_image = Some("foo/bar:1".into())),
            Box::new(|_| {}),
            "sandboxPolicy.defaultImage of policy careful: the image \"foo/bar:1\" is not on this machine; name `host`, this machine's own programs, or none",
        ),
        (
            "Invalid",
            ruled(|rules| rules.max_cpu = Some("-1".into())),
            Box::new(|_| {}),
            "sandboxPolicy.maxCPU of policy careful: \"-1\" is not an amount, such as 500m or 256Mi",
        ),
        (
            "Invalid",
            ruled(|rules| rules.max_memory = Some("1Gi".into())),
            Box::new(|it| {
                let limits = Some([("memory".to_owned(), "banana".to_owned())].into());
                let resources = Some(StringResources { limits, requests: None });
                it.spec.sandbox = Some(RunSandbox { resources, ..Default::default() });
            }),
            "spec.sandbox.resources.limits.memory: \"banana\" is not an amount, such as 500m or 256Mi",
        ),
        (
            "Invalid",
            world_of(|it| {
                it.spec.agents.default.subagents = Some(Subagents { max_concurrent: 0, ..Default::default() });
            }),
            Box::new(|_| {}),
            "maxConcurrent of the instance or its policy is less than 1: no run may start",
        ),
    ];
    for (reason, world, with, message) in table {
        let run = run(|it| with(it));
        let first = plan(&run, world, later(60));
        assert_eq!(first.effects, [], "{reason}");
        assert_eq!(phase(&first), RunPhase::Pending);
        assert_eq!(conditions(&first)[0], format!("Accepted=False/{reason}"));
        assert_eq!(first.conditions[0].message, *message);
        assert_eq!(first.wake_in, Some(Duration::from_secs(540)), "it gives up at its timeout");
        assert_eq!(first.notes.iter().map(|it| it.message.as_str()).collect::<Vec<_>>(), [*message]);
        let run = after(run, &first);
        let second = plan(&run, world, later(61));
        assert_eq!((second.status.clone(), second.notes.len()), (first.status.clone(), 0), "said once: {reason}");
        let last = plan(&run, world, later(600));
        assert_eq!(phase(&last), RunPhase::Failed);
        assert_eq!(status(&last).error.unwrap(), format!("timeout: not started within 10m, since {message}"));
        assert_eq!(conditions(&last)[2], "Complete=False/Timeout");
    }
}

#[test]
fn all_that_is_missing_is_named_at_once() {
    let mut world = world_of(|it| it.spec.policy_ref = Some("nowhere".into()));
    world.secret = Key::NoSecret;
    let plan = plan(&run(|_| {}), &world, now());
    assert_eq!(plan.conditions[0].message, "SympoziumPolicy \"nowhere\" not found; Secret \"model-key\" not found");
    assert_eq!(plan.notes.len(), 2);
}

#[test]
fn a_run_needs_no_key_where_an_address_is_given_and_no_secret_is_named() {
    let run = run(|it| {
        it.spec.model.auth_secret_ref = String::new();
        it.spec.model.base_url = Some("http://model/v1".into());
    });
    let mut world = world_of(|it| it.spec.auth_refs = None);
    world.secret = Key::NoSecret;
    assert_eq!(submitted(&plan(&run, &world, now())).job.secret, None);
}

#[test]
fn what_can_never_go_fails_at_once_and_says_why() {
    let deep = |it: &mut AgentRun| it.spec.parent = Some(ParentRun { spawn_depth: 3, ..Default::default() });
    let mut classes = world();
    classes.policy = Some(Arc::new(policy("strict", |it| {
        let agent_sandbox_policy = Some(AgentSandboxPolicy {
            required: true,
            default_runtime_class: None,
            allowed_runtime_classes: Some(vec!["gvisor".into()]),
        });
        it.spec.sandbox_policy =
            Some(SandboxPolicy { max_memory: Some("1Gi".into()), agent_sandbox_policy, ..Default::default() });
    })));
    let memory = |it: &mut AgentRun| {
        let limits = Some([("memory".to_owned(), "2Gi".to_owned())].into());
        let resources = Some(StringResources { limits, requests: None });
        it.spec.sandbox = Some(RunSandbox { enabled: true, resources, ..Default::default() });
    };
    let kata = |it: &mut AgentRun| it.spec.agent_sandbox = Some(isolated("kata", ""));
    type Row<'a> = (&'a World, &'a dyn Fn(&mut AgentRun), &'a str, &'a str);
    let table: [Row; 7] = [
        (&world(), &|it| it.spec.task = " \n".into(), "Invalid", "spec.task is empty: there is nothing to do"),
        (
            &world(),
            &|it| it.spec.timeout = Some("banana".into()),
            "Invalid",
            "spec.timeout: \"banana\" is not a duration: write numbers with units, as in \"90s\", \"10m\" or \"1h30m\"",
        ),
        (&world(), &|it| it.spec.timeout = Some("0s".into()), "Invalid", "spec.timeout must be more than 0"),
        (&world(), &deep, "Denied", "spec.parent.spawnDepth is 3, and maxDepth is 2"),
        (&classes, &|_| {}, "Denied", "policy strict: a runtimeClass is required, and none is named"),
        (&classes, &kata, "Denied", "policy strict: runtimeClass \"kata\" is not among gvisor"),
        (&classes, &memory, "Denied", "policy strict: memory 2Gi is more than maxMemory 1Gi"),
    ];
    for (world, with, reason, error) in table {
        let plan = plan(&run(with), world, now());
        assert_eq!(plan.effects, []);
        let status = status(&plan);
        assert_eq!((status.phase, status.error.as_deref()), (Some(RunPhase::Failed), Some(error)));
        assert_eq!((status.started_at, status.completed_at), (None, Some(Time(now()))));
        assert_eq!(conditions(&plan)[2], format!("Complete=False/{reason}"));
        assert_eq!((plan.notes[0].warning, plan.notes[0].message.as_str()), (true, error));
    }
}

#[test]
fn a_run_waits_for_the_one_before_it_in_its_session_without_a_deadline() {
    let world = World { waits_for: Some("earlier".into()), ..world() };
    let plan = plan(&run(|_| {}), &world, later(10_000));
    assert_eq!((plan.effects.len(), phase(&plan), plan.wake_in), (0, RunPhase::Pending, None));
    assert_eq!(plan.conditions[0].message, "waits for earlier, an earlier run of its session");
}

#[test]
fn the_ledgers_word_becomes_the_status() {
    let mut waiting = known(State::Queued);
    waiting.known.as_mut().unwrap().started = None;
    waiting.known.as_mut().unwrap().attempt = 0;
    let queued = plan(&run(|_| {}), &waiting, later(2));
    assert_eq!(phase(&queued), RunPhase::Pending);
    assert_eq!(conditions(&queued), ["Accepted=True/Accepted", "Started=False/Queued", "Complete=False/Queued"]);
    assert_eq!(submitted(&queued).limit, 5, "a limit that changed meanwhile reaches the ledger");

    let running = plan(&run(|_| {}), &known(State::Running), later(2));
    assert_eq!(running.effects, []);
    assert_eq!(
        running.status,
        Some(json!({"phase": "Running", "podName": "me-1", "startedAt": "2026-03-26T12:00:01Z"})),
    );
    assert_eq!(conditions(&running), ["Accepted=True/Accepted", "Started=True/Running", "Complete=False/Running"]);

    let again = plan(&run(|_| {}), &known(State::Queued), later(2));
    assert_eq!(phase(&again), RunPhase::Running, "what had begun goes on");

    let answered = plan(&run(|_| {}), &done(Outcome::succeeded("42\n")), later(9));
    assert_eq!(
        answered.status,
        Some(json!({
            "phase": "Succeeded", "podName": "me-1", "result": "42\n",
            "startedAt": "2026-03-26T12:00:01Z", "completedAt": "2026-03-26T12:00:03Z",
            "tokenUsage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "toolCalls": 2, "durationMs": 2000},
        })),
    );
    assert_eq!(conditions(&answered)[2], "Complete=True/Succeeded");

    for (outcome, reason, error) in [
        (Outcome::failed(Cause::Provider, "the model refused: 401"), "ProviderFailed", "the model refused: 401"),
        (Outcome::failed(Cause::Timeout, "timeout after 2s"), "Timeout", "timeout after 2s"),
        (Outcome::failed(Cause::Other, "no end"), "Failed", "no end"),
        (
            Outcome::Cancelled { reason: "the instance me was deleted".into() },
            "Cancelled",
            "cancelled: the instance me was deleted",
        ),
    ] {
        let failed = plan(&run(|_| {}), &done(outcome), later(9));
        assert_eq!((phase(&failed), status(&failed).error.as_deref()), (RunPhase::Failed, Some(error)));
        assert_eq!(conditions(&failed)[2], format!("Complete=False/{reason}"));
    }
}

#[test]
fn who_waits_for_a_turn_is_told_for_which_limit_or_run() {
    let waiting = |going_on: u32| {
        let mut world = World { going_on, ..known(State::Queued) };
        (world.known.as_mut().unwrap().started, world.known.as_mut().unwrap().attempt) = (None, 0);
        world
    };
    let whose = "agents.default.subagents.maxConcurrent";
    let mut ruled = waiting(3);
    ruled.policy = Some(Arc::new(policy("careful", |it| {
        it.spec.subagent_policy = Some(SubagentPolicy { max_depth: 1, max_concurrent: 3 });
    })));
    for (world, message) in [
        (waiting(5), format!("queued: 5 of 5 runs of instance me go on ({whose})")),
        (waiting(4), format!("queued: at most 5 runs of instance me go on at once ({whose})")),
        (ruled, "queued: 3 of 3 runs of instance me go on (subagentPolicy.maxConcurrent of policy careful)".to_owned()),
        (
            World { waits_for: Some("a".into()), ..waiting(1) },
            "queued: a, an earlier run of its session, goes on or is queued".to_owned(),
        ),
        (known(State::Queued), "queued: waits for a runner to go on with it".to_owned()),
    ] {
        assert_eq!(plan(&run(|_| {}), &world, later(2)).conditions[1].message, message);
    }
}

#[test]
fn why_the_model_is_asked_again_is_said_while_it_is() {
    let mut world = known(State::Running);
    world.known.as_mut().unwrap().trouble = Some("the model provider answered 503".into());
    let run = run(|_| {});
    let first = plan(&run, &world, later(2));
    assert_eq!(conditions(&first)[1..], ["Started=True/Running", "Complete=False/Retrying"]);
    assert_eq!(first.conditions[2].message, "the model provider answered 503");
    let told = |plan: &Plan<Effect>| plan.notes.iter().filter(|it| it.reason == "Retrying").count();
    let run = after(run, &first);
    assert_eq!((told(&first), told(&plan(&run, &world, later(3)))), (1, 0), "once");
    let over = plan(&run, &known(State::Running), later(4));
    assert_eq!(conditions(&over)[2], "Complete=False/Running");
}

#[test]
fn an_answer_that_the_provider_cut_is_told_with_a_warning() {
    let cut = Some("the model's answer was cut at its limit of tokens".to_owned());
    let plan = plan(&run(|_| {}), &done(Outcome::Succeeded { answer: "4".into(), cut: cut.clone() }), later(9));
    assert_eq!((phase(&plan), status(&plan).result.as_deref()), (RunPhase::Succeeded, Some("4")));
    assert_eq!(conditions(&plan)[2], "Complete=True/AnswerCut");
    assert_eq!(Some(&plan.conditions[2].message), cut.as_ref());
    let note = &plan.notes[0];
    assert_eq!((note.warning, note.reason, Some(&note.message)), (true, "AnswerCut", cut.as_ref()));
}

#[test]
fn an_answer_larger_than_an_object_is_cut_and_says_so() {
    let answer = "é".repeat(1 << 20);
    let plan = plan(&run(|_| {}), &done(Outcome::succeeded(answer)), later(9));
    assert_eq!(status(&plan).result.unwrap().len(), 1 << 20);
    assert_eq!(
        plan.conditions.last().unwrap().message,
        "status.result has the first 1048576 bytes; 1048576 more are in the run's log",
    );
}

#[test]
fn what_has_ended_is_never_started_again_even_if_the_ledger_forgot_it() {
    for phase in [RunPhase::Succeeded, RunPhase::Failed] {
        let run = run(|it| it.status = Some(AgentRunStatus { phase: Some(phase), ..Default::default() }));
        assert_eq!(plan(&run, &world(), now()), Plan::default());
    }
}

#[test]
fn a_run_in_the_ledger_whose_instance_is_gone_is_cancelled() {
    for state in [State::Queued, State::Running] {
        let world = World { instance: None, ..known(state) };
        let plan = plan(&run(|_| {}), &world, now());
        let reason = "the instance \"me\" was deleted".to_owned();
        assert_eq!(plan.effects, [Effect::Cancel { run: "uid-r".into(), reason }]);
    }
}

#[test]
fn a_deleted_run_is_forgotten_whatever_it_lacks_and_then_let_go() {
    let run = run(|it| it.metadata.deletion_timestamp = Some(Time(now())));
    let plan = plan(&run, &World::default(), now());
    let forget = Effect::Forget { namespace: "default".into(), instance: "me".into(), run: "uid-r".into() };
    assert_eq!(plan.effects, [forget]);
    assert!(plan.release_finalizer && plan.status.is_none());
}

#[test]
fn what_a_run_goes_without_is_said_whichever_state_is_seen_first() {
    let world = world_of(|it| {
        it.spec.skills = Some(vec![SkillRef { skill_pack_ref: Some("k8s-ops".into()), ..Default::default() }]);
        it.spec.mcp_servers = Some(vec![McpServerRef { name: "github".into(), ..Default::default() }]);
    });
    let without = submitted(&plan(&run(|_| {}), &world, now())).job.without.clone();
    let said = "skill \"k8s-ops\" is not served yet: the run goes without it; \
                MCP server \"github\" is not served yet: the run goes without it";
    for state in [State::Queued, State::Running, State::Done(Outcome::succeeded("42"))] {
        // The instance asks for nothing any more: what counts is what was handed over.
        let mut world = known(state.clone());
        world.known.as_mut().unwrap().without = without.clone();
        let told = |plan: &Plan<Effect>| plan.notes.iter().filter(|it| it.reason == "NotSupported").count();
        let fresh = run(|_| {});
        let first = plan(&fresh, &world, now());
        assert_eq!((conditions(&first)[0].as_str(), told(&first)), ("Accepted=True/Accepted", 2), "{state:?}");
        assert_eq!(first.conditions[0].message, said, "{state:?}");
        let mut seen = after(run(|_| {}), &first);
        seen.status.as_mut().unwrap().phase = Some(RunPhase::Pending);
        let second = plan(&seen, &world, now());
        assert_eq!((&second.conditions[0], told(&second)), (&first.conditions[0], 0), "{state:?}: once");
    }
    let many = world_of(|it| it.spec.skills = Some(vec![SkillRef::default(); 1_000]));
    let without = submitted(&plan(&run(|_| {}), &many, now())).job.without.clone();
    assert_eq!(without.len(), 51, "each is an event");
    assert_eq!(without[50], "950 more of what the run asks for are not served yet");
}
