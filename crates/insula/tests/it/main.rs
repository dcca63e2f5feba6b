//! The built program, from outside.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that cannot go on has failed")]

mod apart;
mod backup;
mod pods;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::{Pid, Signal, kill_process};

fn insula() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
    command
        .stdin(Stdio::null())
        .env_remove("OPENAI_API_KEY")
        .env_remove("OPENAI_BASE_URL")
        .env_remove("INSULA_DATA_DIR");
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running `insula up`, killed when dropped.
struct Up {
    process: Child,
    kubeconfig: PathBuf,
    gateway: String,
    key: String,
}

impl Up {
    /// Starts it and waits until it says on stderr that it is up.
    fn start(args: &[&str], scratch: &Path) -> Self {
        let ready = scratch.join(format!("ready-{}.json", kit::id()));
        let log = std::fs::File::create(scratch.join("log")).unwrap();
        let mut process = insula().arg("up").args(args).arg("--ready-file").arg(&ready).stderr(log).spawn().unwrap();
        // The file appears by a rename in this directory: look again whenever the directory changes.
        let changes = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty()).unwrap();
        rustix::fs::inotify::add_watch(&changes, scratch, rustix::fs::inotify::WatchFlags::MOVED_TO).unwrap();
        while !ready.exists() {
            assert_eq!(process.try_wait().unwrap(), None, "{}", std::fs::read_to_string(scratch.join("log")).unwrap());
            let timeout = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
            let mut poll = [rustix::event::PollFd::new(&changes, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&timeout)).unwrap();
        }
        let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
        assert_eq!(ready["pid"], process.id());
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self { process, kubeconfig: text("kubeconfig").into(), gateway: text("gateway"), key: text("apiKey") }
    }

    async fn client(&self) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    async fn config_maps(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client().await)
    }

    fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[test]
fn the_demo_shows_the_quickstart_and_ends_well() {
    let done = insula().arg("demo").output().unwrap();
    let said = said(&done);
    assert!(done.status.success(), "{said}");
    for words in ["Roman apartment block", "One, two, three, four, five.", "name-it          Succeeded", "Next:"] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    if said.contains("this machine makes no sandboxes") {
        return println!("skipped: the tool call, since this machine makes no sandboxes");
    }
    let acts = [
        "→ execute_command {\"command\":\"python3 primes.py\"}",
        "← 2 3 5 7 11 13 17 19 23 29",
        "from the sandbox write-and-run-",
    ];
    for words in acts {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_found_again_after_sigkill() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let args = ["--data-dir", data.to_str().unwrap()];
    let mut first = Up::start(&args, scratch.path());
    let maps = first.config_maps().await;
    for i in 0..20 {
        let map = serde_json::from_value(serde_json::json!({"metadata": {"name": format!("m{i}")}})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let kubeconfig = std::fs::read(&first.kubeconfig).unwrap();
    assert!(!first.signal(Signal::KILL).success());
    let mut second = Up::start(&args, scratch.path());
    assert_eq!(std::fs::read(&second.kubeconfig).unwrap(), kubeconfig, "kubectl needs no new kubeconfig");
    let found = second.config_maps().await.list(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(found.items.iter().filter(|it| it.metadata.name.as_deref().unwrap().starts_with('m')).count(), 20);
    assert!(second.signal(Signal::TERM).success());
}

#[tokio::test]
async fn an_audit_log_says_who_asked_from_where() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let log = scratch.path().join("audit.log");
    let mut up = Up::start(&["--ephemeral", "--audit-log", log.to_str().unwrap()], scratch.path());
    let map = serde_json::from_value(serde_json::json!({"metadata": {"name": "m"}})).unwrap();
    up.config_maps().await.create(&PostParams::default(), &map).await.unwrap();
    assert!(up.signal(Signal::TERM).success());
    let text = std::fs::read_to_string(&log).unwrap();
    let mut events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let made = events.find(|it| it["verb"] == "create" && it["objectRef"]["resource"] == "configmaps").unwrap();
    assert_eq!((&made["sourceIPs"][0], &made["responseStatus"]["code"]), (&"127.0.0.1".into(), &201.into()));
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_in_one_line_and_not_touched() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let mut first = Up::start(&["--data-dir", data.to_str().unwrap()], scratch.path());
    let newer = scratch.path().join("newer");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("layout"), "1000").unwrap();
    for (dir, words) in
        [(data.as_path(), "in use by process"), (&newer, "newer version"), (Path::new("/proc/x"), "cannot")]
    {
        let done = insula().arg("up").arg("--data-dir").arg(dir).output().unwrap();
        let said = said(&done);
        assert!(!done.status.success() && said.contains(words) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(std::fs::read_dir(&newer).unwrap().count(), 1);
    assert!(first.signal(Signal::TERM).success());
}

#[test]
fn two_at_once_do_not_disturb_each_other_and_an_ephemeral_one_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let mut first = Up::start(&["--ephemeral"], scratch.path());
    let mut second = Up::start(&["--ephemeral"], scratch.path());
    assert_ne!(first.kubeconfig, second.kubeconfig);
    assert!(first.signal(Signal::TERM).success() && second.kubeconfig.exists() && !first.kubeconfig.exists());
    assert!(second.signal(Signal::INT).success());
    assert!(!second.kubeconfig.parent().unwrap().exists());
}

#[test]
fn a_kubeconfig_of_other_clusters_is_not_overwritten() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("config");
    std::fs::write(&file, "apiVersion: v1\ncurrent-context: production\n").unwrap();
    let done = insula().args(["up", "--ephemeral", "--kubeconfig"]).arg(&file).output().unwrap();
    assert!(!done.status.success() && said(&done).contains("is not overwritten"), "{}", said(&done));
}

#[test]
fn a_wrong_script_is_refused_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("model.yaml");
    std::fs::write(&file, "rules:\n- answer: hello\n  anwser: there\n").unwrap();
    let done = insula().args(["model", "--script"]).arg(&file).output().unwrap();
    assert!(
        !done.status.success() && said(&done).contains("rules[0]") && said(&done).contains("anwser"),
        "{}",
        said(&done)
    );
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/model.yaml");
    llm::scripted::Script::parse(&std::fs::read_to_string(example).unwrap()).unwrap();
}

#[test]
fn a_run_without_a_key_says_what_to_do() {
    let done = insula().args(["run", "hello"]).output().unwrap();
    assert!(!done.status.success() && said(&done).contains("OPENAI_API_KEY"), "{}", said(&done));
}
