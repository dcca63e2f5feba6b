//! What is decided about an instance. Pure.

use std::collections::BTreeMap;

use api::agents::{Channel, ChannelState, ChannelStatus, InstancePhase, SympoziumInstance, SympoziumInstanceStatus};
use api::{Quantity, conditions, labels, reasons};
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};

use super::{Effect, World};
use crate::fit::{self, Wrong};
use crate::kinds;
use crate::machinery::{Child, Note, Plan, Said, Seed};

/// Channels that exist at all.
const CHANNELS: [&str; 4] = ["telegram", "whatsapp", "discord", "slack"];

/// Conditions of an instance, one for each sort of thing that it may name. Only those that it names are told.
pub(super) const KEYS: &str = "KeysReady";
pub(super) const POLICY: &str = "PolicyReady";
pub(super) const CHANNELS_READY: &str = "ChannelsReady";
pub(super) const MCP_SERVERS: &str = "MCPServersReady";
pub(super) const SKILLS: &str = "SkillsReady";
pub(super) const NODES: &str = "NodesReady";
pub(super) const RUNTIME_CLASS: &str = "RuntimeClassReady";
pub(super) const MEMORY: &str = "MemoryReady";
pub(super) const OTHERS: &str = "AllServed";

pub(super) fn memory_name(it: &SympoziumInstance) -> String {
    format!("{}{}", it.name_any(), kinds::MEMORY_SUFFIX)
}

/// Characters of an object's name that Kubernetes takes.
const NAME_LIMIT: usize = 253;
/// ... of a label's value.
const LABEL_LIMIT: usize = 63;

/// The label by which what is made for the instance is found. None where its name does not fit into one: the name of
/// what is made says whose it is, too.
pub(super) fn label(it: &SympoziumInstance) -> Option<String> {
    Some(it.name_any()).filter(|name| name.len() <= LABEL_LIMIT)
}

/// Why there can be no memory.
fn memory_unnamed(it: &SympoziumInstance) -> Option<String> {
    let length = memory_name(it).len();
    (length > NAME_LIMIT).then(|| {
        format!(
            "memory: its ConfigMap has the instance's name and {:?}, {length} characters, and a name has at most \
             {NAME_LIMIT}: make the instance anew with a shorter name, or set memory.enabled to false",
            kinds::MEMORY_SUFFIX
        )
    })
}

/// The isolation class that the instance's runs ask for.
pub(super) fn class(it: &SympoziumInstance) -> Option<&str> {
    let sandbox = it.spec.agents.default.agent_sandbox.as_ref()?;
    sandbox.runtime_class.as_deref().filter(|name| sandbox.enabled && !name.is_empty())
}

