//! What one container is started with.

use std::io::Read;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::env::{self, Environment, Found, Named};
use super::objects::{ObjectKind, Seen, locked};
use super::security::{self, Account};
use super::volumes::is_read_only;
use super::{ConfigError, Inner, PodFacts, Record, names, profile, resources};
use crate::guard::Packed;
use crate::pod::types::{ContainerConfig, ImageFacts, Kernel, Mount, Processes, Root};

const CONFIG: &str = "CreateContainerConfigError";
const CREATE: &str = "CreateContainerError";
/// Of an image's /etc/passwd and /etc/group.
const ACCOUNTS: u64 = 1 << 20;

pub(super) async fn config(
    inner: &Inner,
    pod: &Pod,
    container: &Container,
    image: &ImageFacts,
    attempt: u32,
    facts: &PodFacts,
) -> Result<ContainerConfig, ConfigError> {
    let wrong = |message: String| ConfigError { reason: CONFIG, message };
    if facts.kernel == Kernel::Sentry {
        // No flag allows it.
        security::check_sentry(pod, container, facts.target.as_deref()).map_err(wrong)?;
    }
    security::check(pod, container, &inner.allowed).map_err(wrong)?;
    let filter = filter(inner, pod, container).await.map_err(|message| ConfigError { reason: CREATE, message })?;
    let mut seen = Seen::new();
    let found = look(inner, pod, container, &mut seen).await.map_err(wrong)?;
    let given = env::given(pod, container, &found, facts, &inner.node).map_err(|message| {
        lack(inner, pod, seen);
        wrong(message)
    })?;
    let mounts = mounts(pod, container, &given).map_err(wrong)?;
    let user = security::wanted_user(pod, container).and_then(|it| u32::try_from(it).ok()).unwrap_or(image.user);
    let account = account(image.root.clone(), user).await;
    let who = security::identity(pod, container, image, account.as_ref(), &inner.node.ids).map_err(wrong)?;
    let long = || wrong("an argument is longer than Linux takes".to_owned());
    let args = args(container, image, &given).ok_or_else(long)?;
    if args.is_empty() {
        return Err(ConfigError { reason: CREATE, message: "no command specified".to_owned() });
    }
    let name = names::host_name(pod, &inner.node.dns).map_err(wrong)?;
    let tty = container.tty == Some(true);
    // In the host's own network there is no proxy of ours.
    let elsewhere = pod.spec.as_ref().and_then(|it| it.host_network) == Some(true);
    let proxy = if elsewhere { &[] } else { inner.node.proxy.as_slice() };
    let env = env::whole(&name.kernel, tty, &who.home, proxy, &image.env, &given).map_err(wrong)?;
    let own = container.security_context.as_ref();
    let dir = container.working_dir.as_deref().filter(|it| !it.is_empty()).unwrap_or(&image.cwd);
    let shared = pod.spec.as_ref().and_then(|it| it.share_process_namespace) == Some(true)
        || security::spaces(pod, &inner.allowed).processes;
    let message = container.termination_message_path.as_deref().filter(|it| !it.is_empty());
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        root: image.root.clone(),
        args,
        env,
        cwd: if dir.starts_with('/') { dir.to_owned() } else { format!("/{dir}") },
        mounts,
        user: who.user,
        group: who.group,
        groups: who.groups,
        read_only_root: own.and_then(|it| it.read_only_root_filesystem) == Some(true),
        capabilities: security::capabilities(container),
        privileged: security::is_privileged(container),
        filter,
        processes: match &facts.target {
            _ if shared => Processes::Pod,
            Some(target) => Processes::Of(target.clone()),
            None => Processes::Own,
        },
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty,
        limits: resources::limits(pod, container),
        oom_score_adj: resources::oom_score_adj(pod, container, inner.node.memory),
        termination_message_path: message.unwrap_or("/dev/termination-log").to_owned(),
        stop_signal: image.stop_signal,
    })
}

