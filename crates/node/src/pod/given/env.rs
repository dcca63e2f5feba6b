//! The environment of a container.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};

use super::expand::{LONGEST, expand, field};
use super::objects::{ObjectKind, not_found};
use super::{NodeFacts, PodFacts, resources, services};

/// The most that a container is given, names and values together: what Linux gives to a process, arguments included, is
/// hardly more (a quarter of its stack).
const MOST: usize = 2 << 20;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in the order in which they were first named; a later value replaces an earlier one.
#[derive(Default)]
pub(super) struct Environment {
    all: Vec<(String, String)>,
    at: HashMap<String, usize>,
    size: usize,
}

impl Environment {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.at.get(name).and_then(|at| self.all.get(*at)).map(|(_, value)| value.as_str())
    }

    /// # Errors
    /// That no process can be given it.
    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("invalid environment variable {name:?}"));
        }
        if name.len() + 1 + value.len() > LONGEST {
            return Err(format!(
                "environment variable {name} is longer than {LONGEST} bytes, the most that Linux takes"
            ));
        }
        self.size += name.len() + value.len() + 2;
        if let Some((_, now)) = self.at.get(name).and_then(|at| self.all.get_mut(*at)) {
            self.size -= name.len() + now.len() + 2;
            *now = value;
        } else {
            self.at.insert(name.to_owned(), self.all.len());
            self.all.push((name.to_owned(), value));
        }
        if self.size > MOST {
            return Err(format!("the environment variables are more than {MOST} bytes, the most that Linux takes"));
        }
        Ok(())
    }

    pub(super) fn expand(&self, text: &str) -> Option<String> {
        expand(text, |name| self.get(name))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.all.iter()
    }

    pub(super) fn into_vec(self) -> Vec<(String, String)> {
        self.all
    }
}

/// What is named in a container's environment.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Named {
    pub(super) configs: BTreeSet<String>,
    pub(super) secrets: BTreeSet<String>,
}

impl Named {
    pub(super) fn by(container: &Container) -> Self {
        let mut named = Self::default();
        for from in container.env_from.iter().flatten() {
            named.configs.extend(from.config_map_ref.as_ref().map(|it| it.name.clone()));
            named.secrets.extend(from.secret_ref.as_ref().map(|it| it.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
            named.configs.extend(from.config_map_key_ref.as_ref().map(|it| it.name.clone()));
            named.secrets.extend(from.secret_key_ref.as_ref().map(|it| it.name.clone()));
        }
        named
    }
}

/// What was found of what is named.
#[derive(Default)]
pub(super) struct Found {
    pub(super) configs: BTreeMap<String, ConfigMap>,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) services: Vec<Service>,
}

/// What a PodSpec gives to a container, without what comes from its image.
///
/// # Errors
/// In the words of a kubelet, for a container that is `CreateContainerConfigError`.
pub(super) fn given(
    pod: &Pod,
    container: &Container,
    found: &Found,
    facts: &PodFacts,
    node: &NodeFacts,
) -> Result<Environment, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let links = spec.and_then(|it| it.enable_service_links).unwrap_or(true);
    let services = services::variables(namespace, links, &found.services);
    let of_services: HashMap<&str, &str> =
        services.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut env = Environment::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(of) = &from.config_map_ref {
            match found.configs.get(&of.name) {
                Some(it) => {
                    for (key, value) in it.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone())?;
                    }
                }
                None if of.optional == Some(true) => {}
                None => return Err(not_found(ObjectKind::ConfigMap, &of.name)),
            }
        } else if let Some(of) = &from.secret_ref {
            match found.secrets.get(&of.name) {
                Some(it) => {
                    for (key, value) in it.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), text(key, &value.0)?)?;
                    }
                }
                None if of.optional == Some(true) => {}
                None => return Err(not_found(ObjectKind::Secret, &of.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (var.value.as_deref().filter(|it| !it.is_empty()), &var.value_from) {
            (Some(value), _) => {
                let of = |name: &str| env.get(name).or_else(|| of_services.get(name).copied());
                let long = || {
                    format!(
                        "environment variable {} is longer than {LONGEST} bytes, the most that Linux takes",
                        var.name
                    )
                };
                Some(expand(value, of).ok_or_else(long)?)
            }
            (None, Some(from)) => source(from, pod, container, found, facts, node)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&var.name, value)?;
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(&name, value)?;
        }
    }
    Ok(env)
}

