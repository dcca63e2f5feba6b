//! What a Job's policies say of its pods.

use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::local::reader::Kind;

/// What becomes of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Count,
    Ignore,
    FailIndex,
    /// With the message of the Job's condition.
    FailJob(String),
}

/// The first rule that fits decides.
pub(super) fn failure(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let status = pod.status.clone().unwrap_or_default();
    for (at, rule) in policy.into_iter().flat_map(|it| it.rules.iter().enumerate()) {
        let why = if let Some(wanted) = &rule.on_exit_codes {
            let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
            let Some((name, code)) = containers.filter_map(|it| exit(it, wanted)).next() else { continue };
            format!("Container {name} for pod {}/{} failed with exit code {code}", pod.namespace(), pod.name())
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let mut conditions = status.conditions.iter().flatten();
            let fits = conditions.find(|it| patterns.iter().any(|p| p.type_ == it.type_ && p.status == it.status));
            let Some(condition) = fits else { continue };
            format!("Pod {}/{} has condition {}", pod.namespace(), pod.name(), condition.type_)
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// The name and the exit code of a container that ended as the rule wants.
fn exit<'a>(it: &'a ContainerStatus, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let code = it.state.as_ref()?.terminated.as_ref()?.exit_code;
    if code == 0 || wanted.container_name.as_ref().is_some_and(|name| *name != it.name) {
        return None;
    }
    let listed = wanted.values.contains(&code);
    let fits = match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    fits.then_some((it.name.as_str(), code))
}

/// The message when enough indexes have succeeded.
pub(super) fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = policy?.rules.iter().position(|rule| match &rule.succeeded_indexes {
        Some(wanted) => {
            let wanted = Indexes::parse(wanted, completions);
            let found = succeeded.in_common(&wanted);
            !wanted.is_empty() && (found == wanted.len() || rule.succeeded_count.is_some_and(|it| found >= it))
        }
        None => rule.succeeded_count.is_some_and(|it| succeeded.len() >= it),
    });
    met.map(|at| format!("Matched rules at index {at}"))
}
