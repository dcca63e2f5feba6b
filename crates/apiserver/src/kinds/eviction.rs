//! `pods/eviction`: a deletion that PodDisruptionBudgets may refuse, as `pkg/registry/core/pod/storage/eviction.go` of
//! upstream decides it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::subresources::{body, set_condition};
use crate::access::User;
use crate::http::FieldValidation;
use crate::http::resource::Asked;
use crate::object::selector::Labels;
use crate::object::status::{Details, Problem, StatusCause, What};
use crate::store::Entry;
use crate::verbs::scale::selector_text;
use crate::verbs::{Call, DeleteOptions, WriteOptions, delete, meta, update};

/// How often a decision that came too late is made again.
const ATTEMPTS: usize = 20;
/// Who writes what a budget has left.
const SERVER: &str = "kube-apiserver";
/// Evictions that a budget's status names and that have not come about, at most.
const PENDING_MAX: usize = 2000;

pub(super) async fn evict(call: &mut Call, asked: &Asked<'_>) -> Result<(), Problem> {
    let eviction = body(asked, "Eviction")?;
    if meta::name(&eviction) != call.name {
        return Err(Problem::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    let mut options = DeleteOptions::of(asked.query, Some(&options))?;
    options.dry_run |= asked.query.has("dryRun");
    let writing = WriteOptions::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let named = options.resource_version.is_some();
    for _ in 0..ATTEMPTS {
        let Some(pod) = unguarded(call)? else { break };
        let over = is_over(&pod) || meta::is_being_deleted(&pod);
        let revision = (!over).then(|| meta::text(&pod, "resourceVersion").to_owned());
        let exact =
            DeleteOptions { resource_version: options.resource_version.clone().or(revision), ..options.clone() };
        match remove(call, &writing, exact).await {
            Err(problem) if problem.reason == "Conflict" && !named => {}
            done => return done,
        }
    }
    let pod = get(call)?;
    let budgets = budgets(call, &pod);
    let [budget] = budgets.as_slice() else {
        if budgets.is_empty() {
            return remove(call, &writing, options).await;
        }
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Problem::unexplained(why));
    };
    if is_spare(&pod, &budget.value()) {
        let revision = Some(meta::text(&pod, "resourceVersion").to_owned());
        let exact = DeleteOptions { resource_version: options.resource_version.clone().or(revision), ..options };
        return match remove(call, &writing, exact).await {
            Err(problem) if problem.reason == "Conflict" && !named => Err(unsettled(&budget.key.name)),
            done => done,
        };
    }
    spend(call, budget, options.dry_run).await?;
    remove(call, &writing, options).await
}

fn get(call: &Call) -> Result<Value, Problem> {
    let key = call.resource.key(&call.namespace, &call.name);
    Ok(call.core.store.get(&key).ok_or_else(|| call.not_found(&call.name))?.value())
}

fn phase(pod: &Value) -> &str {
    pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
}

fn is_over(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The pod, if no budget guards one in its state.
fn unguarded(call: &Call) -> Result<Option<Value>, Problem> {
    let pod = get(call)?;
    let is = is_over(&pod) || phase(&pod) == "Pending" || meta::is_being_deleted(&pod);
    Ok(is.then_some(pod))
}

fn budgets(call: &Call, pod: &Value) -> Vec<Arc<Entry>> {
    let all = call.core.store.list("policy", "poddisruptionbudgets", Some(&call.namespace), None, None).entries;
    let selects = |budget: &Arc<Entry>| {
        let budget = budget.value();
        let selector = budget.pointer("/spec/selector").map(|it| Labels::parse(&selector_text(it)));
        matches!(selector, Some(Ok(it)) if it.matches(|key| meta::keyed(pod, "labels", key)))
    };
    all.into_iter().filter(selects).collect()
}

/// Whether the pod is none of those that the budget counts, and may go without being counted.
fn is_spare(pod: &Value, budget: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().find(|it| it.get("type").is_some_and(|it| it == "Ready"));
    if ready.is_some_and(|it| it.get("status").is_some_and(|it| it == "True")) {
        return false;
    }
    if budget.pointer("/spec/unhealthyPodEvictionPolicy").is_some_and(|it| it == "AlwaysAllow") {
        return true;
    }
    let (healthy, wanted) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    healthy >= wanted && wanted > 0
}

fn number(budget: &Value, field: &str) -> i64 {
    budget.get("status").and_then(|it| it.get(field)?.as_i64()).unwrap_or_default()
}

/// Takes one disruption off what the budget allows.
async fn spend(call: &Call, budget: &Entry, dry_run: bool) -> Result<(), Problem> {
    let resource = call.core.registry.now().find("policy", "v1", "poddisruptionbudgets").cloned();
    let mut of = Call {
        core: call.core.clone(),
        resource: resource.ok_or_else(Problem::no_such_path)?,
        user: User::admin(),
        namespace: call.namespace.clone(),
        name: budget.key.name.to_string(),
        subresource: "status".to_owned(),
        warnings: Vec::new(),
        annotations: Default::default(),
    };
    let options = WriteOptions {
        dry_run,
        manager: SERVER.to_owned(),
        validation: FieldValidation::Ignore,
        force: false,
        said: Default::default(),
    };
    let now = call.core.now();
    for _ in 0..ATTEMPTS {
        let key = of.resource.key(&of.namespace, &of.name);
        let mut budget = of.core.store.get(&key).ok_or_else(|| of.not_found(&of.name))?.value();
        let left = allowed(&budget)? - 1;
        let status = meta::map(meta::map(&mut budget).entry("status").or_insert_with(|| json!({})));
        status.insert("disruptionsAllowed".into(), json!(left));
        meta::map(status.entry("disruptedPods").or_insert_with(|| json!({}))).insert(call.name.clone(), json!(now));
        if left == 0 {
            crate::local::budgets::settle_condition(status, &now);
        }
        match update::update(&mut of, budget, &options).await {
            Err(problem) if problem.reason == "Conflict" => {}
            done => return done.map(drop),
        }
    }
    let why = format!("couldn't update PodDisruptionBudget {:?} due to conflicts", budget.key.name);
    Err(Problem::timeout(&why, 10))
}

/// How many disruptions a budget allows now: at least one.
fn allowed(budget: &Value) -> Result<i64, Problem> {
    let name = meta::name(budget);
    if number(budget, "observedGeneration") < meta::generation(budget) {
        return Err(unsettled(name));
    }
    let forbidden = |why| Problem::forbidden(What::new("policy", "poddisruptionbudget"), name, why);
    let pending = budget.pointer("/status/disruptedPods").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    match number(budget, "disruptionsAllowed") {
        ..0 => Err(forbidden("pdb disruptions allowed is negative")),
        _ if pending > PENDING_MAX => {
            Err(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
        }
        0 => {
            let (wanted, healthy) = (number(budget, "desiredHealthy"), number(budget, "currentHealthy"));
            let why = format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently");
            Err(violated(why, 0))
        }
        allowed => Ok(allowed),
    }
}

fn unsettled(budget: &str) -> Problem {
    violated(format!("The disruption budget {budget} is still being processed by the server."), 10)
}

fn violated(why: String, retry_after_seconds: u32) -> Problem {
    let cause = StatusCause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    Problem {
        message: "Cannot evict pod as it would violate the pod's disruption budget.".into(),
        details: Some(Box::new(Details { causes: vec![cause], retry_after_seconds, ..Details::default() })),
        ..Problem::too_many_requests()
    }
}

/// Has the pod say why it goes, and deletes it.
async fn remove(call: &mut Call, writing: &WriteOptions, mut options: DeleteOptions) -> Result<(), Problem> {
    if !options.dry_run {
        let now = call.core.now();
        let written = update::guaranteed(call, writing, false, |call, current| {
            let mut pod = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
            let told = |what, wanted: &str, is: &str| {
                let more = if what == "UID" { "deleted and then recreated" } else { "modified" };
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). The object might have been {more}"
                );
                Problem::conflict(What::new("", "Pod"), &call.name, &why)
            };
            let (uid, revision) = (meta::uid(&pod), meta::text(&pod, "resourceVersion"));
            if let Some(wanted) = options.uid.as_deref().filter(|it| *it != uid) {
                return Err(told("UID", wanted, uid));
            }
            if let Some(wanted) = options.resource_version.as_deref().filter(|it| *it != revision) {
                return Err(told("ResourceVersion", wanted, revision));
            }
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"});
            set_condition(&mut pod, condition, &now);
            Ok(pod)
        })
        .await?;
        if options.resource_version.is_some() {
            let pod = written.object.served(&call.resource);
            options.resource_version = Some(meta::text(&pod, "resourceVersion").to_owned());
        }
    }
    delete::delete(call, &options).await.map(drop)
}
