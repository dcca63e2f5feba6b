//! The options of a request: `metav1.CreateOptions` and its kin, from the query (and for a delete from the body).

use serde_json::{Map, Value, json};

use super::url::Query;
use crate::object::FieldError;
use crate::object::meta::validate_field_manager;
use crate::object::status::{Problem, What};

/// What to do with fields that the type does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// How a write is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) dry_run: bool,
    /// Who owns the fields.
    pub(crate) manager: String,
    pub(crate) validation: FieldValidation,
    /// Apply takes over what others own.
    pub(crate) force: bool,
    /// `fieldManager` and `fieldValidation` as far as the client named them: webhooks are told that, and no defaults.
    pub(crate) said: Map<String, Value>,
}

impl Write {
    /// `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`; `apply` whether this is an apply patch.
    pub(crate) fn of(query: Query<'_>, user_agent: &str, kind: &str, apply: bool) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let force = match query.get("force") {
            Some(_) if !apply => {
                if kind == "PatchOptions" {
                    errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
                }
                false
            }
            Some(_) => query.flag("force"),
            None => false,
        };
        let manager = query.get("fieldManager").unwrap_or_default();
        if apply && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        errors.extend(validate_field_manager(&manager, "fieldManager"));
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation").as_deref() {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", &other.into(), &known));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Problem::invalid(What::new("meta.k8s.io", kind), "", &errors));
        }
        let said = ["fieldManager", "fieldValidation"].into_iter();
        let said = said.filter_map(|name| Some((name.to_owned(), json!(query.get(name).filter(|it| !it.is_empty())?))));
        let said = said.collect();
        let manager = if manager.is_empty() { manager_of(user_agent) } else { manager };
        Ok(Self { dry_run, manager, validation, force, said })
    }
}

/// The part of a user agent before its slash: `kubectl/v1.32.0 (...)` is `kubectl`.
fn manager_of(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let printable: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    if printable.is_empty() { "unknown".to_owned() } else { printable }
}

fn dry_run(values: impl Iterator<Item = String>, errors: &mut Vec<FieldError>) -> bool {
    let all: Vec<String> = values.collect();
    if all.iter().any(|value| value != "All") {
        errors.push(FieldError::not_supported("dryRun", &all.iter().map(|it| json!(it)).collect(), &["All"]));
    }
    !all.is_empty()
}

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delete {
    pub(crate) dry_run: bool,
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) orphan: Option<bool>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl Delete {
    /// From the body when there is one, from the query otherwise.
    pub(crate) fn of(query: Query<'_>, body: Option<&Value>) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let mut it = Self::default();
        let policy;
        match body {
            Some(body) => {
                let kind = body.get("kind").and_then(Value::as_str).unwrap_or("DeleteOptions");
                if kind != "DeleteOptions" {
                    return Err(Problem::bad_request(format!(
                        "the object provided is unrecognized (must be of type DeleteOptions): {kind}"
                    )));
                }
                let dry = body.get("dryRun").and_then(Value::as_array).into_iter().flatten();
                it.dry_run = dry_run(dry.map(|it| it.as_str().unwrap_or_default().to_owned()), &mut errors);
                it.grace = body.get("gracePeriodSeconds").and_then(Value::as_i64);
                it.orphan = body.get("orphanDependents").and_then(Value::as_bool);
                policy = body.get("propagationPolicy").and_then(Value::as_str).map(str::to_owned);
                let said = |key: &str| {
                    body.pointer(&format!("/preconditions/{key}")).and_then(Value::as_str).map(str::to_owned)
                };
                it.uid = said("uid");
                it.resource_version = said("resourceVersion");
            }
            None => {
                it.dry_run = dry_run(query.all("dryRun"), &mut errors);
                if let Some(grace) = query.get("gracePeriodSeconds") {
                    it.grace = Some(number(&grace)?);
                }
                it.orphan = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
                policy = query.get("propagationPolicy");
            }
        }
        it.propagation = match policy.as_deref() {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported("propagationPolicy", &other.into(), &known));
                None
            }
        };
        if it.orphan.is_some() && policy.is_some() {
            let both = Value::String(policy.unwrap_or_default());
            errors.push(FieldError::invalid(
                "propagationPolicy",
                &both,
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if errors.is_empty() {
            Ok(it)
        } else {
            Err(Problem::invalid(What::new("meta.k8s.io", "DeleteOptions"), "", &errors))
        }
    }
}

pub(crate) fn number(text: &str) -> Result<i64, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

/// How exact a list's resource version is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    NotOlderThan,
    Exact,
}

/// `metav1.ListOptions`, for lists and watches.
#[derive(Clone, Debug, Default)]
pub(crate) struct List {
    pub(crate) labels: String,
    pub(crate) fields: String,
    pub(crate) limit: Option<usize>,
    pub(crate) token: Option<String>,
    /// Absent, or a revision (0: whatever there is).
    pub(crate) revision: Option<u64>,
    pub(crate) matching: Option<Match>,
    pub(crate) timeout: Option<u64>,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: Option<bool>,
}

impl List {
    pub(crate) fn of(query: Query<'_>, watch: bool) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let revision = match query.get("resourceVersion") {
            None => None,
            Some(text) => Some(text.parse::<u64>().map_err(|_| {
                let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
                let why = FieldError::invalid_str("resourceVersion", &text, &why);
                match watch {
                    true => Problem::unexplained(why.to_string()),
                    false => Problem::bad_request(format!("invalid resource version: {why}")),
                }
            })?),
        };
        let limit = match query.get("limit") {
            None => None,
            Some(text) => usize::try_from(number(&text)?).ok().filter(|it| *it > 0),
        };
        let timeout = match query.get("timeoutSeconds") {
            None => None,
            Some(text) => u64::try_from(number(&text)?).ok(),
        };
        let initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let token = query.get("continue");
        let matching = match query.get("resourceVersionMatch").as_deref() {
            None => None,
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some("Exact") => Some(Match::Exact),
            Some(other) => {
                let known = ["Exact", "NotOlderThan", ""];
                errors.push(FieldError::not_supported("resourceVersionMatch", &other.into(), &known));
                None
            }
        };
        let path = "resourceVersionMatch";
        if watch {
            match (initial_events, matching) {
                (None, Some(_)) => {
                    errors.push(FieldError::forbidden(
                        path,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    ));
                }
                (Some(_), None) => {
                    errors.push(FieldError::forbidden(
                        path,
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    ));
                }
                (Some(_), Some(Match::Exact)) => {
                    errors.push(FieldError::forbidden(
                        path,
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    ));
                    errors.push(FieldError::not_supported(path, &json!("Exact"), &["NotOlderThan"]));
                }
                _ => {}
            }
        } else {
            if initial_events.is_some() {
                errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
            if matching.is_some() {
                if revision.is_none() {
                    errors.push(FieldError::forbidden(
                        path,
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    ));
                }
                if token.is_some() {
                    errors.push(FieldError::forbidden(
                        path,
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
                if matching == Some(Match::Exact) && revision == Some(0) {
                    errors.push(FieldError::forbidden(
                        path,
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                    ));
                }
            }
        }
        if !errors.is_empty() {
            return Err(Problem::invalid(What::new("meta.k8s.io", "ListOptions"), "", &errors));
        }
        Ok(Self {
            labels: query.get("labelSelector").unwrap_or_default(),
            fields: query.get("fieldSelector").unwrap_or_default(),
            limit,
            token,
            revision,
            matching,
            timeout,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
        })
    }
}
