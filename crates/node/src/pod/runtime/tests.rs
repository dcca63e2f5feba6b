//! Real pods on this machine, as root or as an ordinary user.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod disks;
mod freeze;
mod host;
mod sentry;

use std::path::{Path, PathBuf};

use kit::{Clock, Shutdown, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::Options;
use crate::pod::log::LogOptions;
use crate::pod::{ContainerConfig, ContainerState, Kernel, Mount, PodConfig, Processes, Root, Volume, VolumeSource};

pub(in crate::pod) struct Place {
    pub(in crate::pod) runtime: Runtime,
    pub(in crate::pod) tasks: Tasks,
    dir: tempfile::TempDir,
}

/// Built beside the tests, with the feature `holes`, for all tests of this crate.
fn launcher() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("node-launcher");
    assert!(program.exists(), "build it first: cargo build -p node --bins --features holes");
    program
}

impl Place {
    pub(in crate::pod) async fn open() -> Self {
        Self::over(tempfile::tempdir().unwrap()).await
    }

    async fn over(dir: tempfile::TempDir) -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let mut options = Options::new(dir.path().join("node"), launcher(), Clock::system(), tasks.clone());
        options.launcher = launcher();
        let engine = Engine::open(options).await.unwrap_or_else(|error| panic!("{}", kit::chain(&error)));
        let runtime = Runtime::open(engine, dir.path().join("node/pods")).await.unwrap();
        Self { runtime, tasks, dir }
    }

    pub(in crate::pod) async fn pod(&self, uid: &str, change: impl FnOnce(&mut PodConfig)) -> PodState {
        let mut config = PodConfig {
            uid: uid.into(),
            namespace: "default".into(),
            name: "p".into(),
            hostname: "p".into(),
            share_processes: false,
            hosts: "127.0.0.1\tlocalhost\n".into(),
            resolv: "# none\n".into(),
            volumes: Vec::new(),
            ..PodConfig::default()
        };
        change(&mut config);
        self.runtime.create(config).await.unwrap_or_else(|error| panic!("{}", kit::chain(&error)))
    }

    pub(in crate::pod) async fn start(&self, uid: &str, config: ContainerConfig) -> ContainerState {
        self.runtime.start(uid, config).await.unwrap_or_else(|error| panic!("{}", kit::chain(&error)))
    }

    /// Waits until the container has ended, and says how and what it has printed.
    async fn end(&self, uid: &str, name: &str, attempt: u32) -> (Exit, String) {
        let mut changed = self.runtime.watch(uid).unwrap();
        loop {
            changed.borrow_and_update();
            let state = self.runtime.state(uid).unwrap();
            let it = state.containers.iter().find(|it| it.name == name && it.attempt == attempt).unwrap();
            if let Some(exit) = it.exit.clone() {
                return (exit, self.printed(uid, name, attempt).await);
            }
            changed.changed().await.unwrap();
        }
    }

    pub(in crate::pod) async fn printed(&self, uid: &str, name: &str, attempt: u32) -> String {
        let log = self.runtime.log(uid, name, attempt).unwrap();
        let read: Vec<_> = futures::StreamExt::collect(log.read(LogOptions::default())).await;
        read.into_iter().map(|it| String::from_utf8_lossy(&it.unwrap()).into_owned()).collect()
    }

    pub(in crate::pod) async fn exec(&self, uid: &str, container: &str, script: &str) -> (i32, String) {
        let config =
            ExecConfig { args: sh(script), env: vec![], stdin: false, stdout: true, stderr: false, tty: false };
        let mut exec = self.runtime.exec(uid, container, config).await.unwrap();
        let mut out = String::new();
        exec.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
        ((&mut exec.exit).await.unwrap(), out)
    }

    /// Makes a pod with a volume, in which commands that cannot be executed are refused in the words that people know.
    /// What mounts the volume, which has a `program`.
    async fn refuses_commands(&self, uid: &str, kernel: Kernel) -> Vec<Mount> {
        let host = self.dir.path().join("volume");
        std::fs::create_dir(&host).unwrap();
        // By another process: what other tests fork would have them open for writing, too, and make them busy.
        let script = "echo rubbish > no-program; printf '#!/bin/sh\\nsleep 1000\\n' > program; chmod 755 *program";
        let made = std::process::Command::new("sh").args(["-c", script]).current_dir(&host).status();
        assert!(made.unwrap().success());
        let volume = Volume { name: "v".into(), source: VolumeSource::Path(host), fs_group: None };
        self.pod(uid, |it| (it.kernel, it.volumes) = (kernel, vec![volume])).await;
        let mounts = vec![Mount { volume: "v".into(), sub_path: String::new(), path: "/v".into(), read_only: true }];
        for (args, why) in [
            ("no-such", "exec: \"no-such\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/etc", "exec: \"/etc\": is a directory"),
            ("/v/no-program", "exec: \"/v/no-program\": exec format error"),
        ] {
            let config = ContainerConfig { args: vec![args.into()], mounts: mounts.clone(), ..container("c", "") };
            let refused = self.runtime.start(uid, config).await;
            assert!(matches!(&refused, Err(StartError::Command(said)) if said == why), "{refused:?}");
        }
        mounts
    }

    pub(in crate::pod) async fn close(self) {
        self.tasks.end().await;
    }
}

