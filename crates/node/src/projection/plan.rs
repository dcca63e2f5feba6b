//! What is to be done about one Pod. Pure.

use api::labels;
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde_json::Value;
use wire::node::{Phase, Sandbox};

/// Where a Pod is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// Of the Pod that a sandbox is to be seen as: when it is somebody's, and says where.
    pub(super) fn of_sandbox(it: &Sandbox) -> Option<Self> {
        let label = |name| it.labels.get(name).filter(|value| !value.is_empty()).cloned();
        Some(Self { namespace: label(labels::POD_NAMESPACE)?, name: label(labels::POD)? }).filter(|_| it.bound)
    }

    pub(super) fn of_pod(it: &DynamicObject) -> Option<Self> {
        Some(Self { namespace: it.metadata.namespace.clone()?, name: it.metadata.name.clone()? })
    }
}

/// A Pod on our Node, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub uid: String,
    pub created: Option<Timestamp>,
    /// The sandbox that it shows; `None`: it is not ours.
    pub sandbox: Option<String>,
    pub deleting: bool,
    /// What its status says, and since when.
    pub told: Option<(State, Option<Timestamp>)>,
}

/// What there is to say of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Frozen,
}

impl State {
    pub(super) const FROZEN: &str = "Frozen";

    pub(super) fn of(it: &Sandbox) -> Self {
        if it.phase == Phase::Frozen { Self::Frozen } else { Self::Ready }
    }
}

impl Seen {
    pub(super) fn of(it: &DynamicObject) -> Self {
        let meta = &it.metadata;
        let marked = meta.labels.as_ref().is_some_and(|all| all.get(labels::PROJECTED).is_some_and(|it| it == "true"));
        let id = meta.annotations.as_ref().and_then(|all| all.get(labels::SANDBOX));
        let text = |it: &Value, name: &str| it.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let status = it.data.get("status").filter(|status| text(status, "phase") == "Running");
        let conditions = status.and_then(|status| status.get("conditions")?.as_array());
        let ready = conditions.and_then(|all| all.iter().find(|it| text(it, "type") == "Ready"));
        let told = ready.and_then(|ready| {
            let state = match (text(ready, "status").as_str(), text(ready, "reason").as_str()) {
                ("True", _) => State::Ready,
                (_, State::FROZEN) => State::Frozen,
                _ => return None,
            };
            Some((state, text(ready, "lastTransitionTime").parse().ok()))
        });
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|it| it.0),
            sandbox: id.filter(|_| marked).cloned(),
            deleting: meta.deletion_timestamp.is_some(),
            told,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Makes the sandbox's Pod; refused where another one has the name.
    Create,
    /// Writes how the sandbox is into its Pod's status.
    Tell,
    /// Ends the sandbox.
    End,
    /// Removes the Pod with this uid at once.
    Remove { uid: String },
}

