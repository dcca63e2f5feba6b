//! What is decided about a run. Pure.

use std::time::Duration;

use api::agents::{
    AgentRun, AgentRunStatus, MODEL_KEYS, Mode, RunPhase, SympoziumInstance, SympoziumPolicy, TokenUsage,
};
use api::{GoDuration, conditions, reasons};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use ledger::{Job, Outcome, Run, RunId, State, Ticket};
use serde_json::json;

use super::Effect;
use super::job;
use super::look::{Key, Wanted, World, wanted};
use crate::kinds::{self, Class};
use crate::machinery::{Note, Plan, Said, cut, seconds};

/// Unless `spec.timeout` says otherwise. As in the original.
pub(super) const TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of an answer in the status: an object must fit into the API server's store. The run's log has the whole.
const RESULT_LIMIT: usize = 1 << 20;
const ERROR_LIMIT: usize = 16 << 10;
/// Bytes of a condition's message.
const MESSAGE_LIMIT: usize = 1 << 10;

pub(super) fn plan(run: &AgentRun, world: &World, now: Timestamp) -> Plan<Effect> {
    let id = RunId::from(run.uid().unwrap_or_default());
    if run.metadata.deletion_timestamp.is_some() {
        let namespace = run.namespace().unwrap_or_default();
        let forget = Effect::Forget { namespace, instance: run.spec.instance_ref.clone(), run: id };
        return Plan { effects: vec![forget], release_finalizer: true, ..Plan::default() };
    }
    // What has ended stays as it is: it is never started again, even if the ledger knows nothing of it any more.
    if kinds::has_ended(run) {
        return Plan::default();
    }
    let Some(known) = &world.known else { return admit(run, world, now) };
    match &known.state {
        State::Done(outcome) => ended(run, known, outcome, now),
        State::Queued | State::Running if world.instance.is_none() => {
            let reason = format!("the instance {:?} was deleted", run.spec.instance_ref);
            Plan { effects: vec![Effect::Cancel { run: id, reason }], ..Plan::default() }
        }
        State::Queued => queued(run, world, known),
        State::Running => running(run, known),
    }
}

/// Something that keeps a run from being handed over.
struct Lack {
    reason: &'static str,
    what: String,
}

/// A run that nobody was asked to do yet.
fn admit(run: &AgentRun, world: &World, now: Timestamp) -> Plan<Effect> {
    let timeout = match timeout(run) {
        Ok(timeout) => timeout,
        Err(why) => return refused(reasons::INVALID, why, now),
    };
    if run.spec.task.trim().is_empty() {
        return refused(reasons::INVALID, "spec.task is empty: there is nothing to do".to_owned(), now);
    }
    let lacks = match (&world.instance, run.spec.mode) {
        (_, Mode::Server) => {
            vec![Lack { reason: reasons::NOT_SUPPORTED, what: "mode server is not served yet".to_owned() }]
        }
        (None, Mode::Task) => vec![Lack {
            reason: reasons::INSTANCE_MISSING,
            what: format!("SympoziumInstance {:?} not found", run.spec.instance_ref),
        }],
        (Some(instance), Mode::Task) => {
            let wanted = wanted(run, instance, world.policy.as_deref());
            if let Some(why) = denied(run, instance, world.policy.as_deref(), &wanted) {
                return refused(reasons::DENIED, why, now);
            }
            let lacks = lacks(run, instance, world, &wanted);
            if lacks.is_empty() && world.waits_for.is_none() {
                let ticket = ticket(run, instance, world, wanted, timeout);
                return Plan { effects: vec![Effect::Submit(Box::new(ticket))], ..Plan::default() };
            }
            lacks
        }
    };
    let Some(first) = lacks.first() else {
        let before = world.waits_for.clone().unwrap_or_default();
        let message = format!("waits for {before}, an earlier run of its session");
        return waiting(Said::no(conditions::ACCEPTED, reasons::QUEUED, message));
    };
    let all = lacks.iter().map(|lack| lack.what.as_str()).collect::<Vec<_>>().join("; ");
    let created = run.creation_timestamp().map_or(now, |at| at.0);
    let left = created.checked_add(timeout).unwrap_or(Timestamp::MAX).duration_since(now);
    let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) else {
        let why = format!("timeout: not started within {}, since {all}", spelled(timeout));
        return refused(reasons::TIMEOUT, why, now);
    };
    let told = message_of(run, conditions::ACCEPTED);
    let notes = lacks
        .iter()
        .filter(|lack| !told.contains(&lack.what))
        .map(|lack| Note::warning(lack.reason, lack.what.clone()))
        .collect();
    let plan = waiting(Said::no(conditions::ACCEPTED, first.reason, all));
    Plan { notes, wake_in: Some(left), ..plan }
}

