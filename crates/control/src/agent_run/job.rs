//! What a run's brain is told: the run's own words, and what it inherits from its instance and policy. Pure.

use std::collections::BTreeMap;

use api::Quantity;
use api::agents::{AgentRun, SandboxPolicy, SympoziumInstance, SympoziumPolicy};
use kube::ResourceExt;
use ledger::{Action, Gate, Job, Sandbox, ToolRules};

use crate::fit::{self, Wrong};
use crate::machinery::cut;

/// Things that a run goes without, of which each is named: each is an event, too.
const NAMED: usize = 50;

pub(super) fn job(
    run: &AgentRun,
    instance: &SympoziumInstance,
    policy: Option<&SympoziumPolicy>,
    secret: Option<String>,
    handler: Option<String>,
    memory: Option<&str>,
) -> Job {
    let (spec, agent) = (&run.spec, &instance.spec.agents.default);
    let own = Some(spec.model.model.as_str()).filter(|name| !name.is_empty());
    let remembers = instance.spec.memory.as_ref().filter(|it| it.enabled);
    let persona = remembers.and_then(|it| it.system_prompt.as_deref());
    let memory = memory.filter(|text| !text.trim().is_empty()).zip(remembers).map(|(text, it)| {
        let limit = usize::try_from(it.max_size_kb).unwrap_or(0).saturating_mul(1024);
        format!("# Memory\n\n{}", cut(text, limit).0)
    });
    let prompts = [persona, spec.system_prompt.as_deref(), memory.as_deref()];
    Job {
        task: spec.task.clone(),
        system: prompts.into_iter().flatten().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n"),
        provider: spec.model.provider.clone(),
        model: own.unwrap_or(&agent.model).to_owned(),
        base_url: base_url(run, instance),
        thinking: [spec.model.thinking.as_deref(), agent.thinking.as_deref()]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .map(str::to_owned),
        secret,
        tools: ToolRules {
            allow: spec.tool_policy.as_ref().and_then(|it| it.allow.clone()).unwrap_or_default(),
            deny: spec.tool_policy.as_ref().and_then(|it| it.deny.clone()).unwrap_or_default(),
            gate: policy.and_then(gate),
        },
        sandbox: Some(sandbox(run, instance, policy, handler)),
        without: not_served(run, instance),
    }
}

/// Empty: the provider's own.
pub(super) fn base_url(run: &AgentRun, instance: &SympoziumInstance) -> String {
    let urls = [run.spec.model.base_url.as_deref(), instance.spec.agents.default.base_url.as_deref()];
    urls.into_iter().flatten().find(|url| !url.is_empty()).unwrap_or_default().to_owned()
}

fn gate(policy: &SympoziumPolicy) -> Option<Gate> {
    let gating = policy.spec.tool_gating.as_ref()?;
    let rules = gating.rules.iter().flatten();
    Some(Gate {
        policy: policy.name_any(),
        default: action(&gating.default_action),
        rules: rules.map(|rule| (rule.tool.clone(), action(&rule.action))).collect(),
    })
}

/// A word that nobody knows denies: a policy is never weaker than what it may have meant. The policy's status names it.
fn action(text: &str) -> Action {
    match text {
        "allow" => Action::Allow,
        "ask" => Action::Ask,
        _ => Action::Deny,
    }
}

fn sandbox(
    run: &AgentRun,
    instance: &SympoziumInstance,
    policy: Option<&SympoziumPolicy>,
    handler: Option<String>,
) -> Sandbox {
    let rules = policy.and_then(|policy| policy.spec.sandbox_policy.as_ref());
    let limit = |what| asked(run, instance, what).map(|(_, text)| text).or_else(|| most(rules, what));
    Sandbox {
        image: image(run, instance, policy).map(|(_, name)| name),
        runtime_class: handler,
        cpu: limit("cpu"),
        memory: limit("memory"),
    }
}

/// The image of the run's sandbox: where it is named, and its name.
fn image(run: &AgentRun, instance: &SympoziumInstance, policy: Option<&SympoziumPolicy>) -> Option<(String, String)> {
    let named = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    let own = named(run.spec.sandbox.as_ref().and_then(|it| it.image.as_ref()));
    let inherited = || named(instance.spec.agents.default.sandbox.as_ref().and_then(|it| it.image.as_ref()));
    let ruled = |policy: &SympoziumPolicy| {
        let name = named(policy.spec.sandbox_policy.as_ref()?.default_image.as_ref())?;
        Some((format!("sandboxPolicy.defaultImage of policy {}", policy.name_any()), name))
    };
    own.map(|name| ("spec.sandbox.image".to_owned(), name))
        .or_else(|| inherited().map(|name| (of(instance, "agents.default.sandbox.image"), name)))
        .or_else(|| ruled(policy?))
}

fn of(instance: &SympoziumInstance, field: &str) -> String {
    format!("{field} of instance {}", instance.name_any())
}

