//! One webhook of a configuration.

use std::time::Duration;

use serde_json::Value;

use super::celled::{Conditions, Environment};
use super::post::Target;
use super::rules::Matcher;

pub(super) struct Hook {
    pub(super) name: String,
    pub(super) configuration: String,
    /// Among all webhooks.
    pub(super) id: String,
    pub(super) matcher: Matcher,
    pub(super) conditions: Conditions,
    pub(super) target: Target,
    pub(super) patience: Duration,
    /// What cannot be asked is not asked.
    pub(super) fails_open: bool,
    /// It changes nothing elsewhere when it is told that nothing will be written.
    pub(super) may_run_dry: bool,
    /// It wants to see what others change after it.
    pub(super) again: bool,
    /// It knows `admission.k8s.io/v1`.
    pub(super) speaks: bool,
}

impl Hook {
    pub(super) fn new(configuration: &str, at: usize, of: &Value) -> Self {
        let text = |field: &str| of.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = text("name").to_owned();
        let fails_open = text("failurePolicy") == "Ignore";
        let versions = of.get("admissionReviewVersions").and_then(Value::as_array);
        Self {
            configuration: configuration.to_owned(),
            id: format!("{configuration}/{name}/{at}"),
            matcher: Matcher::new(of),
            conditions: Conditions::new(of, fails_open, &Environment::new(false, false)),
            target: Target::new(of.get("clientConfig").unwrap_or(&Value::Null)),
            patience: Duration::from_secs(of.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10).clamp(1, 30)),
            fails_open,
            may_run_dry: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            again: text("reinvocationPolicy") == "IfNeeded",
            speaks: versions.is_some_and(|it| it.iter().any(|it| it == "v1")),
            name,
        }
    }
}
