//! As whom a container runs, and what of a PodSpec this node refuses.

use std::net::SocketAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSecurityContext, SecurityContext};

use super::expand::quote;
use super::profile;
use crate::engine::Ids;
use crate::pod::kubelet::plain;
use crate::pod::types::{HostPort, HostSpaces, ImageFacts};

/// What of the machine Pods may have that ask for it. Nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// `hostNetwork`
    pub network: bool,
    /// `hostPID`
    pub pid: bool,
    /// `hostIPC`
    pub ipc: bool,
    /// `hostPort`
    pub ports: bool,
    /// `privileged`
    pub privileged: bool,
}

/// What of a PodSpec this node allows that reaches out of the pod. Nothing, by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    /// hostPath volumes are these directories, or below one of them.
    pub(crate) host_paths: Vec<PathBuf>,
    pub(crate) host: Allow,
    /// This node is root: a pod can be without a user namespace of its own.
    pub(crate) root: bool,
    /// This node finds the processes of a pod by its control groups.
    pub(crate) finds: bool,
}

/// Why a kubelet does not take a pod at all: the pod fails, with this reason, and a message after "Pod was rejected: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Those that concern nobody but the pod (Kubernetes' "safe" ones).
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What Docker leaves to root, and every runtime since.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const FURTHER: [&str; 27] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

fn context(pod: &Pod) -> Option<&PodSecurityContext> {
    pod.spec.as_ref()?.security_context.as_ref()
}

/// Whether a kubelet would turn the pod away.
pub(super) fn refusal(pod: &Pod) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    for it in context(pod).and_then(|it| it.sysctls.as_ref()).into_iter().flatten() {
        let name = it.name.replace('/', ".");
        let why = match (SYSCTLS.contains(&name.as_str()), name.starts_with("net.")) {
            (false, _) => "not allowlisted",
            // It would be the machine's.
            (_, true) if spec.host_network == Some(true) => "not allowed with host Net enabled",
            (_, false) if spec.host_ipc == Some(true) => "not allowed with host IPC enabled",
            _ => continue,
        };
        let message = format!("forbidden sysctl: {} {why}", quote(&it.name));
        return Some(Refusal { reason: "SysctlForbidden", message });
    }
    let profile = |it: Option<&SecurityContext>| {
        it.and_then(|it| it.app_armor_profile.as_ref()).is_some_and(|it| it.type_ == "Localhost")
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_pod = context(pod).and_then(|it| it.app_armor_profile.as_ref()).is_some_and(|it| it.type_ == "Localhost");
    if of_pod || containers.into_iter().any(|it| profile(it.security_context.as_ref())) {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
        return Some(Refusal { reason: "AppArmor", message });
    }
    None
}

pub(super) fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|it| it.privileged) == Some(true)
}

/// Which namespaces of the pod are the host's. What is not allowed it does not get; [`check`] says it.
pub(crate) fn spaces(pod: &Pod, allowed: &Allowed) -> HostSpaces {
    let Some(spec) = &pod.spec else { return HostSpaces::default() };
    let Allowed { host, root, finds, .. } = allowed;
    let network = host.network && spec.host_network == Some(true);
    let processes = host.pid && *root && *finds && spec.host_pid == Some(true);
    let ipc = host.ipc && spec.host_ipc == Some(true);
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let privileged = host.privileged && spec.host_users != Some(false) && containers.any(is_privileged);
    HostSpaces { network, processes, ipc, users: *root && (network || processes || ipc || privileged) }
}

/// The ports that the node is to listen for.
pub(crate) fn host_ports(pod: &Pod, allowed: &Allowed) -> Vec<HostPort> {
    let Some(spec) = pod.spec.as_ref().filter(|it| allowed.host.ports && it.host_network != Some(true)) else {
        return Vec::new();
    };
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|it| it.ports.iter().flatten()).filter(|it| is_tcp(it));
    let number = |it: i32| u16::try_from(it).ok().filter(|it| *it > 0);
    let at = |it: &ContainerPort| {
        // As all that this node listens for.
        let address = it.host_ip.as_deref().filter(|it| !it.is_empty()).unwrap_or("127.0.0.1");
        Some(SocketAddr::new(address.parse().ok()?, number(it.host_port?)?))
    };
    ports.filter_map(|it| Some(HostPort { at: at(it)?, to: number(it.container_port)? })).collect()
}

fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|it| it == "TCP")
}

/// What no container has here.
pub(super) fn check(pod: &Pod, container: &Container, allowed: &Allowed) -> Result<(), String> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let own = container.security_context.as_ref();
    let host = allowed.host;
    let ports = || {
        let on_host = spec.host_network == Some(true);
        container.ports.iter().flatten().filter(move |it| !on_host && it.host_port.is_some_and(|it| it != 0))
    };
    let asked = [
        (is_privileged(container), host.privileged, "privileged containers are", "privileged"),
        (spec.host_network == Some(true), host.network, "hostNetwork is", "network"),
        (spec.host_pid == Some(true), host.pid, "hostPID is", "pid"),
        (spec.host_ipc == Some(true), host.ipc, "hostIPC is", "ipc"),
        (ports().next().is_some(), host.ports, "host ports are", "ports"),
    ];
    for (asked, allowed, what, flag) in asked {
        if asked && !allowed {
            return Err(format!("{what} refused on this node: `insula up --allow {flag}` allows it"));
        }
    }
    if spec.host_pid == Some(true) && !(allowed.root && allowed.finds) {
        return Err("hostPID is not to be had on this node: only as root, and with control groups, does it find all \
                    processes of such a pod again"
            .to_owned());
    }
    if let Some(it) = ports().find(|it| !is_tcp(it)) {
        let protocol = it.protocol.as_deref().unwrap_or_default();
        return Err(format!("host ports are of TCP on this node: {protocol} is not carried"));
    }
    if own.and_then(|it| it.proc_mount.as_deref()) == Some("Unmasked") && !is_privileged(container) {
        return Err("containers with an unmasked /proc are refused on this node, but for privileged ones".to_owned());
    }
    if container.volume_devices.as_ref().is_some_and(|it| !it.is_empty()) {
        return Err("block devices cannot be given to containers on this node".to_owned());
    }
    Ok(())
}

/// What no pod has whose containers have kernels of their own: it would be the machine's, or the neighbour's.
pub(crate) fn beyond_sentry(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let asked = [
        (spec.host_network == Some(true), "hostNetwork"),
        (spec.host_pid == Some(true), "hostPID"),
        (spec.host_ipc == Some(true), "hostIPC"),
        (spec.share_process_namespace == Some(true), "shareProcessNamespace"),
    ];
    if let Some((_, what)) = asked.into_iter().find(|(asked, _)| *asked) {
        return Some(format!("{what} is not to be had with gVisor: each container has a kernel of its own"));
    }
    let sysctls = context(pod).and_then(|it| it.sysctls.as_deref()).unwrap_or_default();
    let other = sysctls.iter().find(|it| !it.name.replace('/', ".").starts_with("net."))?;
    Some(format!(
        "the sysctl {} cannot be set with gVisor: only the pod's network is the machine's",
        quote(&other.name)
    ))
}

/// What no container of such a pod has.
pub(super) fn check_sentry(pod: &Pod, container: &Container, target: Option<&str>) -> Result<(), String> {
    if is_privileged(container) {
        return Err("privileged containers are not to be had with gVisor: it is there to keep the machine away".into());
    }
    if let Some(name) = profile::named(pod, container) {
        let why = "the Sentry is under a filter of its own";
        return Err(format!("the seccomp profile {} is not to be had with gVisor: {why}", quote(name)));
    }
    match target {
        Some(target) => Err(format!(
            "a container cannot see the processes of {} with gVisor: each container has a kernel of its own",
            quote(target)
        )),
        None => Ok(()),
    }
}

/// What the container gets although it asked for something else; an event says it.
pub(super) fn remark(pod: &Pod, container: &Container) -> Option<&'static str> {
    if is_privileged(container) {
        return None;
    }
    let profile = profile::seccomp(pod, container)?;
    (profile.type_ == "Unconfined").then_some(
        "the seccomp profile Unconfined is not honored: this node filters the system calls of every container",
    )
}