/// The profile of system calls that it names, read anew for each start.
async fn filter(inner: &Inner, pod: &Pod, container: &Container) -> Result<Option<Packed>, String> {
    let Some(name) = profile::named(pod, container).map(str::to_owned) else { return Ok(None) };
    let dir = inner.node.profiles.clone();
    let loaded = tokio::task::spawn_blocking(move || profile::load(&dir, &name)).await;
    loaded.map_err(|_| "reading a seccomp profile failed".to_owned())?.map(Some)
}

async fn look(inner: &Inner, pod: &Pod, container: &Container, seen: &mut Seen) -> Result<Found, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let named = Named::by(container);
    let objects = &inner.objects;
    let configs = objects.get(ObjectKind::ConfigMap, namespace, &named.configs, seen).await?;
    let secrets = objects.get(ObjectKind::Secret, namespace, &named.secrets, seen).await?;
    let links = pod.spec.as_ref().and_then(|it| it.enable_service_links).unwrap_or(true);
    let services = objects.services(namespace, links).await?;
    Ok(Found { configs, secrets, services })
}

/// Something among these is missing, or lacks a key: whatever becomes of them is worth another try.
fn lack(inner: &Inner, pod: &Pod, seen: Seen) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut pods = locked(&inner.pods);
    let record = pods.entry(uid).or_insert_with(Record::new);
    for (kind, _) in seen.keys() {
        record.watches.entry(*kind).or_insert_with(|| {
            let watched = inner.objects.watch(*kind, namespace);
            let mark = watched.mark();
            (Arc::clone(&watched), mark)
        });
    }
    record.lacking.extend(seen);
    record.revised.send_replace(());
}

/// `None` when one would be longer than a process can be given.
fn args(container: &Container, image: &ImageFacts, given: &Environment) -> Option<Vec<String>> {
    let expanded = |all: &Option<Vec<String>>| -> Option<Vec<String>> {
        all.iter().flatten().map(|it| given.expand(it)).collect()
    };
    let (mut command, mut args) = (expanded(&container.command)?, expanded(&container.args)?);
    if command.is_empty() {
        command.clone_from(&image.entrypoint);
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
    }
    command.append(&mut args);
    Some(command)
}

fn mounts(pod: &Pod, container: &Container, given: &Environment) -> Result<Vec<Mount>, String> {
    let volumes = pod.spec.iter().flat_map(|it| it.volumes.iter().flatten());
    let one = |mount: &VolumeMount| {
        let name = &mount.name;
        let volume = volumes
            .clone()
            .find(|it| it.name == *name)
            .ok_or_else(|| format!("cannot find volume {name:?} to mount into container {:?}", container.name))?;
        if let Some(it) = mount.mount_propagation.as_deref().filter(|it| !matches!(*it, "" | "None")) {
            return Err(format!(
                "mount propagation {it} is not to be had on this node: volumes are mounted once, for the pod"
            ));
        }
        let read_only = mount.read_only == Some(true) || is_read_only(volume);
        let path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        Ok(Mount { volume: name.clone(), sub_path: sub_path(mount, given)?, path, read_only })
    };
    container.volume_mounts.iter().flatten().map(one).collect()
}