fn sh(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(Into::into).to_vec()
}

pub(in crate::pod) fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        attempt: 0,
        root: Root::Host,
        args: sh(script),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("A".into(), "one".into())],
        cwd: "/".into(),
        mounts: Vec::new(),
        user: 0,
        group: 0,
        groups: vec![0],
        read_only_root: false,
        privileged: false,
        filter: None,
        capabilities: ["CHOWN", "KILL", "SETUID", "SETGID"].map(Into::into).to_vec(),
        processes: Processes::Own,
        stdin: false,
        stdin_once: false,
        tty: false,
        limits: wire::node::Limits::default(),
        oom_score_adj: 0,
        termination_message_path: "/dev/termination-log".into(),
        stop_signal: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_its_command_and_its_end_is_known() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let script = "echo $$ $A $(hostname); echo two >&2; pwd; cat /etc/hosts; echo last > /dev/termination-log; exit 3";
    place.start("one", container("c", script)).await;
    let (exit, printed) = place.end("one", "c", 0).await;
    assert_eq!((exit.code, exit.signal, exit.message.as_str()), (3, None, "last\n"));
    let mut lines: Vec<_> = printed.lines().collect();
    // Two streams come in the order in which they are read.
    lines.retain(|it| *it != "two");
    assert_eq!((lines.as_slice(), printed.contains("two\n")), (&["1 one p", "/", "127.0.0.1\tlocalhost"][..], true));
    // Without a shell: once it is started it is what it is.
    let args = ["sleep", "1000"].map(Into::into).to_vec();
    place.start("one", ContainerConfig { attempt: 1, args, ..container("c", "") }).await;
    let (code, out) = place.exec("one", "c", "cat /proc/1/comm; echo $A; exit 7").await;
    assert_eq!((code, out.as_str()), (7, "sleep\none\n"));
    place.runtime.kill("one", "c").await.unwrap();
    assert_eq!(place.end("one", "c", 1).await.0.code, 137);
    let dir = place.runtime.dir("one");
    place.runtime.remove("one").await.unwrap();
    assert!(!dir.exists() && place.runtime.state("one").is_none());
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_dev_of_its_own() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let script =
        "echo words > /dev/mine/words; echo x > /dev/null; ln -s null /dev/other; chmod 666 /dev/zero; exec sleep 1000";
    let words = "/dev/mine/words".to_owned();
    place.start("one", ContainerConfig { termination_message_path: words, ..container("c", script) }).await;
    place.start("one", container("d", "exec sleep 1000")).await;
    let seen =
        "until [ -e /dev/other ]; do :; done; cat /dev/mine/words; echo x > /dev/other; head -c 2 /dev/zero | wc -c";
    assert_eq!(place.exec("one", "c", seen).await, (0, "words\n2\n".to_owned()));
    assert_eq!(place.exec("one", "d", "ls -d /dev/mine /dev/other").await.1, "");
    place.runtime.kill("one", "c").await.unwrap();
    assert_eq!(place.end("one", "c", 0).await.0.message, "words\n");
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_system_calls_holds_for_all_of_a_container() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let filter = Some(crate::guard::pack(&crate::guard::profile(profile).unwrap()));
    let script = "mkdir /a 2>&1; grep Seccomp_filters /proc/self/status; exec sleep 1000";
    place.start("one", ContainerConfig { filter: filter.clone(), ..container("c", script) }).await;
    // What the node's own filter refuses, no profile allows.
    let exec =
        "mkdir /b 2>&1; mount -t tmpfs x /tmp 2>&1 | grep -o 'permission denied\\|Operation not permitted'; exit 3";
    let (code, printed) = place.exec("one", "c", exec).await;
    assert_eq!(code, 3);
    assert!(printed.starts_with("mkdir: cannot create directory '/b': No space left on device\n"), "{printed}");
    assert!(printed.to_lowercase().ends_with("permitted\n") || printed.ends_with("permission denied\n"), "{printed}");
    place.runtime.kill("one", "c").await.unwrap();
    let printed = place.end("one", "c", 0).await.1;
    assert!(printed.starts_with("mkdir: cannot create directory '/a': No space left on device\n"), "{printed}");
    // The shim of an older version would start it without.
    place.runtime.find("one").unwrap().live().generation = 0;
    let refused = place.runtime.start("one", ContainerConfig { filter, ..container("d", "true") }).await;
    assert!(matches!(refused, Err(StartError::Config(_))), "{refused:?}");
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_its_own_limits_and_its_own_network() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let limits = wire::node::Limits { memory: Some(64 << 20), ..wire::node::Limits::default() };
    place.start("one", ContainerConfig { limits, ..container("c", "exec sleep 1000") }).await;
    let look = "ls /sys/class/net /sys/firmware/*; touch /sys/kernel && echo written; true";
    match place.exec("one", "c", look).await.1.as_str() {
        // Its root may be nobody to the machine's own.
        "" if !place.runtime.ids().is_root() => eprintln!("skipped in part: there is no /sys to be had here"),
        seen => assert_eq!(seen, "/sys/class/net:\nlo\n"),
    }
    let groups = &place.runtime.shared.engine.cgroups;
    if !groups.limits_memory() {
        println!("skipped: no control groups limit memory here");
        return place.close().await;
    }
    let read = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes";
    assert_eq!(place.exec("one", "c", read).await.1, "67108864\n");
    let write = "for it in $(find /sys/fs/cgroup -name cgroup.procs); do echo 0 > $it && echo written; done; true";
    assert_eq!(place.exec("one", "c", write).await, (0, String::new()));
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_stored_is_known_and_has_an_end() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let limits = wire::node::Limits { disk: Some(5 << 20), ..Default::default() };
    let script = "head -c 65536 /dev/zero | tr '\\0' x; echo; exec sleep 1000";
    place.start("one", ContainerConfig { limits, ..container("c", script) }).await;
    assert_eq!(place.exec("one", "c", "head -c 10M /dev/zero > /tmp/a").await.0, 0);
    while place.printed("one", "c", 0).await.len() < 65536 {
        tokio::task::yield_now().await;
    }
    let stored = place.runtime.stored("one", "c").await;
    assert!(((10 << 20) + 65536..11 << 20).contains(&stored), "{stored}");
    let (code, wrote) = place.exec("one", "c", "head -c 30M /dev/zero > /b; stat -c %s /b").await;
    let wrote: u64 = wrote.trim().parse().unwrap();
    assert!(code == 0 && wrote > 10 << 20 && wrote < 12 << 20, "16 MiB above the limit there is no more: {wrote}");
    place.runtime.kill("one", "c").await.unwrap();
    place.end("one", "c", 0).await;
    let logs = place.runtime.stored("one", "c").await;
    assert!((65536..1 << 20).contains(&logs), "{logs}");
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_said() {
    let place = Place::open().await;
    place.refuses_commands("one", Kernel::Machine).await;
    let climbs = Mount { volume: "v".into(), sub_path: "../..".into(), path: "/v".into(), read_only: false };
    let refused = place.runtime.start("one", ContainerConfig { mounts: vec![climbs], ..container("c", "true") }).await;
    assert!(matches!(&refused, Err(StartError::SubPath(volume)) if volume == "v"), "{refused:?}");
    assert!(place.runtime.state("one").unwrap().containers.is_empty());
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_shared_and_each_root_is_its_own() {
    let place = Place::open().await;
    let host = place.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("given"), "given").unwrap();
    let volume = |name: &str, source| Volume { name: name.into(), source, fs_group: None };
    let volumes = vec![
        volume("disk", VolumeSource::Path(host.clone())),
        volume("memory", VolumeSource::Memory { size: Some(1 << 20) }),
    ];
    place.pod("one", |it| (it.volumes, it.share_processes) = (volumes, true)).await;
    let mount = |volume: &str, sub_path: &str, path: &str, read_only| Mount {
        volume: volume.into(),
        sub_path: sub_path.into(),
        path: path.into(),
        read_only,
    };
    let mounts = vec![mount("disk", "", "/disk", false), mount("memory", "", "/deep/memory", false)];
    let shared = |name, script| {
        let processes = Processes::Pod;
        ContainerConfig { processes, mounts: mounts.clone(), ..container(name, script) }
    };
    place
        .start("one", shared("a", "echo x > /deep/memory/f; echo x > /tmp/f; echo x > /disk/made; exec sleep 1111"))
        .await;
    place.start("one", shared("b", "exec sleep 2222")).await;
    let seen = "until [ -s /disk/made ]; do :; done; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o '[s]leep 1111'; cat /disk/given; ls /tmp; df /deep/memory | grep -c tmpfs";
    assert_eq!(place.exec("one", "b", seen).await.1, "sleep 1111\ngiven1\n");
    assert_eq!(
        place.exec("one", "b", "tr -d '\\0' < /proc/1/cmdline").await.1,
        "pause",
        "and nothing of the machine's"
    );
    assert_eq!(std::fs::read_to_string(host.join("made")).unwrap(), "x\n");
    let mounts = vec![mount("disk", "sub/dir", "/ro", true)];
    place.start("one", ContainerConfig { mounts, read_only_root: true, ..container("c", "exec sleep 1000") }).await;
    let (code, _) =
        place.exec("one", "c", "touch /ro/x 2>/dev/null || touch /x 2>/dev/null || touch /usr/x 2>/dev/null").await;
    assert!(code != 0 && host.join("sub/dir").is_dir());
    // What was looked at was no link; whoever may write there has made it one since.
    std::os::unix::fs::symlink(&host, place.dir.path().join("link")).unwrap();
    for path in ["link", "link/sub"] {
        let volumes = vec![volume("disk", VolumeSource::Path(place.dir.path().join(path)))];
        let config = PodConfig { uid: "two".into(), volumes, ..place.runtime.state("one").unwrap().config };
        assert!(place.runtime.create(config).await.is_err(), "{path}");
    }
    place.runtime.remove("two").await.unwrap();
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_an_input_reach_the_command() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let reads = ContainerConfig { stdin: true, stdin_once: true, ..container("c", "cat; echo end") };
    place.start("one", reads).await;
    let mut attached = place.runtime.attach("one", "c", true).unwrap();
    let mut input = attached.stdin.take().unwrap();
    input.write_all(b"hello\n").await.unwrap();
    input.shutdown().await.unwrap();
    let (exit, printed) = place.end("one", "c", 0).await;
    assert_eq!((exit.code, printed.as_str()), (0, "hello\nend\n"));
    let talks = ContainerConfig {
        attempt: 1,
        stdin: true,
        tty: true,
        ..container("c", "stty -echo; tty; read it; echo got $it")
    };
    place.start("one", talks).await;
    let mut attached = place.runtime.attach("one", "c", true).unwrap();
    attached.resize.unwrap().to(30, 90).unwrap();
    attached.stdin.as_mut().unwrap().write_all(b"that\n").await.unwrap();
    let (exit, printed) = place.end("one", "c", 1).await;
    assert!(exit.code == 0 && printed.contains("/dev/pts/0") && printed.contains("got that"), "{printed:?}");
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_a_pod_is_reached_from_inside_its_network() {
    let place = Place::open().await;
    place.pod("one", |_| {}).await;
    let script = "import socket\ns = socket.create_server(('127.0.0.1', 8080))\nprint('listens', flush=True)\n\
        c, _ = s.accept()\nc.sendall(b'hello')\nc.close()";
    let serves = ContainerConfig { args: ["python3", "-c", script].map(Into::into).to_vec(), ..container("c", "") };
    let mut output = None;
    place.start("one", serves).await;
    if let Some(attached) = place.runtime.attach("one", "c", true) {
        output = Some(attached.output);
    }
    if place.printed("one", "c", 0).await.is_empty() {
        output.unwrap().recv().await.unwrap();
    }
    let mut said = String::new();
    place.runtime.dial("one", 8080).await.unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    assert!(place.runtime.dial("one", 8081).await.is_err());
    place.close().await;
}

/// Is a node of its own, when another test starts it so.
const ELSEWHERE: &str = "INSULA_TEST_POD_DIR";
/// The step at which it dies; without one it stays until it is killed.
const DIES: &str = "INSULA_TEST_POD_STEP";
/// Its pod is left frozen.
const FROZEN: &str = "INSULA_TEST_POD_FROZEN";
/// Its pod has kernels of its own.
const SENTRY: &str = "INSULA_TEST_POD_SENTRY";

#[test]
#[allow(clippy::disallowed_methods, reason = "how one test tells another that it is to be a process of its own")]
fn elsewhere() {
    let Some(dir) = std::env::var_os(ELSEWHERE) else { return };
    let step = std::env::var(DIES).ok();
    let run = async {
        let tasks = Tasks::new(Shutdown::new());
        let mut options = Options::new(PathBuf::from(&dir).join("node"), launcher(), Clock::system(), tasks.clone());
        options.launcher = launcher();
        let data = options.data.clone();
        let runtime = Runtime::open(Engine::open(options).await.unwrap(), data.join("pods")).await.unwrap();
        let place = Place { runtime, tasks, dir: tempfile::tempdir().unwrap() };
        match step {
            Some(step) => die(&place, &step, Path::new(&dir)).await,
            None if std::env::var_os(FROZEN).is_some() => freeze::stay(&place).await,
            None => stay(&place, std::env::var_os(SENTRY).is_some()).await,
        }
        println!("ready");
        std::future::pending::<()>().await;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(run);
}

async fn stay(place: &Place, sentry: bool) {
    place.pod("one", |it| it.kernel = if sentry { Kernel::Sentry } else { Kernel::Machine }).await;
    let reads = ContainerConfig { stdin: true, stdin_once: true, ..container("reads", "echo begun; cat; exit 5") };
    place.start("one", reads).await;
    place.start("one", container("ends", "sleep 0.2; echo words > /dev/termination-log; exit 6")).await;
}

/// The whole life of a pod, as far as the node lives.
async fn die(place: &Place, step: &str, dir: &Path) {
    crate::fault::die_at(step);
    let mut volumes = vec![
        Volume { name: "disk".into(), source: VolumeSource::Path(dir.join("volume")), fs_group: None },
        Volume { name: "memory".into(), source: VolumeSource::Memory { size: None }, fs_group: None },
    ];
    let claim = dir.join("claim");
    if place.runtime.bounded(&claim, Some(1 << 20)).await.unwrap() {
        volumes.push(Volume { name: "claim".into(), source: VolumeSource::Disk(claim), fs_group: None });
    }
    place.pod("one", |it| it.volumes = volumes).await;
    // Whoever runs it is known by the name of the directory.
    place.start("one", container("stays", &format!("sleep 1000; : {}", dir.display()))).await;
    place.start("one", container("ends", "exit 6")).await;
    place.end("one", "ends", 0).await;
    if place.runtime.no_freezer().is_none() {
        place.start("one", container("stays-too", "exec sleep 1000")).await;
        place.runtime.freeze("one", true).await.unwrap();
        place.runtime.freeze("one", false).await.unwrap();
    }
    place.runtime.remove("one").await.unwrap();
}

/// Waits until no process has the name of a directory in its command line.
async fn nobody_left(dir: &Path) {
    let name = dir.display().to_string();
    let waited = tokio::task::spawn_blocking(move || {
        let all = || std::fs::read_dir("/proc").unwrap().flatten().filter_map(|it| it.file_name().into_string().ok());
        let has = |pid: &String| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name)
        };
        while let Some(pid) = all().find(has) {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            if let Ok(end) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
                let mut end = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
                let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
                assert_ne!(rustix::event::poll(&mut end, Some(&patience)).unwrap(), 0, "{pid:?} stays");
            }
        }
    });
    waited.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_at_any_step_leaves_no_part_of_a_pod_that_the_next_one_does_not_know() {
    let place = Place::open().await;
    let freezes = place.runtime.no_freezer().is_none();
    place.close().await;
    let steps = crate::fault::POD_STEPS.iter();
    let steps = steps.filter(|it| freezes || !["container: stands still", "container: goes on"].contains(it));
    let runs = steps.map(|step| async move {
        let dir = tempfile::tempdir().unwrap();
        for name in ["volume", "claim"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut other = std::process::Command::new(std::env::current_exe().unwrap());
        other.args(["--exact", "pod::runtime::tests::elsewhere"]).env(ELSEWHERE, dir.path()).env(DIES, step);
        let died = tokio::task::spawn_blocking(move || other.output().unwrap()).await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&died.status), Some(9), "{step}: {died:?}");

        let path = dir.path().to_owned();
        let place = Place::over(dir).await;
        let known = place.runtime.list();
        let alive = known.iter().any(|it| it.alive);
        assert_eq!(alive, matches!(*step, "pod: alive") || step.starts_with("container: "), "{step}: {known:?}");
        if alive {
            // It can be gone on with, whatever was under way: what was executed runs, what was not can be started.
            if place.runtime.no_freezer().is_none() {
                place.runtime.freeze("one", false).await.unwrap();
            }
            let running = |it: &ContainerState| it.name == "stays" && it.exit.is_none();
            if !known[0].containers.iter().any(running) {
                place.start("one", ContainerConfig { attempt: 1, ..container("stays", "sleep 1000") }).await;
            }
            assert_eq!(place.exec("one", "stays", "echo alive").await.1, "alive\n", "{step}");
        }
        let groups = place.runtime.shared.engine.cgroups.dirs(&crate::engine::pods::group("one"));
        place.runtime.remove("one").await.unwrap();
        assert!(groups.iter().all(|it| !it.exists()), "{step}");
        assert_eq!(std::fs::read_dir(path.join("node/pods")).unwrap().count(), 0, "{step}");
        place.tasks.end().await;
        nobody_left(&path).await;
        disks::no_device(&path.join("claim")).await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*path.display().to_string()), "{step}: {mounts}");
    });
    futures::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outlives_its_node() {
    outlives(&[]).await;
}

