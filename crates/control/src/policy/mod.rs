//! Policies: how many instances they bind, and what of them is understood.

use api::agents::{SympoziumInstance, SympoziumPolicy, SympoziumPolicyStatus};
use api::{conditions, reasons};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

use crate::fit::{self, Wrong};
use crate::kinds;
use crate::machinery::{Cache, Error, Machinery, Note, ObjectName, Plan, Said, Wakes};

pub(crate) struct Keeper {
    instances: Cache<SympoziumInstance>,
    policies: Cache<SympoziumPolicy>,
}

#[derive(Debug)]
pub(crate) struct World {
    bound: usize,
}

impl Keeper {
    pub(crate) fn new(machinery: &mut Machinery) -> Self {
        Self { instances: machinery.cache(), policies: machinery.cache() }
    }
}

impl crate::machinery::Keeper for Keeper {
    type Kind = SympoziumPolicy;
    type World = World;
    type Effect = std::convert::Infallible;

    const PACE: Duration = Duration::from_millis(100);

    fn wakes(&self, on: &Wakes<Self>) {
        on.on_declared(&self.instances, |instance| {
            let Some(name) = &instance.spec.policy_ref else { return Vec::new() };
            let own = instance.namespace().unwrap_or_default();
            let named = |namespace: String| ObjectName { namespace, name: name.clone() };
            vec![named(own), named(kinds::SYSTEM_NAMESPACE.to_owned())]
        });
    }

    async fn look(&self, it: &SympoziumPolicy, _: Timestamp) -> Result<World, Error> {
        let (here, name) = (it.namespace().unwrap_or_default(), it.name_any());
        let binds = |namespace: String| {
            let nearer = ObjectName { namespace: namespace.clone(), name: name.clone() };
            namespace == here || here == kinds::SYSTEM_NAMESPACE && self.policies.get(&nearer).is_none()
        };
        let naming = self.instances.tagged(&kinds::with_policy(&name));
        let bound = naming.iter().filter(|instance| binds(instance.namespace().unwrap_or_default())).count();
        Ok(World { bound })
    }

    fn plan(it: &SympoziumPolicy, world: &World, _: Timestamp) -> Plan<Self::Effect> {
        let wrong = wrong(it);
        let idle = not_enforced(it);
        let accepted = match wrong.first() {
            Some((reason, _)) => {
                let all: Vec<&str> = wrong.iter().map(|(_, what)| what.as_str()).collect();
                Said::no(conditions::ACCEPTED, reason, all.join("; "))
            }
            None => Said::yes(conditions::ACCEPTED, reasons::ACCEPTED, idle.join("; ")),
        };
        let before = it.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let told = before.into_iter().find(|it| it.type_ == conditions::ACCEPTED).map_or("", |it| it.message.as_str());
        let news = if wrong.is_empty() {
            idle.into_iter().map(|what| (reasons::NOT_SUPPORTED, what)).collect()
        } else {
            wrong
        };
        let notes =
            news.into_iter().filter(|(_, what)| !told.contains(what)).map(|(reason, what)| Note::warning(reason, what));
        Plan {
            notes: notes.collect(),
            status: Some(json!(SympoziumPolicyStatus {
                bound_instances: Some(i64::try_from(world.bound).unwrap_or(i64::MAX)),
                conditions: None,
            })),
            conditions: vec![accepted],
            ..Plan::default()
        }
    }

    async fn effect(&self, effect: &Self::Effect) -> Result<(), Error> {
        match *effect {}
    }
}

fn wrong(policy: &SympoziumPolicy) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    if let Some(gating) = &policy.spec.tool_gating {
        let known = |action: &str| matches!(action, "allow" | "deny" | "ask");
        let mut denies =
            |what: String| wrong.push((reasons::INVALID, format!("{what} is not allow, deny or ask, and denies")));
        if !known(&gating.default_action) {
            denies(format!("toolGating.defaultAction {:?}", gating.default_action));
        }
        for rule in gating.rules.iter().flatten().filter(|rule| !known(&rule.action)) {
            denies(format!("the action {:?} of the rule for {}", rule.action, rule.tool));
        }
    }
    // Runs that are bound by these wait until they are edited.
    if let Some(rules) = &policy.spec.sandbox_policy {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        wrong.extend(given(&rules.max_cpu).and_then(|it| fit::amount("sandboxPolicy.maxCPU", &it)));
        wrong.extend(given(&rules.max_memory).and_then(|it| fit::amount("sandboxPolicy.maxMemory", &it)));
        wrong.extend(given(&rules.default_image).and_then(|it| fit::image("sandboxPolicy.defaultImage", &it)));
    }
    wrong
}

/// What the policy says and nobody heeds yet.
fn not_enforced(policy: &SympoziumPolicy) -> Vec<String> {
    let spec = &policy.spec;
    let asks = spec
        .tool_gating
        .iter()
        .any(|gating| gating.default_action == "ask" || gating.rules.iter().flatten().any(|rule| rule.action == "ask"));
    let seccomp = spec.sandbox_policy.iter().any(|rules| rules.seccomp_profile.is_some());
    let gates = spec.feature_gates.iter().any(|gates| !gates.is_empty());
    [
        (asks, "toolGating: nobody can be asked yet, so ask denies"),
        (spec.network_policy.is_some(), "networkPolicy is not read yet: sandboxes have no way out at all"),
        (seccomp, "sandboxPolicy.seccompProfile is not read yet: every sandbox has the platform's own filter"),
        (gates, "featureGates are not read yet"),
    ]
    .into_iter()
    .filter(|(said, _)| *said)
    .map(|(_, what)| what.to_owned())
    .collect()
}
