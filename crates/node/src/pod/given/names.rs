//! The names that a pod knows: its own, its /etc/hosts and its /etc/resolv.conf, as a kubelet writes them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

/// The longest name that Linux takes for a machine.
const HOST_NAME: usize = 64;
/// What Kubernetes takes of name servers and search paths.
const SERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_LINE: usize = 2048;
const DOMAIN_NAME: usize = 253;

/// How names are looked up in this cluster and on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dns {
    /// `cluster.local`.
    pub(crate) domain: String,
    /// Where the cluster's names are looked up; none, and pods get what the machine has.
    pub(crate) servers: Vec<IpAddr>,
    /// The text of the machine's /etc/resolv.conf.
    pub(crate) host: String,
    /// What the machine is called.
    pub(crate) machine: String,
}

/// A pod's name for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName {
    pub(crate) host: String,
    /// Empty without a subdomain.
    pub(crate) domain: String,
    /// What the machine that it sees is called: the host, or with its domain.
    pub(crate) kernel: String,
}

impl HostName {
    /// What stands behind its address in /etc/hosts.
    pub(crate) fn line(&self) -> String {
        match self.domain.as_str() {
            "" => self.host.clone(),
            domain => format!("{0}.{domain}\t{0}", self.host),
        }
    }
}

/// # Errors
/// When it is too long, in the words of a kubelet.
pub(crate) fn host_name(pod: &Pod, dns: &Dns) -> Result<HostName, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    if on_host(pod) {
        let host = dns.machine.clone();
        return Ok(HostName { kernel: host.clone(), host, domain: String::new() });
    }
    if let Some(over) = spec.and_then(|it| it.hostname_override.as_deref()) {
        let host = cut(over);
        return Ok(HostName { kernel: host.clone(), host, domain: String::new() });
    }
    let wanted = spec.and_then(|it| it.hostname.as_deref()).filter(|it| !it.is_empty());
    let host = cut(wanted.unwrap_or(name));
    let subdomain = spec.and_then(|it| it.subdomain.as_deref()).filter(|it| !it.is_empty());
    let domain = subdomain.map(|it| format!("{it}.{namespace}.svc.{}", dns.domain)).unwrap_or_default();
    let mut kernel = host.clone();
    if !domain.is_empty() && spec.and_then(|it| it.set_hostname_as_fqdn) == Some(true) {
        kernel = format!("{host}.{domain}");
        if kernel.len() > HOST_NAME {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {kernel} is too long ({HOST_NAME} \
                 characters is the max, {} characters requested)",
                kernel.len()
            ));
        }
    }
    Ok(HostName { host, domain, kernel })
}

fn on_host(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|it| it.host_network) == Some(true)
}

fn cut(name: &str) -> String {
    let short: String = name.chars().take(HOST_NAME - 1).collect();
    if short.len() == name.len() { short } else { short.trim_end_matches(['-', '.']).to_owned() }
}

/// The text of /etc/hosts, without the pod's own address: that comes later.
pub(crate) fn hosts(pod: &Pod) -> String {
    let mut out = "# Kubernetes-managed hosts file.\n\
                   127.0.0.1\tlocalhost\n\
                   ::1\tlocalhost ip6-localhost ip6-loopback\n\
                   fe00::0\tip6-localnet\n\
                   fe00::0\tip6-mcastprefix\n\
                   fe00::1\tip6-allnodes\n\
                   fe00::2\tip6-allrouters\n"
        .to_owned();
    out.push_str(&aliases(pod));
    out
}

/// The text of /etc/hosts in the network of the machine, whose own this is.
pub(crate) fn machine_hosts(pod: &Pod, text: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{text}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let aliases = pod.spec.as_ref().and_then(|it| it.host_aliases.as_deref()).unwrap_or_default();
    let mut out = String::new();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

/// The lines of a resolv.conf.
#[derive(Default)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// The text of /etc/resolv.conf.
pub(crate) fn resolv(pod: &Pod, dns: &Dns) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let on_host = on_host(pod);
    let mut resolv = match spec.and_then(|it| it.dns_policy.as_deref()).unwrap_or("ClusterFirst") {
        "None" => Resolv::default(),
        policy @ ("ClusterFirst" | "ClusterFirstWithHostNet")
            if !dns.servers.is_empty() && (policy == "ClusterFirstWithHostNet" || !on_host) =>
        {
            let domain = &dns.domain;
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(parse(&dns.host).searches);
            Resolv {
                servers: dns.servers.iter().map(IpAddr::to_string).collect(),
                searches: unique(searches),
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => parse(&dns.host),
    };
    if let Some(more) = spec.and_then(|it| it.dns_config.as_ref()) {
        merge(&mut resolv, more);
    }
    resolv.servers.truncate(SERVERS);
    resolv.searches.truncate(SEARCHES);
    resolv.searches.retain(|it| it.len() <= DOMAIN_NAME);
    while resolv.searches.iter().map(|it| it.len() + 1).sum::<usize>() > SEARCH_LINE + 1 {
        resolv.searches.pop();
    }
    let mut out = String::new();
    if !resolv.searches.is_empty() {
        out.push_str(&format!("search {}\n", resolv.searches.join(" ")));
    }
    for server in &resolv.servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !resolv.options.is_empty() {
        out.push_str(&format!("options {}\n", resolv.options.join(" ")));
    }
    out
}

fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines().map(str::trim).filter(|it| !it.starts_with('#')) {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => resolv.servers.extend(fields.next().map(str::to_owned)),
            // The last such line is the one that counts.
            Some("search") => {
                let names = fields.filter(|it| *it != ".").map(|it| it.strip_suffix('.').unwrap_or(it).to_owned());
                resolv.searches = names.collect();
            }
            Some("options") => fields.for_each(|it| option(&mut resolv.options, it.to_owned())),
            _ => {}
        }
    }
    resolv
}