/// `None` where it may be missing and is.
fn source(
    from: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    found: &Found,
    facts: &PodFacts,
    node: &NodeFacts,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(of) = &from.field_ref {
        return runtime_field(pod, &of.field_path, facts, node).map(Some);
    }
    if let Some(of) = &from.resource_field_ref {
        return resources::field(of, pod, Some(container), node).map(Some);
    }
    if let Some(of) = &from.config_map_key_ref {
        let optional = of.optional == Some(true);
        return match found.configs.get(&of.name) {
            None if optional => Ok(None),
            None => Err(not_found(ObjectKind::ConfigMap, &of.name)),
            Some(it) => match it.data.as_ref().and_then(|all| all.get(&of.key)) {
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", of.key, of.name)),
                Some(value) => Ok(Some(value.clone())),
            },
        };
    }
    if let Some(of) = &from.secret_key_ref {
        let optional = of.optional == Some(true);
        return match found.secrets.get(&of.name) {
            None if optional => Ok(None),
            None => Err(not_found(ObjectKind::Secret, &of.name)),
            Some(it) => match it.data.as_ref().and_then(|all| all.get(&of.key)) {
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in Secret {namespace}/{}", of.key, of.name)),
                Some(value) => text(&of.key, &value.0).map(Some),
            },
        };
    }
    // No source that this Kubernetes knows.
    Ok(Some(String::new()))
}

fn runtime_field(pod: &Pod, path: &str, facts: &PodFacts, node: &NodeFacts) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let all = |them: &[IpAddr]| them.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |them: &[IpAddr]| them.first().map(IpAddr::to_string).unwrap_or_default();
    Ok(match path {
        "spec.nodeName" => spec.and_then(|it| it.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|it| it.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&node.addresses),
        "status.hostIPs" => all(&node.addresses),
        "status.podIP" => first(&facts.addresses),
        "status.podIPs" => all(&facts.addresses),
        _ => return field(pod, path),
    })
}

fn text(key: &str, value: &[u8]) -> Result<String, String> {
    let bad = |_| format!("the value of key {key} is no UTF-8, and cannot be the value of an environment variable");
    String::from_utf8(value.to_vec()).map_err(bad)
}