/// As whom a container runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// A user as an image's /etc/passwd and /etc/group know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) group: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// The user that a PodSpec wants for a container, if any.
pub(super) fn wanted_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|it| it.run_as_user);
    own.or_else(|| context(pod).and_then(|it| it.run_as_user))
}

/// The user of all containers, if they all have the same.
pub(super) fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let ephemeral: Vec<_> = spec.ephemeral_containers.iter().flatten().map(plain).collect();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).chain(&ephemeral);
    let mut users = containers.map(|it| wanted_user(pod, it));
    let first = users.next()??;
    users.all(|it| it == Some(first)).then(|| u32::try_from(first).ok())?
}

/// The group that owns a pod's volumes.
pub(super) fn volumes_group(pod: &Pod) -> Option<u32> {
    context(pod)?.fs_group.and_then(|it| u32::try_from(it).ok())
}

/// As whom to run it: `account` is the wanted user's in the image, if it is there.
///
/// # Errors
/// When it would be root and must not, in the words of a kubelet.
pub(super) fn identity(
    pod: &Pod,
    container: &Container,
    image: &ImageFacts,
    account: Option<&Account>,
    ids: &Ids,
) -> Result<Identity, String> {
    let own = container.security_context.as_ref();
    let whole = context(pod);
    let wanted = wanted_user(pod, container);
    let not_root = own.and_then(|it| it.run_as_non_root).or_else(|| whole.and_then(|it| it.run_as_non_root));
    if not_root == Some(true) {
        let meta = &pod.metadata;
        let [name, namespace, uid] =
            [&meta.name, &meta.namespace, &meta.uid].map(|it| it.as_deref().unwrap_or_default());
        let of = format!("(pod: {}, container: {})", quote(&format!("{name}_{namespace}({uid})")), container.name);
        match (wanted, &image.user_name) {
            (Some(0), _) => return Err(format!("container's runAsUser breaks non-root policy {of}")),
            (Some(_), _) => {}
            (None, Some(name)) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {of}"
                ));
            }
            (None, None) if image.user == 0 => {
                return Err(format!("container has runAsNonRoot and image will run as root {of}"));
            }
            (None, None) => {}
        }
    }
    let id = |it: i64| u32::try_from(it).map_err(|_| format!("{it} is no user or group"));
    let user = wanted.map(id).transpose()?.unwrap_or(image.user);
    let of_image = user == image.user;
    let group = own.and_then(|it| it.run_as_group).or_else(|| whole.and_then(|it| it.run_as_group));
    let group = match group {
        Some(group) => id(group)?,
        None if of_image => image.group,
        None => account.map_or(0, |it| it.group),
    };
    let mut groups = vec![group];
    let strict = whole.and_then(|it| it.supplemental_groups_policy.as_deref()) == Some("Strict");
    if !strict {
        let listed = if of_image { Some(&image.groups) } else { account.map(|it| &it.groups) };
        // Nobody has asked for these: where there are no ids for them, it goes without.
        groups.extend(listed.into_iter().flatten().filter(|it| ids.has(**it)));
    }
    if let Some(whole) = whole {
        for it in whole.fs_group.iter().chain(whole.supplemental_groups.iter().flatten()) {
            groups.push(id(*it)?);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|it| seen.insert(*it));
    let home = account.map(|it| it.home.clone()).filter(|it| it.starts_with('/'));
    let home = home.unwrap_or_else(|| if user == 0 { "/root" } else { "/" }.to_owned());
    Ok(Identity { user, group, groups, home })
}

/// The account of a user in the texts of /etc/passwd and /etc/group. Lines that make no sense are passed over.
pub(super) fn account(passwd: &str, group: &str, user: u32) -> Option<Account> {
    let mut lines = passwd.lines().map(|it| it.split(':').collect::<Vec<_>>());
    let (name, gid, home) = lines.find_map(|fields| match fields.as_slice() {
        [name, _, uid, gid, _, home, ..] if uid.parse() == Ok(user) => Some((*name, gid.parse().ok()?, *home)),
        _ => None,
    })?;
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|it| it == name).then_some(gid)
    });
    Some(Account { group: gid, groups: groups.take(65_536).collect(), home: home.to_owned() })
}