/// The labels of the nodes that the instance's runs ask for.
pub(super) fn selector(it: &SympoziumInstance) -> Option<&BTreeMap<String, String>> {
    it.spec.agents.default.node_selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Something that is not as it should be, and how bad that is.
struct Lack {
    reason: &'static str,
    what: String,
}

/// One condition in the making.
struct Topic {
    type_: &'static str,
    lacks: Vec<Lack>,
    /// What is to be said where nothing lacks.
    remark: &'static str,
}

impl Topic {
    fn new(type_: &'static str) -> Self {
        Self { type_, lacks: Vec::new(), remark: "" }
    }

    fn lack(&mut self, reason: &'static str, what: String) {
        self.lacks.push(Lack { reason, what });
    }

    fn said(&self) -> Said {
        match self.lacks.first() {
            None => Said::yes(self.type_, reasons::READY, self.remark),
            Some(first) => {
                let all: Vec<&str> = self.lacks.iter().map(|lack| lack.what.as_str()).collect();
                Said::no(self.type_, first.reason, all.join("; "))
            }
        }
    }
}

pub(super) fn plan(it: &SympoziumInstance, world: &World) -> Plan<Effect> {
    if it.meta().deletion_timestamp.is_some() {
        return delete(it, world);
    }
    let topics = topics(it, world);
    let lacks = || topics.iter().flat_map(|topic| topic.lacks.iter());
    // What stays wrong until somebody edits it weighs more than what may still come.
    let phase = if lacks().any(|lack| lack.reason == reasons::INVALID) {
        InstancePhase::Error
    } else if lacks().next().is_some() {
        InstancePhase::Pending
    } else {
        InstancePhase::Running
    };
    let ready = match lacks().next() {
        None => Said::yes(conditions::READY, reasons::READY, ""),
        Some(first) => {
            let all: Vec<&str> = lacks().map(|lack| lack.what.as_str()).collect();
            Said::no(conditions::READY, first.reason, all.join("; "))
        }
    };
    let before = it.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let told = before.into_iter().find(|it| it.type_ == conditions::READY).map_or("", |it| it.message.as_str());
    let notes = lacks()
        .filter(|lack| !told.contains(&lack.what))
        .map(|lack| Note::warning(lack.reason, lack.what.clone()))
        .collect();
    let count = |it: usize| i64::try_from(it).unwrap_or(i64::MAX);
    let ever = it.status.as_ref().and_then(|status| status.total_agent_runs).unwrap_or(0);
    let channels: Vec<ChannelStatus> = it.spec.channels.iter().flatten().map(|it| channel(it, world)).collect();
    let status = SympoziumInstanceStatus {
        phase: Some(phase),
        channels: Some(channels).filter(|channels| !channels.is_empty()),
        active_agent_pods: Some(count(world.active)),
        total_agent_runs: Some(ever.max(count(world.runs)).max(i64::try_from(world.submitted).unwrap_or(i64::MAX))),
        web_endpoint: None,
        conditions: None,
    };
    let mut said = vec![ready];
    said.extend(topics.iter().map(Topic::said));
    let wants_memory = it.spec.memory.as_ref().is_some_and(|memory| memory.enabled);
    Plan {
        seed: (wants_memory && world.memory.is_none() && memory_unnamed(it).is_none())
            .then(|| memory(it, &world.manager))
            .into_iter()
            .collect(),
        status: Some(json!(status)),
        conditions: said,
        notes,
        ..Plan::default()
    }
}

/// The last look at an instance. What is ours goes with it, whether or not anybody collects garbage; what a user put
/// in its place stays.
fn delete(it: &SympoziumInstance, world: &World) -> Plan<Effect> {
    let namespace = it.namespace().unwrap_or_default();
    let memory = world.memory.as_ref().filter(|memory| memory.ours).map(|memory| Child {
        api_version: "v1",
        plural: "configmaps",
        namespace: namespace.clone(),
        name: memory_name(it),
        uid: memory.uid.clone(),
    });
    Plan {
        effects: vec![Effect::Forget { namespace, instance: it.name_any() }],
        prune: memory.into_iter().collect(),
        release_finalizer: true,
        ..Plan::default()
    }
}

fn topics(it: &SympoziumInstance, world: &World) -> Vec<Topic> {
    let spec = &it.spec;
    let missing = |name: &str| world.missing_secrets.iter().any(|missing| missing == name);
    let no_secret = |name: &str| format!("Secret {name:?} not found");
    let mut topics = Vec::new();

    if let Some(keys) = spec.auth_refs.as_ref().filter(|keys| !keys.is_empty()) {
        let mut topic = Topic::new(KEYS);
        for key in keys.iter().filter(|key| missing(&key.secret)) {
            topic.lack(reasons::SECRET_MISSING, no_secret(&key.secret));
        }
        topics.push(topic);
    }
    if let Some(name) = spec.policy_ref.as_deref().filter(|name| !name.is_empty()) {
        let mut topic = Topic::new(POLICY);
        if !world.has_policy {
            topic.lack(reasons::POLICY_MISSING, format!("SympoziumPolicy {name:?} not found"));
        }
        topics.push(topic);
    }
    if let Some(channels) = spec.channels.as_ref().filter(|channels| !channels.is_empty()) {
        let mut topic = Topic::new(CHANNELS_READY);
        for channel in channels {
            let (reason, what, _) = channel_lack(channel, world);
            topic.lack(reason, what);
        }
        topics.push(topic);
    }
    if let Some(servers) = spec.mcp_servers.as_ref().filter(|servers| !servers.is_empty()) {
        let mut topic = Topic::new(MCP_SERVERS);
        for server in servers {
            if server.url.as_deref().unwrap_or_default().is_empty() {
                topic.lack(reasons::MCP_SERVER_MISSING, format!("MCPServer {:?} not found", server.name));
            } else {
                topic.lack(reasons::NOT_SUPPORTED, format!("MCP server {:?} is not served yet", server.name));
            }
            if let Some(secret) = server.auth_secret.as_deref().filter(|name| missing(name)) {
                topic.lack(reasons::SECRET_MISSING, no_secret(secret));
            }
        }
        topics.push(topic);
    }
    if let Some(skills) = spec.skills.as_ref().filter(|skills| !skills.is_empty()) {
        let mut topic = Topic::new(SKILLS);
        for skill in skills {
            let pack = skill.skill_pack_ref.as_deref().filter(|name| !name.is_empty());
            topic.lack(
                reasons::SKILL_PACK_MISSING,
                match pack {
                    Some(name) => format!("SkillPack {name:?} not found: skills are not served yet"),
                    None => "skills from ConfigMaps are not served yet".to_owned(),
                },
            );
        }
        topics.push(topic);
    }
    if let Some(selector) = selector(it) {
        let mut topic = Topic::new(NODES);
        if !world.has_node {
            let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            topic.lack(reasons::NODE_MISSING, format!("no Node has the labels {}", labels.join(", ")));
        }
        topics.push(topic);
    }
    if let Some(name) = class(it) {
        let mut topic = Topic::new(RUNTIME_CLASS);
        if let Some((reason, what)) = world.class.lack(name) {
            topic.lack(reason, what);
        }
        topics.push(topic);
    }
    if spec.memory.as_ref().is_some_and(|memory| memory.enabled) {
        let mut topic = Topic { remark: "runs are told what is in it, and cannot write it yet", ..Topic::new(MEMORY) };
        if let Some(why) = memory_unnamed(it) {
            topic.lack(reasons::INVALID, why);
        }
        topics.push(topic);
    }
    let mut others = Topic::new(OTHERS);
    let limits = spec.agents.default.subagents.clone().unwrap_or_default();
    if limits.max_concurrent < 1 {
        others.lack(
            reasons::INVALID,
            format!("agents.default.subagents.maxConcurrent is {}: no run may start", limits.max_concurrent),
        );
    }
    if spec.observability.as_ref().is_some_and(|it| it.enabled) {
        others.lack(reasons::NOT_SUPPORTED, "observability is not served yet: no telemetry leaves".to_owned());
    }
    for (reason, what) in unfit(it) {
        others.lack(reason, what);
    }
    let sandbox = spec.agents.default.agent_sandbox.as_ref();
    if sandbox.is_some_and(|sandbox| sandbox.enabled && sandbox.warm_pool.is_some()) {
        let what = "agentSandbox.warmPool is not read yet: the platform decides how many sandboxes are kept warm";
        others.lack(reasons::NOT_SUPPORTED, what.to_owned());
    }
    if spec.web_endpoint.as_ref().is_some_and(|it| it.enabled) {
        others.lack(reasons::NOT_SUPPORTED, "webEndpoint is not served yet".to_owned());
    }
    if !others.lacks.is_empty() {
        topics.push(others);
    }
    topics
}

/// What is wrong with the sandbox that the instance's runs inherit.
fn unfit(it: &SympoziumInstance) -> Vec<Wrong> {
    let Some(sandbox) = &it.spec.agents.default.sandbox else { return Vec::new() };
    let image = sandbox.image.as_deref().filter(|name| !name.is_empty());
    let image = image.and_then(|name| fit::image("agents.default.sandbox.image", name));
    let limits = sandbox.resources.iter().flat_map(|it| it.limits.iter().flatten());
    let limits = limits.filter(|(what, _)| matches!(what.as_str(), "cpu" | "memory")).filter_map(|(what, it)| {
        let text = match it {
            Quantity::Text(text) if text.is_empty() => return None,
            Quantity::Text(text) => text.clone(),
            Quantity::Number(number) => number.to_string(),
        };
        fit::amount(format!("agents.default.sandbox.resources.limits.{what}"), &text)
    });
    image.into_iter().chain(limits).collect()
}

/// What keeps a channel from being served, the nearest thing first.
fn channel_lack(channel: &Channel, world: &World) -> (&'static str, String, ChannelState) {
    let secret = channel.config_ref.as_ref().map_or("", |it| it.secret.as_str());
    let type_ = &channel.type_;
    if !CHANNELS.contains(&type_.as_str()) {
        let what = format!("channel type {type_:?} is none of {}", CHANNELS.join(", "));
        (reasons::INVALID, what, ChannelState::Error)
    } else if world.missing_secrets.iter().any(|missing| missing == secret) {
        // In the words of the original.
        (reasons::SECRET_MISSING, format!("secret {secret:?} not found"), ChannelState::Error)
    } else {
        (reasons::NOT_SUPPORTED, format!("the channel {type_} is not served yet"), ChannelState::Pending)
    }
}

fn channel(channel: &Channel, world: &World) -> ChannelStatus {
    let (_, what, status) = channel_lack(channel, world);
    ChannelStatus { type_: channel.type_.clone(), status, last_health_check: None, message: Some(what) }
}

/// An empty memory, marked as ours.
fn memory(it: &SympoziumInstance, manager: &str) -> Seed {
    let (namespace, name) = (it.namespace().unwrap_or_default(), memory_name(it));
    let mut labels = Map::new();
    if let Some(label) = label(it) {
        labels.insert(labels::INSTANCE.into(), label.into());
    }
    labels.insert(labels::COMPONENT.into(), "memory".into());
    labels.insert(labels::MANAGED_BY.into(), manager.into());
    let owner = json!({
        "apiVersion": SympoziumInstance::api_version(&()), "kind": SympoziumInstance::kind(&()),
        "name": it.name_any(), "uid": it.uid(), "controller": true, "blockOwnerDeletion": true,
    });
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": namespace, "name": name, "labels": Value::Object(labels), "ownerReferences": [owner],
        },
        "data": {kinds::MEMORY_KEY: ""},
    });
    Seed { api_version: "v1", plural: "configmaps", namespace, name, object }
}