/// Everything that is not there yet and may come.
fn lacks(run: &AgentRun, instance: &SympoziumInstance, world: &World, wanted: &Wanted) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut lack = |reason, what: String| lacks.push(Lack { reason, what });
    let policy = instance.spec.policy_ref.as_deref().filter(|name| !name.is_empty());
    if let (Some(name), None) = (policy, &world.policy) {
        lack(reasons::POLICY_MISSING, format!("SympoziumPolicy {name:?} not found"));
    }
    match &wanted.secret {
        Some(name) if world.secret == Key::NoSecret => {
            lack(reasons::SECRET_MISSING, format!("Secret {name:?} not found"));
        }
        Some(name) if world.secret == Key::Unnamed => lack(
            reasons::SECRET_MISSING,
            format!("Secret {name:?} has no key: it needs one of {}", MODEL_KEYS.join(", ")),
        ),
        None if job::base_url(run, instance).is_empty() => lack(
            reasons::SECRET_MISSING,
            "no Secret with the model's key is named: set spec.model.authSecretRef, or authRefs of the instance"
                .to_owned(),
        ),
        _ => {}
    }
    if let Some((reason, what)) = wanted.class.as_deref().and_then(|name| world.class.lack(name)) {
        lack(reason, what);
    }
    for (reason, what) in job::unfit(run, instance, world.policy.as_deref()) {
        lack(reason, what);
    }
    let isolated = run.spec.agent_sandbox.as_ref().filter(|it| it.enabled);
    if let Some(pool) = isolated.and_then(|it| it.warm_pool_ref.as_deref()).filter(|name| !name.is_empty()) {
        lack(
            reasons::WARM_POOL_MISSING,
            format!(
                "agentSandbox.warmPoolRef: there is no warm pool {pool:?}; the platform keeps sandboxes warm by itself"
            ),
        );
    }
    if limit(instance, world.policy.as_deref()).0 == 0 {
        lack(
            reasons::INVALID,
            "maxConcurrent of the instance or its policy is less than 1: no run may start".to_owned(),
        );
    }
    lacks
}

/// Why the run may never go, whatever comes.
fn denied(
    run: &AgentRun,
    instance: &SympoziumInstance,
    policy: Option<&SympoziumPolicy>,
    wanted: &Wanted,
) -> Option<String> {
    let depth = run.spec.parent.as_ref().map_or(0, |parent| parent.spawn_depth);
    let rules = policy.and_then(|policy| policy.spec.subagent_policy.as_ref());
    let own = instance.spec.agents.default.subagents.clone().unwrap_or_default().max_depth;
    let most = rules.map_or(own, |rules| rules.max_depth.min(own));
    if depth > most {
        return Some(format!("spec.parent.spawnDepth is {depth}, and maxDepth is {most}"));
    }
    let policy = policy?;
    job::denied(run, instance, policy, wanted.class.as_deref())
}

/// How many runs of the instance may go on at once, and where that is written.
fn limit(instance: &SympoziumInstance, policy: Option<&SympoziumPolicy>) -> (u32, String) {
    let own = instance.spec.agents.default.subagents.clone().unwrap_or_default().max_concurrent;
    let rules = policy.and_then(|policy| Some((policy.name_any(), policy.spec.subagent_policy.as_ref()?)));
    let (limit, whose) = match rules {
        Some((policy, rules)) if rules.max_concurrent < own => {
            (rules.max_concurrent, format!("subagentPolicy.maxConcurrent of policy {policy}"))
        }
        _ => (own, "agents.default.subagents.maxConcurrent".to_owned()),
    };
    (u32::try_from(limit.max(0)).unwrap_or(u32::MAX), whose)
}

fn timeout(run: &AgentRun) -> Result<Duration, String> {
    match run.spec.timeout.as_deref().filter(|text| !text.is_empty()).map(str::parse::<GoDuration>) {
        None => Ok(TIMEOUT),
        Some(Ok(GoDuration(timeout))) if timeout.is_zero() => Err("spec.timeout must be more than 0".to_owned()),
        Some(Ok(GoDuration(timeout))) => Ok(timeout),
        Some(Err(why)) => Err(format!("spec.timeout: {why}")),
    }
}

