//! What a run's brain is told: the run's own words, and what it inherits from its instance and policy. Pure.

use std::collections::BTreeMap;

use api::Quantity;
use api::agents::{AgentRun, SandboxPolicy, SympoziumInstance, SympoziumPolicy};
use kube::ResourceExt;
use ledger::{Action, Gate, Job, Sandbox, ToolRules};

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
    let images = [
        run.spec.sandbox.as_ref().and_then(|it| it.image.as_deref()),
        instance.spec.agents.default.sandbox.as_ref().and_then(|it| it.image.as_deref()),
        rules.and_then(|rules| rules.default_image.as_deref()),
    ];
    Sandbox {
        image: images.into_iter().flatten().find(|name| !name.is_empty()).map(str::to_owned),
        runtime_class: handler,
        cpu: asked(run, instance, "cpu").or_else(|| most(rules, "cpu")),
        memory: asked(run, instance, "memory").or_else(|| most(rules, "memory")),
    }
}

/// The limit that the run asks for, or its instance.
fn asked(run: &AgentRun, instance: &SympoziumInstance, what: &str) -> Option<String> {
    let text = |quantities: &BTreeMap<String, String>| quantities.get(what).cloned();
    let own = run.spec.sandbox.as_ref().and_then(|it| it.resources.as_ref()).and_then(|it| it.limits.as_ref());
    let isolated =
        run.spec.agent_sandbox.as_ref().and_then(|it| it.resources.as_ref()).and_then(|it| it.limits.as_ref());
    let inherited = instance.spec.agents.default.sandbox.as_ref().and_then(|it| it.resources.as_ref());
    let inherited = inherited.and_then(|it| it.limits.as_ref()).and_then(|it| it.get(what)).map(|it| match it {
        Quantity::Text(text) => text.clone(),
        Quantity::Number(number) => number.to_string(),
    });
    own.and_then(text).or_else(|| isolated.and_then(text)).or(inherited).filter(|text| !text.is_empty())
}

fn most(rules: Option<&SandboxPolicy>, what: &str) -> Option<String> {
    let rules = rules?;
    let text = if what == "cpu" { &rules.max_cpu } else { &rules.max_memory };
    text.clone().filter(|text| !text.is_empty())
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
    for (what, field) in [("cpu", "maxCPU"), ("memory", "maxMemory")] {
        let (Some(asked), Some(most)) = (asked(run, instance, what), most(Some(rules), what)) else { continue };
        match (amount(&asked), amount(&most)) {
            (Some(it), Some(limit)) if it <= limit => {}
            (Some(_), Some(_)) => {
                return Some(format!("policy {name}: {what} {asked} is more than {field} {most}"));
            }
            (None, _) => return Some(format!("policy {name}: {what} {asked:?} is no quantity")),
            (_, None) => return Some(format!("policy {name}: {field} {most:?} is no quantity")),
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

/// A quantity as a number; `None` when it is none.
pub(crate) fn amount(text: &str) -> Option<f64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        _ => return text.parse().ok(),
    };
    number.parse::<f64>().ok().map(|number| number * scale).filter(|amount| amount.is_finite())
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