/// The whole environment: a runtime's defaults, over them the image's, over them what the PodSpec gives. The variables of the
/// proxy in both cases of letters, as some programs know only the one; where something else says either, neither.
///
/// # Errors
/// That it is more than a process can be given.
pub(super) fn whole(
    hostname: &str,
    tty: bool,
    home: &str,
    proxy: &[(&str, String)],
    image: &[(String, String)],
    given: &Environment,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    env.set("PATH", PATH.to_owned())?;
    env.set("HOSTNAME", hostname.to_owned())?;
    if tty {
        env.set("TERM", "xterm".to_owned())?;
    }
    for (name, value) in image.iter().chain(given.iter()) {
        env.set(name, value.clone())?;
    }
    if env.get("HOME").is_none() {
        env.set("HOME", home.to_owned())?;
    }
    for (name, value) in proxy {
        let both = [name.to_string(), name.to_lowercase()];
        if both.iter().all(|it| env.get(it).is_none()) {
            for name in both {
                env.set(&name, value.clone())?;
            }
        }
    }
    Ok(env.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found() -> Found {
        let parse = |it: Value| serde_json::from_value(it).unwrap();
        Found {
            configs: [("cm".to_owned(), parse(json!({"data": {"a": "1", "b.c-d": "$(a)"}})))].into(),
            secrets: [(
                "s".to_owned(),
                serde_json::from_value(json!({"data": {"k": "aGk=", "bad": "/w=="}})).unwrap(),
            )]
            .into(),
            services: vec![
                serde_json::from_value(json!({
                    "metadata": {"namespace": "ns", "name": "db"}, "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 5}]},
                }))
                .unwrap(),
            ],
        }
    }

    fn run(container: Value) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"x": "y"}},
            "spec": {"nodeName": "here", "serviceAccountName": "sa", "containers": []},
        }))
        .unwrap();
        let mut container = container;
        container["name"] = json!("c");
        let container: Container = serde_json::from_value(container).unwrap();
        let facts = PodFacts {
            addresses: vec!["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..PodFacts::default()
        };
        let node = NodeFacts { addresses: vec!["192.0.2.1".parse().unwrap()], ..NodeFacts::default() };
        let env = given(&pod, &container, &found(), &facts, &node)?.into_vec();
        Ok(env.into_iter().filter(|(name, _)| !name.starts_with("DB_")).collect())
    }

    #[test]
    fn variables_come_in_order_from_everywhere() {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let env = run(json!({
            "envFrom": [
                {"configMapRef": {"name": "cm"}}, {"prefix": "P_", "configMapRef": {"name": "cm"}},
                {"secretRef": {"name": "gone", "optional": true}},
            ],
            "env": [
                {"name": "EARLY", "value": "$(LATE)"},
                {"name": "LATE", "value": "$(P_a)-$(DB_SERVICE_HOST)-$$(a)"},
                {"name": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "AGAIN", "value": "$(a)"},
                {"name": "NONE"},
                {"name": "OPTIONAL", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}},
                field("IP", "status.podIP"), field("IPS", "status.podIPs"), field("HOST", "status.hostIP"),
                field("NODE", "spec.nodeName"), field("SA", "spec.serviceAccountName"),
                field("LABEL", "metadata.labels['x']"),
            ],
        }))
        .unwrap();
        let is = [
            ("AGAIN", "hi"),
            ("EARLY", "$(LATE)"),
            ("HOST", "192.0.2.1"),
            ("IP", "10.1.0.1"),
            ("IPS", "10.1.0.1,fd00::1"),
            ("LABEL", "y"),
            ("LATE", "1-10.0.0.9-$(a)"),
            ("NODE", "here"),
            ("NONE", ""),
            ("P_a", "1"),
            ("P_b.c-d", "$(a)"),
            ("SA", "sa"),
            ("a", "hi"),
            ("b.c-d", "$(a)"),
        ];
        let is: BTreeMap<_, _> = is.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(env, is);
    }

    #[test]
    fn what_is_missing_is_said_in_a_kubelets_words() {
        let from = |it: Value| json!({"env": [{"name": "A", "valueFrom": it}]});
        let table = [
            (json!({"envFrom": [{"secretRef": {"name": "late"}}]}), "secret \"late\" not found"),
            (json!({"envFrom": [{"configMapRef": {"name": "late"}}]}), "configmap \"late\" not found"),
            (from(json!({"secretKeyRef": {"name": "late", "key": "k"}})), "secret \"late\" not found"),
            (from(json!({"configMapKeyRef": {"name": "cm", "key": "x"}})), "couldn't find key x in ConfigMap ns/cm"),
            (from(json!({"secretKeyRef": {"name": "s", "key": "x"}})), "couldn't find key x in Secret ns/s"),
            (from(json!({"fieldRef": {"fieldPath": "spec.x"}})), "unsupported fieldPath: spec.x"),
            (
                from(json!({"secretKeyRef": {"name": "s", "key": "bad"}})),
                "the value of key bad is no UTF-8, and cannot be the value of an environment variable",
            ),
        ];
        for (container, is) in table {
            assert_eq!(run(container).unwrap_err(), is);
        }
    }

    #[test]
    fn an_environment_that_no_process_can_be_given_is_refused() {
        let mut env = vec![json!({"name": "A0", "value": "x".repeat(1000)})];
        env.extend((1..10).map(|at| json!({"name": format!("A{at}"), "value": format!("$(A{})", at - 1).repeat(10)})));
        assert!(run(json!({"env": env})).unwrap_err().starts_with("environment variable A3 is longer than"));
        let many: Vec<_> = (0..30).map(|at| json!({"name": format!("A{at}"), "value": "x".repeat(100_000)})).collect();
        assert!(run(json!({"env": many})).unwrap_err().starts_with("the environment variables are more than"));
    }

    #[test]
    fn what_a_pod_gives_lies_over_what_its_image_gives() {
        let mut given = Environment::default();
        given.set("A", "pod".into()).unwrap();
        let image = [("A".to_owned(), "image".to_owned()), ("PATH".to_owned(), "/bin".to_owned())];
        let env = whole("h", true, "/root", &[], &image, &given).unwrap();
        let is = [("PATH", "/bin"), ("HOSTNAME", "h"), ("TERM", "xterm"), ("A", "pod"), ("HOME", "/root")];
        assert_eq!(env, is.map(|(name, value)| (name.to_owned(), value.to_owned())));

        let proxy = [("HTTP_PROXY", "ours".to_owned()), ("NO_PROXY", "ours".to_owned())];
        given.set("http_proxy", String::new()).unwrap();
        let env = whole("h", false, "/root", &proxy, &[], &given).unwrap();
        let of_proxy: Vec<_> = env.iter().filter(|(it, _)| it.to_uppercase().ends_with("_PROXY")).collect();
        let is = [("http_proxy", ""), ("NO_PROXY", "ours"), ("no_proxy", "ours")];
        assert_eq!(of_proxy, is.map(|(name, value)| (name.to_owned(), value.to_owned())).each_ref());
    }
}