fn ticket(run: &AgentRun, instance: &SympoziumInstance, world: &World, wanted: Wanted, timeout: Duration) -> Ticket {
    let policy = world.policy.as_deref();
    let (limit, _) = limit(instance, policy);
    let handler = match &world.class {
        Class::There { handler } => wanted.class.is_some().then(|| handler.clone()),
        // Nobody has a handler of that name: never something weaker.
        Class::Missing | Class::NoHandler(_) => wanted.class,
    };
    let job: Job = job::job(run, instance, policy, wanted.secret, handler, world.memory.as_deref());
    Ticket {
        run: RunId::from(run.uid().unwrap_or_default()),
        namespace: run.namespace().unwrap_or_default(),
        name: run.name_any(),
        instance: run.spec.instance_ref.clone(),
        session: run.spec.session_key.clone(),
        created: run.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |at| at.0),
        limit,
        timeout,
        job,
    }
}

/// Not handed over.
fn waiting(accepted: Said) -> Plan<Effect> {
    let started = Said::no(conditions::STARTED, accepted.reason, "");
    let complete = Said::no(conditions::COMPLETE, accepted.reason, "");
    status(RunPhase::Pending, AgentRunStatus::default(), vec![accepted, started, complete])
}

/// A run was accepted when it was handed over. What it goes without is the ledger's word of then, whichever state the
/// controller sees first and whatever becomes of the instance.
fn accepted(run: &AgentRun, known: &Run) -> (Said, Vec<Note>) {
    let told = message_of(run, conditions::ACCEPTED);
    let news = known.without.iter().filter(|what| !told.contains(*what));
    let notes = news.map(|what| Note::warning(reasons::NOT_SUPPORTED, what.clone())).collect();
    (Said::yes(conditions::ACCEPTED, reasons::ACCEPTED, known.without.join("; ")), notes)
}

fn queued(run: &AgentRun, world: &World, known: &Run) -> Plan<Effect> {
    let message = turn(run, world, known);
    let (accepted, notes) = accepted(run, known);
    let started = match known.started {
        None => Said::no(conditions::STARTED, reasons::QUEUED, message),
        Some(_) => Said::yes(conditions::STARTED, reasons::QUEUED, message),
    };
    let complete = Said::no(conditions::COMPLETE, reasons::QUEUED, "");
    // A run that had begun stays Running for people: it goes on from its log.
    let phase = if known.started.is_some() { RunPhase::Running } else { RunPhase::Pending };
    let seen = seen(known);
    let mut plan = status(phase, seen, vec![accepted, started, complete]);
    plan.notes = notes;
    // The limit may have changed since; submitting again tells the ledger so, and nothing else.
    let policy = world.policy.as_deref();
    if let (Some(instance), Ok(timeout)) = (world.instance.as_deref(), timeout(run))
        && limit(instance, policy).0 > 0
    {
        let ticket = ticket(run, instance, world, wanted(run, instance, policy), timeout);
        plan.effects.push(Effect::Submit(Box::new(ticket)));
    }
    plan
}

/// What a queued run waits for, as far as can be said.
fn turn(run: &AgentRun, world: &World, known: &Run) -> String {
    if let Some(before) = &world.waits_for {
        return format!("queued: {before}, an earlier run of its session, goes on or is queued");
    }
    let Some(instance) = world.instance.as_deref() else { return "queued".to_owned() };
    let (limit, whose) = limit(instance, world.policy.as_deref());
    let name = &run.spec.instance_ref;
    if world.going_on >= limit {
        format!("queued: {} of {limit} runs of instance {name} go on ({whose})", world.going_on)
    } else if known.attempt == 0 {
        format!("queued: at most {limit} runs of instance {name} go on at once ({whose})")
    } else {
        "queued: waits for a runner to go on with it".to_owned()
    }
}

fn running(run: &AgentRun, known: &Run) -> Plan<Effect> {
    let message = if known.attempt > 1 { format!("attempt {}", known.attempt) } else { String::new() };
    let seen = seen(known);
    let complete = match &known.trouble {
        None => Said::no(conditions::COMPLETE, reasons::RUNNING, ""),
        Some(why) => Said::no(conditions::COMPLETE, reasons::RETRYING, why.clone()),
    };
    let told = message_of(run, conditions::COMPLETE);
    let retried =
        known.trouble.iter().filter(|why| *why != told).map(|why| Note::warning(reasons::RETRYING, why.clone()));
    let (accepted, mut notes) = accepted(run, known);
    notes.extend(retried);
    let conditions = vec![accepted, Said::yes(conditions::STARTED, reasons::RUNNING, message), complete];
    let mut plan = status(RunPhase::Running, seen, conditions);
    plan.notes = notes;
    if kinds::phase(run) != Some(RunPhase::Running) {
        plan.notes.push(Note::normal(reasons::RUNNING, "The model is at work"));
    }
    plan
}

