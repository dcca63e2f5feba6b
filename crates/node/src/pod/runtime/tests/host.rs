//! Pods that have something of the host's in place of their own.

use std::os::unix::fs::FileTypeExt;

use super::*;
use crate::pod::HostSpaces;

/// The namespaces of whom asks, one in each line.
const SPACES: &str = "for it in net pid ipc user uts mnt; do readlink /proc/self/ns/$it; done";

fn ours(name: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_namespaces_of_the_host_that_it_is_given_and_no_others() {
    let place = Place::open().await;
    let users = place.runtime.ids().is_root();
    let mut all = vec![
        ("none", HostSpaces::default()),
        ("network", HostSpaces { network: true, users, ..HostSpaces::default() }),
        ("ipc", HostSpaces { ipc: true, users, ..HostSpaces::default() }),
    ];
    if users && place.runtime.finds_processes() {
        all.push(("processes", HostSpaces { processes: true, users, ..HostSpaces::default() }));
    }
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (uid, host) in all {
        place.pod(uid, |it| it.host = host).await;
        let processes = if host.processes { Processes::Pod } else { Processes::Own };
        place.start(uid, ContainerConfig { processes, ..container("c", "exec sleep 1000") }).await;
        let (_, said) = place.exec(uid, "c", SPACES).await;
        let is_the_hosts: Vec<bool> = said
            .lines()
            .zip(["net", "pid", "ipc", "user", "uts", "mnt"])
            .map(|(theirs, name)| theirs == ours(name))
            .collect();
        assert_eq!(is_the_hosts, [host.network, host.processes, host.ipc, host.users, false, false], "{uid}: {said}");
        // What of it can be seen is the same: a listener, a file in shared memory, a process.
        let dial = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
        let (reached, _) = place.exec(uid, "c", &dial).await;
        assert_eq!(reached == 0, host.network, "{uid}");
        let (sees, _) = place.exec(uid, "c", &format!("test -d /proc/{}", std::process::id())).await;
        assert_eq!(sees == 0, host.processes, "{uid}");
        let name = format!("insula-test-{}", std::process::id());
        place.exec(uid, "c", &format!("echo x > /dev/shm/{name}")).await;
        assert_eq!(std::fs::remove_file(format!("/dev/shm/{name}")).is_ok(), host.ipc, "{uid}");
        // It is nobody's root all the same: no more than the capabilities that it was given, behind the filter.
        let (_, status) = place.exec(uid, "c", "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status").await;
        let kept = "CapEff:\t00000000000000e1\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        assert_eq!(status, kept, "{uid}");
        let (writes, _) = place.exec(uid, "c", "test -w /proc/sys/kernel/core_pattern").await;
        assert_ne!(writes, 0, "{uid}");
        place.runtime.remove(uid).await.unwrap();
    }
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_pod_that_sees_the_hosts_processes() {
    let place = Place::open().await;
    if !place.runtime.ids().is_root() || !place.runtime.finds_processes() {
        eprintln!("skipped: this node gives no pod the processes of the host");
        return place.close().await;
    }
    let host = HostSpaces { processes: true, users: true, ..HostSpaces::default() };
    let runs = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty());
    for by in ["remove", "shim"] {
        place.pod(by, |it| it.host = host).await;
        let script = "setsid sleep 1000 & echo $!; exec sleep 1000";
        place.start(by, ContainerConfig { processes: Processes::Pod, ..container("c", script) }).await;
        let (_, said) = place.exec(by, "c", "sleep 1000 >/dev/null 2>&1 & echo $!").await;
        let orphan = said.trim().to_owned();
        assert!(runs(&orphan), "{said}");
        let mut changed = place.runtime.watch(by).unwrap();
        if by == "remove" {
            place.runtime.remove(by).await.unwrap();
        } else {
            let shim = place.runtime.find(by).unwrap().live().process.unwrap().pid;
            rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
                .unwrap();
            while place.runtime.state(by).unwrap().alive {
                changed.changed().await.unwrap();
            }
            // Whoever cleared up has ended.
            drop(place.runtime.find(by).unwrap().work.lock().await);
        }
        assert!(!runs(&orphan), "{by}");
        let groups = place.runtime.shared.engine.cgroups.dirs(&crate::engine::pods::group(by));
        assert!(groups.iter().all(|it| !it.exists()), "{by}");
    }
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_has_all_rights_over_what_its_pod_has() {
    let place = Place::open().await;
    let root = place.runtime.ids().is_root();
    let devices = || -> Vec<String> {
        let all = std::fs::read_dir("/dev")
            .unwrap()
            .flatten()
            .filter(|it| it.file_type().is_ok_and(|it| it.is_char_device() || it.is_block_device()));
        all.map(|it| it.file_name().into_string().unwrap()).filter(|it| it != "console").collect()
    };
    for users in [false, root] {
        let before = devices();
        let uid = if users { "machine" } else { "own" };
        place.pod(uid, |it| it.host.users = users).await;
        let capabilities = ["SYS_ADMIN", "NET_ADMIN", "CHOWN"].map(Into::into).to_vec();
        let privileged = ContainerConfig { privileged: true, capabilities, ..container("c", "exec sleep 1000") };
        place.start(uid, privileged).await;
        place.start(uid, container("plain", "exec sleep 1000")).await;
        let (_, status) = place.exec(uid, "c", "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status").await;
        assert_eq!(status, "NoNewPrivs:\t0\nSeccomp:\t0\n");
        let (mounts, _) = place.exec(uid, "c", "mount -t tmpfs none /mnt && touch /mnt/x").await;
        assert_eq!(mounts, 0, "{uid}");
        let writes = |container: &'static str| place.exec(uid, container, "test -w /proc/sys/vm/overcommit_ratio");
        assert_eq!((writes("c").await.0 == 0, writes("plain").await.0 == 0), (users, false), "{uid}");
        let (sysfs, _) = place.exec(uid, "c", "test -d /sys/kernel").await;
        assert_eq!(sysfs, 0, "{uid}");
        let writes = place.exec(uid, "c", "touch /sys/kernel").await.0 == 0;
        assert_eq!(writes, users, "{uid}");
        // The devices that whoever it is on the host may open: root all of them.
        let (_, theirs) =
            place.exec(uid, "c", "ls /dev; echo ok > /dev/null; dd if=/dev/zero bs=1 count=1 2>/dev/null").await;
        // Others make and remove some meanwhile.
        let after = devices();
        for it in before.into_iter().filter(|it| after.contains(it)) {
            let common = ["null", "zero", "full", "random", "urandom", "tty"].contains(&it.as_str());
            assert!(!(users || common) || theirs.lines().any(|line| line == it), "{uid}: {it} in {theirs}");
        }
        assert!(theirs.ends_with('\0'), "{theirs:?}");
        place.runtime.remove(uid).await.unwrap();
    }
    place.close().await;
}