/// The limit that the run asks for, or its instance: where it is written, and what.
fn asked(run: &AgentRun, instance: &SympoziumInstance, what: &str) -> Option<(String, String)> {
    let own = run.spec.sandbox.as_ref().and_then(|it| it.resources.as_ref()).and_then(|it| it.limits.as_ref());
    let isolated =
        run.spec.agent_sandbox.as_ref().and_then(|it| it.resources.as_ref()).and_then(|it| it.limits.as_ref());
    let text = |field: &str, limits: Option<&BTreeMap<String, String>>| {
        Some((format!("{field}.resources.limits.{what}"), limits?.get(what)?.clone()))
    };
    let inherited = || {
        let limits = instance.spec.agents.default.sandbox.as_ref()?.resources.as_ref()?.limits.as_ref()?;
        let text = match limits.get(what)? {
            Quantity::Text(text) => text.clone(),
            Quantity::Number(number) => number.to_string(),
        };
        Some((of(instance, &format!("agents.default.sandbox.resources.limits.{what}")), text))
    };
    let asked = text("spec.sandbox", own).or_else(|| text("spec.agentSandbox", isolated)).or_else(inherited);
    asked.filter(|(_, text)| !text.is_empty())
}

fn most(rules: Option<&SandboxPolicy>, what: &str) -> Option<String> {
    let rules = rules?;
    let text = if what == "cpu" { &rules.max_cpu } else { &rules.max_memory };
    text.clone().filter(|text| !text.is_empty())
}

/// The two limits, with the policy's fields for them.
const LIMITS: [(&str, &str); 2] = [("cpu", "maxCPU"), ("memory", "maxMemory")];

/// Why no sandbox can be what the run, its instance and its policy say together.
pub(super) fn unfit(run: &AgentRun, instance: &SympoziumInstance, policy: Option<&SympoziumPolicy>) -> Vec<Wrong> {
    let mut wrong: Vec<Wrong> =
        image(run, instance, policy).and_then(|(field, name)| fit::image(field, &name)).into_iter().collect();
    for (what, field) in LIMITS {
        wrong.extend(asked(run, instance, what).and_then(|(field, text)| fit::amount(field, &text)));
        let most = policy.and_then(|policy| Some((policy, most(policy.spec.sandbox_policy.as_ref(), what)?)));
        wrong.extend(most.and_then(|(policy, text)| {
            fit::amount(format!("sandboxPolicy.{field} of policy {}", policy.name_any()), &text)
        }));
    }
    wrong
}

/// Which rule of its policy the run breaks.
pub(super) fn denied(
    run: &AgentRun,
    instance: &SympoziumInstance,
    policy: &SympoziumPolicy,
    class: Option<&str>,
) -> Option<String> {
    let name = policy.name_any();
    let rules = policy.spec.sandbox_policy.as_ref()?;
    for (what, field) in LIMITS {
        let (Some((_, asked)), Some(most)) = (asked(run, instance, what), most(Some(rules), what)) else { continue };
        // What is no amount is not denied but waited for: see `unfit`.
        if let (Ok(it), Ok(limit)) = (sandbox::limit(&asked), sandbox::limit(&most))
            && it > limit
        {
            return Some(format!("policy {name}: {what} {asked} is more than {field} {most}"));
        }
    }
    let classes = rules.agent_sandbox_policy.as_ref()?;
    if classes.required && class.is_none() {
        return Some(format!("policy {name}: a runtimeClass is required, and none is named"));
    }
    let allowed: Vec<&str> = classes.allowed_runtime_classes.iter().flatten().map(String::as_str).collect();
    match class {
        Some(class) if !allowed.is_empty() && !allowed.contains(&class) => {
            Some(format!("policy {name}: runtimeClass {class:?} is not among {}", allowed.join(", ")))
        }
        _ => None,
    }
}

/// What the run or its instance asks for and does not get yet.
fn not_served(run: &AgentRun, instance: &SympoziumInstance) -> Vec<String> {
    let mut without = Vec::new();
    let own = run.spec.skills.as_deref().filter(|skills| !skills.is_empty());
    for skill in own.or(instance.spec.skills.as_deref()).unwrap_or_default() {
        let name = skill.skill_pack_ref.as_deref().or(skill.config_map_ref.as_deref()).unwrap_or_default();
        without.push(format!("skill {name:?} is not served yet: the run goes without it"));
    }
    for server in instance.spec.mcp_servers.iter().flatten() {
        without.push(format!("MCP server {:?} is not served yet: the run goes without it", server.name));
    }
    if run.spec.env.as_ref().is_some_and(|env| !env.is_empty()) {
        without.push("spec.env is not served yet: the run goes without it".to_owned());
    }
    let security = run.spec.sandbox.as_ref().is_some_and(|sandbox| sandbox.security_context.is_some());
    if security {
        without.push("sandbox.securityContext is not read yet: every sandbox has the platform's own".to_owned());
    }
    let selectors = [&run.spec.model.node_selector, &instance.spec.agents.default.node_selector];
    if selectors.into_iter().flatten().any(|selector| !selector.is_empty()) {
        without.push("nodeSelector is not heeded yet".to_owned());
    }
    let more = without.len().saturating_sub(NAMED);
    if more > 0 {
        without.truncate(NAMED);
        without.push(format!("{more} more of what the run asks for are not served yet"));
    }
    without
}