/// A node was here, and was killed.
fn left(dir: &Path, env: &[(&str, &str)]) {
    let mut other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pod::runtime::tests::elsewhere", "--nocapture"])
        .env(ELSEWHERE, dir)
        .envs(env.iter().copied())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = std::io::BufReader::new(other.stdout.take().unwrap());
    assert!(std::io::BufRead::lines(said).any(|it| it.unwrap().contains("ready")));
    other.kill().unwrap();
    other.wait().unwrap();
}

async fn outlives(env: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    left(dir.path(), env);
    let place = Place::over(dir).await;
    let (exit, _) = place.end("one", "ends", 0).await;
    assert_eq!((exit.code, exit.message.as_str(), exit.unseen), (6, "words\n", false), "{exit:?}");
    let mut attached = place.runtime.attach("one", "reads", true).unwrap();
    let mut input = attached.stdin.take().unwrap();
    input.write_all(b"after\n").await.unwrap();
    input.shutdown().await.unwrap();
    let (exit, printed) = place.end("one", "reads", 0).await;
    assert_eq!((exit.code, printed.as_str()), (5, "begun\nafter\n"));
    let groups = place.runtime.shared.engine.cgroups.dirs(&crate::engine::pods::group("one"));
    place.runtime.remove("one").await.unwrap();
    assert!(groups.iter().all(|it| !it.exists()));
    place.close().await;
}