fn ended(run: &AgentRun, known: &Run, outcome: &Outcome, now: Timestamp) -> Plan<Effect> {
    let used = known.usage;
    let count = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    let duration = known.duration().unwrap_or_default().as_millis();
    let mut seen = AgentRunStatus {
        completed_at: at(known.finished.or(Some(now))),
        token_usage: known.started.map(|_| TokenUsage {
            input_tokens: count(used.tokens.input),
            output_tokens: count(used.tokens.output),
            total_tokens: count(used.tokens.total),
            tool_calls: count(used.tool_calls),
            duration_ms: i64::try_from(duration).unwrap_or(i64::MAX),
        }),
        ..seen(known)
    };
    let (complete, note, phase) = match outcome {
        Outcome::Succeeded { answer, cut: why } => {
            let (answer, left) = cut(answer, RESULT_LIMIT);
            seen.result = Some(answer.to_owned());
            let more = (left > 0).then(|| {
                format!("status.result has the first {} bytes; {left} more are in the run's log", answer.len())
            });
            let message: Vec<_> = why.iter().chain(&more).map(String::as_str).collect();
            let note = match why {
                None => {
                    let told = format!("Answered after {}", spelled(known.duration().unwrap_or_default()));
                    Note::normal(outcome.reason(), told)
                }
                Some(why) => Note::warning(outcome.reason(), why.clone()),
            };
            (Said::yes(conditions::COMPLETE, outcome.reason(), message.join("; ")), note, RunPhase::Succeeded)
        }
        Outcome::Failed { error, .. } => failure(&mut seen, outcome.reason(), error),
        Outcome::Cancelled { reason } => failure(&mut seen, outcome.reason(), &format!("cancelled: {reason}")),
    };
    let started = match known.started {
        Some(_) => Said::yes(conditions::STARTED, complete.reason, ""),
        None => Said::no(conditions::STARTED, complete.reason, ""),
    };
    let (accepted, mut notes) = accepted(run, known);
    notes.push(note);
    let plan = status(phase, seen, vec![accepted, started, complete]);
    Plan { notes, ..plan }
}

fn failure(seen: &mut AgentRunStatus, reason: &'static str, error: &str) -> (Said, Note, RunPhase) {
    let (error, _) = cut(error, ERROR_LIMIT);
    seen.error = Some(error.to_owned());
    let (message, _) = cut(error, MESSAGE_LIMIT);
    (Said::no(conditions::COMPLETE, reason, message), Note::warning(reason, message), RunPhase::Failed)
}

/// Ends a run that never began.
fn refused(reason: &'static str, why: String, now: Timestamp) -> Plan<Effect> {
    let mut seen = AgentRunStatus { completed_at: at(Some(now)), ..AgentRunStatus::default() };
    let (complete, note, phase) = failure(&mut seen, reason, &why);
    let accepted = Said::no(conditions::ACCEPTED, reason, complete.message.clone());
    let started = Said::no(conditions::STARTED, reason, "");
    let plan = status(phase, seen, vec![accepted, started, complete]);
    Plan { notes: vec![note], ..plan }
}

fn status(phase: RunPhase, status: AgentRunStatus, conditions: Vec<Said>) -> Plan<Effect> {
    let status = AgentRunStatus { phase: Some(phase), ..status };
    Plan { status: Some(json!(status)), conditions, ..Plan::default() }
}

fn message_of<'a>(run: &'a AgentRun, type_: &str) -> &'a str {
    let said = run.status.iter().flat_map(|status| status.conditions.iter().flatten());
    said.into_iter().find(|it| it.type_ == type_).map_or("", |it| it.message.as_str())
}

/// What the ledger knows of a run at every stage.
fn seen(known: &Run) -> AgentRunStatus {
    AgentRunStatus { pod_name: known.pod.clone(), started_at: at(known.started), ..AgentRunStatus::default() }
}

fn at(time: Option<Timestamp>) -> Option<Time> {
    time.map(|time| Time(seconds(time)))
}

/// As Go writes durations, to the millisecond: 1h30m0s is spelled 1h30m.
fn spelled(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    let mut text = String::new();
    for (count, unit) in [(minutes / 60, "h"), (minutes % 60, "m")] {
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    match time.subsec_millis() {
        0 if seconds == 0 && !text.is_empty() => {}
        0 => text.push_str(&format!("{seconds}s")),
        millis if time.as_secs() == 0 => text.push_str(&format!("{millis}ms")),
        millis => {
            let fraction = format!("{millis:03}");
            text.push_str(&format!("{seconds}.{}s", fraction.trim_end_matches('0')));
        }
    }
    text
}