/// The whole set, sorted.
pub(super) fn capabilities(container: &Container) -> Vec<String> {
    let own = container.security_context.as_ref();
    let all = || CAPABILITIES.into_iter().chain(FURTHER);
    if own.and_then(|it| it.privileged) == Some(true) {
        return sorted(all());
    }
    let lists = own.and_then(|it| it.capabilities.as_ref());
    let names = |it: Option<&Vec<String>>| {
        let upper = it.into_iter().flatten().map(|it| it.to_uppercase());
        upper.map(|it| it.strip_prefix("CAP_").map(str::to_owned).unwrap_or(it)).collect::<Vec<_>>()
    };
    let (add, drop) = (names(lists.and_then(|it| it.add.as_ref())), names(lists.and_then(|it| it.drop.as_ref())));
    let has = |list: &[String], name: &str| list.iter().any(|it| it == name);
    // As runtimes do: "ALL" is the beginning, and single names change it.
    let kept = all().filter(|name| {
        let begin = match (has(&add, "ALL"), has(&drop, "ALL")) {
            (true, _) => true,
            (_, true) => false,
            _ => CAPABILITIES.contains(name),
        };
        (begin || has(&add, name)) && !has(&drop, name)
    });
    sorted(kept)
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<_> = names.map(str::to_owned).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, own: Value) -> (Pod, Container) {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "securityContext": own}]);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}))
                .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        (pod, container)
    }

    fn image(user: u32, user_name: Option<&str>) -> ImageFacts {
        let (groups, user_name) = (vec![7], user_name.map(str::to_owned));
        ImageFacts { user, group: user, groups, user_name, ..crate::pod::given::tests::image() }
    }

    #[test]
    fn what_a_sentry_cannot_give_is_refused() {
        let kernel = "is not to be had with gVisor: each container has a kernel of its own";
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let table = [
            (json!({}), json!({}), None, String::new()),
            (json!({"hostNetwork": true}), json!({}), None, format!("hostNetwork {kernel}")),
            (json!({"hostPID": true}), json!({}), None, format!("hostPID {kernel}")),
            (json!({"hostIPC": true}), json!({}), None, format!("hostIPC {kernel}")),
            (json!({"shareProcessNamespace": true}), json!({}), None, format!("shareProcessNamespace {kernel}")),
            (sysctl("net.ipv4.tcp_syncookies"), json!({}), None, String::new()),
            (
                sysctl("kernel/shm_rmid_forced"),
                json!({}),
                None,
                "the sysctl \"kernel/shm_rmid_forced\" cannot be set with gVisor: only the pod's network is the machine's"
                    .to_owned(),
            ),
            (
                json!({}),
                json!({"privileged": true}),
                None,
                "privileged containers are not to be had with gVisor: it is there to keep the machine away".to_owned(),
            ),
            (
                json!({}),
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}}),
                None,
                "the seccomp profile \"a\" is not to be had with gVisor: the Sentry is under a filter of its own".to_owned(),
            ),
            (
                json!({}),
                json!({}),
                Some("web"),
                "a container cannot see the processes of \"web\" with gVisor: each container has a kernel of its own"
                    .to_owned(),
            ),
        ];
        for (spec, own, target, is) in table {
            let (pod, container) = pod(spec, own);
            let refused = beyond_sentry(&pod).or_else(|| check_sentry(&pod, &container, target).err());
            assert_eq!(refused.unwrap_or_default(), is);
        }
    }

    #[test]
    fn who_must_not_be_root_is_not() {
        let not_root = json!({"securityContext": {"runAsNonRoot": true}});
        let table = [
            (
                json!({}),
                image(0, None),
                "container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)",
            ),
            (
                json!({"runAsUser": 0}),
                image(5, None),
                "container's runAsUser breaks non-root policy (pod: \"p_ns(u)\", container: c)",
            ),
            (
                json!({}),
                image(5, Some("me")),
                "container has runAsNonRoot and image has non-numeric user (me), cannot verify user is non-root \
                 (pod: \"p_ns(u)\", container: c)",
            ),
            (json!({}), image(5, None), ""),
            (json!({"runAsUser": 3}), image(0, Some("me")), ""),
            (json!({"runAsNonRoot": false}), image(0, None), ""),
        ];
        for (own, image, is) in table {
            let (pod, container) = pod(not_root.clone(), own);
            assert_eq!(identity(&pod, &container, &image, None, &Ids::Slots).err().unwrap_or_default(), is);
        }
    }

    #[test]
    fn users_and_groups_come_from_the_container_the_pod_and_the_image() {
        let account = account(
            "root:x:0:0:root:/root:/bin/sh\nbad\nme:x:1000:1001:Me:/home/me:/bin/sh",
            "a:x:50:me,you\nb:x:51:you\nbad:x\nc:x:52:me",
            1000,
        )
        .unwrap();
        assert_eq!(account, Account { group: 1001, groups: vec![50, 52], home: "/home/me".into() });
        let is = |user, group, groups: &[u32], home: &str| Identity {
            user,
            group,
            groups: groups.to_vec(),
            home: home.into(),
        };
        let table = [
            (json!({}), json!({}), None, is(5, 5, &[5, 7], "/")),
            (json!({}), json!({"runAsUser": 1000}), Some(&account), is(1000, 1001, &[1001, 50, 52], "/home/me")),
            (json!({}), json!({"runAsUser": 1234}), None, is(1234, 0, &[0], "/")),
            (
                json!({"securityContext": {"runAsUser": 0, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [10, 9]}}),
                json!({}),
                None,
                is(0, 8, &[8, 9, 10], "/root"),
            ),
            (
                json!({"securityContext": {"supplementalGroupsPolicy": "Strict", "fsGroup": 9}}),
                json!({"runAsUser": 1000}),
                Some(&account),
                is(1000, 1001, &[1001, 9], "/home/me"),
            ),
        ];
        for (spec, own, account, is) in table {
            let (pod, container) = pod(spec, own);
            assert_eq!(identity(&pod, &container, &image(5, None), account, &Ids::Slots), Ok(is));
        }
        let (pod, container) =
            pod(json!({"securityContext": {"supplementalGroups": [10]}}), json!({"runAsUser": 1000}));
        let alone = identity(&pod, &container, &image(5, None), Some(&account), &Ids::Own { count: 1 });
        assert_eq!(alone.unwrap().groups, [1001, 10], "what was asked for is not left out");
    }

    #[test]
    fn capabilities_are_added_to_and_dropped_from_dockers() {
        let of = |lists: Value| capabilities(&pod(json!({}), json!({"capabilities": lists})).1);
        assert_eq!(of(json!({})).len(), 14);
        assert_eq!(of(json!({"drop": ["ALL"]})), Vec::<String>::new());
        assert_eq!(of(json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "cap_kill"]})), ["KILL", "NET_BIND_SERVICE"]);
        assert_eq!(of(json!({"add": ["ALL"], "drop": ["SYS_ADMIN"]})).len(), 40);
        let most = of(json!({"drop": ["CAP_CHOWN"], "add": ["SYS_PTRACE", "NO_SUCH"]}));
        assert!(most.len() == 14 && most.contains(&"SYS_PTRACE".into()) && !most.contains(&"CHOWN".into()));
        assert_eq!(capabilities(&pod(json!({}), json!({"privileged": true})).1).len(), 41);
    }

    fn all() -> Allowed {
        let host = Allow { network: true, pid: true, ipc: true, ports: true, privileged: true };
        Allowed { host, root: true, finds: true, ..Allowed::default() }
    }

    #[test]
    fn what_reaches_out_of_the_pod_is_refused_unless_it_is_allowed() {
        let spaces_of = |network, processes, ipc, users| HostSpaces { network, processes, ipc, users };
        let table = [
            (json!({}), json!({"privileged": true}), "privileged containers are", spaces_of(false, false, false, true)),
            // As in Kubernetes it then has its rights over the pod alone.
            (
                json!({"hostUsers": false}),
                json!({"privileged": true}),
                "privileged containers are",
                HostSpaces::default(),
            ),
            (json!({"hostNetwork": true}), json!({}), "hostNetwork is", spaces_of(true, false, false, true)),
            (json!({"hostPID": true}), json!({}), "hostPID is", spaces_of(false, true, false, true)),
            (json!({"hostIPC": true}), json!({}), "hostIPC is", spaces_of(false, false, true, true)),
        ];
        for (spec, own, what, spaces_are) in table {
            let (pod, container) = pod(spec, own);
            let none = Allowed { root: true, finds: true, ..Allowed::default() };
            let why = check(&pod, &container, &none).unwrap_err();
            assert!(why.starts_with(&format!("{what} refused on this node: `insula up --allow ")), "{why}");
            assert_eq!(spaces(&pod, &none), HostSpaces::default());
            assert_eq!(check(&pod, &container, &all()), Ok(()));
            assert_eq!(spaces(&pod, &all()), spaces_are);
            // Nobody but root has a pod without a user namespace.
            assert!(!spaces(&pod, &Allowed { root: false, ..all() }).users);
        }
        let (sees, container) = pod(json!({"hostPID": true}), json!({}));
        for lacking in [Allowed { root: false, ..all() }, Allowed { finds: false, ..all() }] {
            assert!(check(&sees, &container, &lacking).unwrap_err().starts_with("hostPID is not to be had"));
            assert_eq!(spaces(&sees, &lacking), HostSpaces::default());
        }
        let (unmasked, container) = pod(json!({}), json!({"procMount": "Unmasked"}));
        assert!(check(&unmasked, &container, &all()).unwrap_err().starts_with("containers with an unmasked /proc"));
        let (unmasked, container) = pod(json!({}), json!({"procMount": "Unmasked", "privileged": true}));
        assert_eq!(check(&unmasked, &container, &all()), Ok(()));
        let (free, container) = pod(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), json!({}));
        assert_eq!(check(&free, &container, &Allowed::default()), Ok(()));
        assert!(remark(&free, &container).unwrap().contains("Unconfined"));
    }

    #[test]
    fn host_ports_are_the_hosts_own_unless_an_address_is_named() {
        let of = |on_host: bool, ports: Value| {
            let (mut pod, mut container) = pod(json!({"hostNetwork": on_host}), json!({}));
            container.ports = serde_json::from_value(ports).unwrap();
            pod.spec.as_mut().unwrap().containers = vec![container.clone()];
            (pod, container)
        };
        let ports = json!([
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "192.0.2.1"},
            {"containerPort": 82},
        ]);
        let (with, container) = of(false, ports.clone());
        let found = host_ports(&with, &all());
        let found: Vec<_> = found.iter().map(|it| (it.at.to_string(), it.to)).collect();
        assert_eq!(found, [("127.0.0.1:8080".to_owned(), 80), ("192.0.2.1:8081".to_owned(), 81)]);
        assert_eq!(check(&with, &container, &all()), Ok(()));
        let none = Allowed::default();
        assert!(check(&with, &container, &none).unwrap_err().starts_with("host ports are refused"));
        assert_eq!(host_ports(&with, &none), []);
        // There they say where the pod itself listens.
        assert_eq!(host_ports(&of(true, ports).0, &all()), []);
        let (datagrams, container) = of(false, json!([{"containerPort": 53, "hostPort": 53, "protocol": "UDP"}]));
        let why = check(&datagrams, &container, &all()).unwrap_err();
        assert_eq!(why, "host ports are of TCP on this node: UDP is not carried");
    }

    #[test]
    fn pods_are_rejected_for_what_a_kubelet_rejects() {
        let sysctl =
            |name: &str| pod(json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}}), json!({})).0;
        let refused = refusal(&sysctl("kernel.msgmax")).unwrap();
        assert_eq!(refused.reason, "SysctlForbidden");
        assert_eq!(refused.message, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
        let mut own = sysctl("net.ipv4.tcp_syncookies");
        assert_eq!(refusal(&own), None);
        own.spec.as_mut().unwrap().host_network = Some(true);
        let message = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        assert_eq!(refusal(&own).unwrap().message, message);
        let (armored, _) = pod(json!({}), json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}));
        assert_eq!(refusal(&armored).unwrap().reason, "AppArmor");
    }
}