/// One option of each name: the later counts.
fn option(all: &mut Vec<String>, new: String) {
    let name = |it: &str| it.split(':').next().unwrap_or_default().to_owned();
    match all.iter_mut().find(|it| name(it) == name(&new)) {
        Some(it) => *it = new,
        None => all.push(new),
    }
}

fn merge(resolv: &mut Resolv, more: &PodDNSConfig) {
    resolv.servers.extend(more.nameservers.iter().flatten().cloned());
    resolv.searches.extend(more.searches.iter().flatten().cloned());
    resolv.servers = unique(std::mem::take(&mut resolv.servers));
    resolv.searches = unique(std::mem::take(&mut resolv.searches));
    for it in more.options.iter().flatten() {
        let name = it.name.clone().unwrap_or_default();
        match it.value.as_deref().filter(|it| !it.is_empty()) {
            Some(value) => option(&mut resolv.options, format!("{name}:{value}")),
            None => option(&mut resolv.options, name),
        }
    }
}

fn unique(mut all: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    all.retain(|it| seen.insert(it.clone()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn dns() -> Dns {
        let host = "# x\nnameserver 192.0.2.53\nsearch old\nsearch example.com. .\noptions ndots:1 rotate\n";
        Dns {
            domain: "cluster.local".into(),
            servers: vec!["10.0.0.10".parse().unwrap()],
            host: host.into(),
            machine: "m".into(),
        }
    }

    #[test]
    fn pods_are_called_as_a_kubelet_calls_them() {
        let long = "x".repeat(62);
        let table = [
            (json!({}), Ok(("web-0", "", "web-0"))),
            (json!({"hostname": "h", "subdomain": "s"}), Ok(("h", "s.ns.svc.cluster.local", "h"))),
            (
                json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
                Ok(("h", "s.ns.svc.cluster.local", "h.s.ns.svc.cluster.local")),
            ),
            (json!({"hostNetwork": true, "hostname": "h"}), Ok(("m", "", "m"))),
            (json!({"hostnameOverride": format!("{long}-y")}), Ok((long.as_str(), "", long.as_str()))),
            (
                json!({"hostname": long, "subdomain": "s", "setHostnameAsFQDN": true}),
                Err("failed to construct FQDN from pod hostname and cluster domain, FQDN "),
            ),
        ];
        for (spec, is) in table {
            let found = host_name(&pod(spec), &dns());
            match is {
                Ok((host, domain, kernel)) => {
                    let is = HostName { host: host.into(), domain: domain.into(), kernel: kernel.into() };
                    assert_eq!(found, Ok(is));
                }
                Err(begin) => assert!(found.unwrap_err().starts_with(begin)),
            }
        }
    }

    #[test]
    fn hosts_are_the_pods_name_and_aliases() {
        let pod = pod(json!({"subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "yy"]}]}));
        assert_eq!(host_name(&pod, &dns()).unwrap().line(), "web-0.s.ns.svc.cluster.local\tweb-0");
        let text = hosts(&pod);
        let end = "fe00::2\tip6-allrouters\n\n\
                   # Entries added by HostAliases.\n1.2.3.4\tx\tyy\n";
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with(end), "{text}");
        let end = "(host network).\n127.0.0.1 me\n\n# Entries added by HostAliases.\n1.2.3.4\tx\tyy\n";
        assert!(machine_hosts(&pod, "127.0.0.1 me\n").ends_with(end));
    }

    #[test]
    fn names_are_looked_up_by_the_pods_policy() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.0.0.10\n";
        let host = "search example.com\nnameserver 192.0.2.53\noptions ndots:1 rotate\n";
        let table = [
            (json!({}), format!("{cluster}options ndots:5\n")),
            (json!({"dnsPolicy": "Default"}), host.to_owned()),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), host.to_owned()),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["1.1.1.1", "1.1.1.1", "::2", "::3", "::4"], "searches": ["a", "b"],
                    "options": [{"name": "edns0"}, {"name": "ndots", "value": "2"}],
                }}),
                "search a b\nnameserver 1.1.1.1\nnameserver ::2\nnameserver ::3\noptions edns0 ndots:2\n".to_owned(),
            ),
            (
                json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
                format!("{cluster}options ndots:2\n"),
            ),
        ];
        for (spec, is) in table {
            assert_eq!(resolv(&pod(spec), &dns()), is);
        }
        let alone = Dns { servers: vec![], ..dns() };
        assert_eq!(resolv(&pod(json!({})), &alone), host);
        let searches: Vec<_> = (0..40).map(|at| format!("{at}{}", "x".repeat(100))).collect();
        let text = resolv(&pod(json!({"dnsPolicy": "None", "dnsConfig": {"searches": searches}})), &dns());
        assert!(text.len() <= "search \n".len() + SEARCH_LINE, "{}", text.len());
    }
}