/// The path in the volume, which does not climb out as far as its text says.
fn sub_path(mount: &VolumeMount, given: &Environment) -> Result<String, String> {
    let path = match mount.sub_path_expr.as_deref().filter(|it| !it.is_empty()) {
        None => mount.sub_path.clone().unwrap_or_default(),
        Some(expression) => {
            let missing = std::cell::RefCell::new(std::collections::BTreeSet::new());
            let value = |name: &str| match given.get(name).filter(|it| !it.is_empty()) {
                Some(value) => Some(value),
                None => {
                    missing.borrow_mut().insert(name.to_owned());
                    None
                }
            };
            let path = super::expand::expand(expression, value);
            let missing: Vec<_> = missing.take().into_iter().collect();
            if !missing.is_empty() {
                return Err(format!("missing value for {}", missing.join(", ")));
            }
            path.ok_or("the sub path is too long")?
        }
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|it| it == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    if path.contains('\0') || path.len() > 4096 {
        return Err("unable to provision SubPath: it is no path".to_owned());
    }
    Ok(path)
}

/// What an image says of a user. Nothing in an image leads out of it.
async fn account(root: Root, user: u32) -> Option<Account> {
    let Root::Image(root) = root else { return None };
    let look = tokio::task::spawn_blocking(move || {
        let dir =
            rustix::fs::openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let text = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat2(&dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
            let mut bytes = Vec::new();
            std::fs::File::from(file).take(ACCOUNTS).read_to_end(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        security::account(&text("etc/passwd")?, &text("etc/group").unwrap_or_default(), user)
    });
    look.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn given(all: &[(&str, &str)]) -> Environment {
        let mut env = Environment::default();
        for (name, value) in all {
            env.set(name, (*value).to_owned()).unwrap();
        }
        env
    }

    #[test]
    fn commands_lie_over_entrypoints_and_arguments_over_commands() {
        let image = ImageFacts {
            entrypoint: vec!["entry".into(), "$(A)".into()],
            cmd: vec!["cmd".into()],
            ..crate::pod::given::tests::image()
        };
        let table = [
            (json!({}), vec!["entry", "$(A)", "cmd"]),
            (json!({"args": ["x", "$(A)"]}), vec!["entry", "$(A)", "x", "a"]),
            (json!({"command": ["run", "$(A)"]}), vec!["run", "a"]),
            (json!({"command": ["run"], "args": ["$$(A)", "$(B)"]}), vec!["run", "$(A)", "$(B)"]),
        ];
        for (container, is) in table {
            let mut container: Value = container;
            container["name"] = json!("c");
            let container: Container = serde_json::from_value(container).unwrap();
            assert_eq!(args(&container, &image, &given(&[("A", "a")])).unwrap(), is);
        }
    }

    #[test]
    fn mounts_are_of_volumes_that_are_there_and_stay_in_them() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s"}},
            {"name": "p", "persistentVolumeClaim": {"claimName": "p", "readOnly": true}},
        ]}}))
        .unwrap();
        let of = |mount: Value| {
            let mut mount = mount;
            mount["mountPath"] = json!("data");
            let container = serde_json::from_value(json!({"name": "c", "volumeMounts": [mount]})).unwrap();
            let all = mounts(&pod, &container, &given(&[("A", "a/b"), ("EMPTY", ""), ("UP", "..")]))?;
            Ok(all.into_iter().map(|it| (it.path, it.sub_path, it.read_only)).collect::<Vec<_>>())
        };
        let ok = |sub: &str, read_only| Ok::<_, String>(vec![("/data".to_owned(), sub.to_owned(), read_only)]);
        let no = |why: &str| Err(why.to_owned());
        let table = [
            (json!({"name": "e"}), ok("", false)),
            (json!({"name": "e", "readOnly": true, "subPath": "x"}), ok("x", true)),
            (json!({"name": "s"}), ok("", true)),
            (json!({"name": "p"}), ok("", true)),
            (json!({"name": "e", "subPathExpr": "x/$(A)"}), ok("x/a/b", false)),
            (json!({"name": "e", "subPathExpr": "$(NO)$(EMPTY)$(A)"}), no("missing value for EMPTY, NO")),
            (json!({"name": "e", "subPath": "/x"}), no("error SubPath `/x` must not be an absolute path")),
            (
                json!({"name": "e", "subPathExpr": "a/$(UP)"}),
                no("unable to provision SubPath `a/..`: must not contain '..'"),
            ),
            (json!({"name": "x"}), no("cannot find volume \"x\" to mount into container \"c\"")),
        ];
        for (mount, is) in table {
            assert_eq!(of(mount), is);
        }
        assert!(of(json!({"name": "e", "mountPropagation": "Bidirectional"})).is_err());
    }

    #[tokio::test]
    async fn an_images_links_do_not_lead_out_of_it() {
        let at = tempfile::tempdir().unwrap();
        let root = at.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(at.path().join("passwd"), "out:x:5:6::/out:").unwrap();
        std::os::unix::fs::symlink("../../passwd", root.join("etc/passwd")).unwrap();
        assert_eq!(account(Root::Image(root.clone()), 5).await, None);
        std::fs::write(root.join("passwd"), "in:x:5:7::/in:").unwrap();
        assert_eq!(account(Root::Image(root), 5).await.map(|it| it.group), Some(7));
    }
}
