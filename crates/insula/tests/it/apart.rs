//! `insula node`, killed and started again under an `insula up`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use api::agents::AgentRun;
use cli::Show;
use cli::events::Gateway;
use k8s_openapi::api::core::v1::Pod;
use kit::SecretString;
use kube::Api;
use kube::api::{DeleteParams, LogParams, PostParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{Up, insula, provider};

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

const MODEL: &str = r#"
models: [scripted]
rules:
- match: {user: {contains: write}, results: 0}
  calls: [{name: execute_command, arguments: {command: echo kept > /root/mark}}]
- match: {user: {contains: read}, results: 0}
  calls: [{name: execute_command, arguments: {command: cat /root/mark}}]
- answer: Done.
"#;

/// A process that says on one of its streams where it is, killed when dropped.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a node and waits for its word; `None` where the machine makes no sandboxes.
fn node(scratch: &Path) -> Option<Process> {
    let mut command = insula();
    command.arg("node").arg("--data-dir").arg(scratch.join("node")).arg("--listen").arg(scratch.join("socket"));
    let mut process = Process(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    if line.contains("cannot make sandboxes on this machine") {
        println!("skipped: {line}");
        return None;
    }
    assert_eq!(line.trim(), format!("The node answers at {}", scratch.join("socket").display()));
    Some(process)
}

/// A scripted model, and its address.
pub(crate) fn model(scratch: &Path, rules: &str) -> (Process, String) {
    let script = scratch.join("model.yaml");
    std::fs::write(&script, rules).unwrap();
    let mut process =
        Process(insula().arg("model").arg("--script").arg(script).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (process, line.trim().to_owned())
}

pub(crate) async fn apply(up: &Up, manifest: &str) {
    cli::apply(&up.client().await, manifest, "test").await.unwrap();
}

/// The manifests of an instance whose model is scripted.
pub(crate) const INSTANCE: &str = "\
apiVersion: v1\nkind: Secret\nmetadata: {name: key}\nstringData: {API_KEY: any}\n---\n\
apiVersion: sympozium.ai/v1alpha1\nkind: SympoziumInstance\nmetadata: {name: it}\n\
spec: {agents: {default: {model: scripted}}, authRefs: [{provider: openai, secret: key}]}\n";

/// One run of the session, as it is shown, and the Pod it worked in.
async fn run(up: &Up, name: &str, task: &str) -> (String, String) {
    submit(up, name, task).await;
    let (shown, pod) = follow(up, name).await;
    (shown, pod.unwrap())
}

/// Creates a run of the session.
pub(crate) async fn submit(up: &Up, name: &str, task: &str) {
    let made = json!({
        "metadata": {"name": name},
        "spec": {
            "instanceRef": "it", "agentId": "primary", "sessionKey": "one", "task": task,
            "model": {"provider": "openai", "model": "scripted", "authSecretRef": "key"},
        },
    });
    let runs: Api<AgentRun> = Api::default_namespaced(up.client().await);
    runs.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
}

/// Follows a run until it has succeeded: as it is shown, and the Pod it worked in.
pub(crate) async fn follow(up: &Up, name: &str) -> (String, Option<String>) {
    let key = SecretString::from(up.key.as_str());
    let gateway = Gateway { url: up.gateway.clone(), key, http: kit::http::client().unwrap() };
    let mut shown = Vec::new();
    let mut show = Show::new(&mut shown);
    let last = gateway.follow("default", name, |event| show.event(event).unwrap()).await.unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert_eq!(last.state, "succeeded", "{shown}");
    (shown, last.pod)
}

/// The uid of a Pod, as soon as it runs.
async fn pod_uid(up: &Up, name: &str) -> String {
    let pods: Api<Pod> = Api::default_namespaced(up.client().await);
    let ready = kube::runtime::wait::await_condition(pods, name, kube::runtime::conditions::is_pod_running());
    tokio::time::timeout(PATIENCE, ready).await.unwrap().unwrap().unwrap().metadata.uid.unwrap()
}

#[tokio::test]
async fn a_session_goes_on_when_its_node_is_killed_and_comes_back() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let (data, socket): (PathBuf, PathBuf) = (scratch.path().join("data"), scratch.path().join("socket"));
    let Some(mut first) = node(scratch.path()) else { return };
    let (_model, url) = model(scratch.path(), MODEL);
    let provider = format!("openai={url}");
    let args = ["--data-dir", data.to_str().unwrap(), "--node", socket.to_str().unwrap(), "--provider", &provider];
    let mut up = Up::start(&args, scratch.path());
    assert!(!data.join("node").exists(), "it has none of its own");
    apply(&up, INSTANCE).await;
    let (_, pod) = run(&up, "before", "write it down").await;
    let uid = pod_uid(&up, &pod).await;

    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let mut second = node(scratch.path()).unwrap();
    // In the writable layer of the same sandbox, not only in its workspace.
    let (shown, same) = run(&up, "after", "read it").await;
    assert!(shown.contains("kept"), "{shown}");
    assert_eq!(pod, same);
    assert_eq!(pod_uid(&up, &pod).await, uid, "the Pod never went");
    let pods: Api<Pod> = Api::default_namespaced(up.client().await);
    assert_eq!(pods.logs(&pod, &LogParams::default()).await.unwrap(), "kept\n", "what its commands printed");

    // Whoever deletes the Pod ends the sandbox; the session's next call gets another one.
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    let gone = kube::runtime::wait::await_condition(pods, &pod, |it: Option<&Pod>| it.is_none());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
    let (shown, other) = run(&up, "anew", "read it again").await;
    assert!(shown.contains("No such file") && other != pod, "{other}: {shown}");

    assert!(up.signal(Signal::TERM).success());
    kill_process(Pid::from_child(&second.0), Signal::TERM).unwrap();
    assert!(second.0.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(scratch.path().join("node/node/sandboxes")).unwrap().count(), 0);
    assert!(!socket.exists());
}

#[test]
fn an_up_without_its_node_says_where_it_looked() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, socket) = (scratch.path().join("data"), scratch.path().join("socket"));
    let done = insula().arg("up").arg("--data-dir").arg(data).arg("--node").arg(&socket).output().unwrap();
    let said = crate::said(&done);
    assert!(!done.status.success() && said.contains(&format!("use the node at {}", socket.display())), "{said}");
}