/// `shown`: this sandbox's Pod was there before.
pub(super) fn plan(sandbox: Option<&Sandbox>, pod: Option<&Seen>, shown: bool) -> Option<Action> {
    let ours = pod.and_then(|pod| Some((pod, pod.sandbox.as_deref()?)));
    let Some(sandbox) = sandbox else {
        return ours.map(|(pod, _)| Action::Remove { uid: pod.uid.clone() });
    };
    if !matches!(sandbox.phase, Phase::Running | Phase::Frozen) {
        // On its way: what is next to be said is that it has come, or gone.
        return None;
    }
    match ours {
        Some((pod, id)) if id != sandbox.id => Some(Action::Remove { uid: pod.uid.clone() }),
        Some((pod, _)) if pod.deleting => Some(Action::End),
        Some((pod, _)) if pod.told.is_none_or(|(told, _)| told != State::of(sandbox)) => Some(Action::Tell),
        Some(_) => None,
        None if shown && pod.is_none() => Some(Action::End),
        None => Some(Action::Create),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn sandbox(phase: Phase) -> Sandbox {
        Sandbox {
            id: "one".into(),
            phase,
            bound: true,
            labels: BTreeMap::from([
                (labels::POD_NAMESPACE.into(), "default".into()),
                (labels::POD.into(), "me-one".into()),
            ]),
            limits: wire::node::Limits::default(),
            hostname: "me-one".into(),
            workspace: None,
            created: "2026-03-26T12:00:00.5Z".into(),
            adopted: false,
            exit: None,
        }
    }

    /// The Pod of sandbox `one`, changed as said (RFC 7386).
    fn pod(status: Value, metadata: Value) -> Seen {
        let mut it = json!({
            "uid": "u", "name": "me-one", "namespace": "default",
            "labels": {labels::PROJECTED: "true"}, "annotations": {labels::SANDBOX: "one"},
        });
        for (key, value) in metadata.as_object().unwrap() {
            it[key] = value.clone();
        }
        Seen::of(&serde_json::from_value(json!({"metadata": it, "status": status})).unwrap())
    }

    fn ready() -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    }

    fn frozen() -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "reason": "Frozen"}]})
    }

    #[test]
    fn what_is_done_about_a_pod() {
        use Phase::{Ending, Frozen, Running};
        let plain = |status| Some(pod(status, json!({})));
        let deleting = || Some(pod(ready(), json!({"deletionTimestamp": "2026-03-26T12:00:00Z"})));
        let others = || Some(pod(ready(), json!({"labels": {}})));
        let of_another = || Some(pod(ready(), json!({"annotations": {labels::SANDBOX: "two"}})));
        let remove = || Some(Action::Remove { uid: "u".into() });
        let table = [
            ("a new one is shown", Some(Running), None, false, Some(Action::Create)),
            ("a new one tells how it is", Some(Running), plain(json!({"phase": "Pending"})), true, Some(Action::Tell)),
            ("all is said", Some(Running), plain(ready()), true, None),
            ("it froze", Some(Frozen), plain(ready()), true, Some(Action::Tell)),
            ("that is said", Some(Frozen), plain(frozen()), true, None),
            ("it goes on", Some(Running), plain(frozen()), true, Some(Action::Tell)),
            ("the Pod is deleted", Some(Running), deleting(), true, Some(Action::End)),
            ("and was, before we looked", Some(Frozen), deleting(), false, Some(Action::End)),
            ("the Pod was taken away", Some(Running), None, true, Some(Action::End)),
            ("it is ending", Some(Ending), deleting(), true, None),
            ("it is ending by itself", Some(Ending), plain(ready()), true, None),
            ("it has ended", None, plain(ready()), true, remove()),
            ("it has ended after its Pod was deleted", None, deleting(), true, remove()),
            ("there was one, in another life", None, plain(json!(null)), false, remove()),
            ("nothing is left", None, None, true, None),
            ("a sandbox that has the name of another's Pod", Some(Running), of_another(), false, remove()),
            ("somebody's own Pod stays", None, others(), false, None),
            ("also where it is in the way", Some(Running), others(), false, Some(Action::Create)),
            ("also when it was ours", Some(Running), others(), true, Some(Action::Create)),
        ];
        for (what, phase, seen, shown, action) in table {
            let it = phase.map(sandbox);
            assert_eq!(plan(it.as_ref(), seen.as_ref(), shown), action, "{what}");
        }
    }

    #[test]
    fn only_what_is_somebodys_and_says_where_is_a_pod() {
        let key = Key { namespace: "default".into(), name: "me-one".into() };
        assert_eq!(Key::of_sandbox(&sandbox(Phase::Running)), Some(key));
        let warm = Sandbox { bound: false, ..sandbox(Phase::Running) };
        assert_eq!(Key::of_sandbox(&warm), None);
        for without in [labels::POD, labels::POD_NAMESPACE] {
            let mut it = sandbox(Phase::Running);
            it.labels.insert(without.into(), String::new());
            assert_eq!(Key::of_sandbox(&it), None);
        }
    }
}
