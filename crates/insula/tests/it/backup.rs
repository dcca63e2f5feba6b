//! `insula backup` and `insula restore`, beside and under an `insula up`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use rustix::process::Signal;
use serde_json::json;

use crate::apart::{INSTANCE, apply, follow, model, submit};
use crate::{Up, insula, provider, said};

const MODEL: &str = r#"
models: [scripted]
rules:
- match: {user: {contains: write}, results: 0}
  calls: [{name: execute_command, arguments: {command: echo kept > /workspace/mark}}]
- match: {user: {contains: read}, results: 0}
  calls: [{name: execute_command, arguments: {command: cat /workspace/mark}}]
- answer: Done.
"#;

fn backup(data: &Path, to: &Path, more: &[&str]) -> Output {
    insula().arg("backup").args(more).arg("--data-dir").arg(data).arg(to).output().unwrap()
}

fn restore(from: &Path, data: &Path, more: &[&str]) -> Output {
    insula().arg("restore").args(more).arg("--data-dir").arg(data).arg(from).output().unwrap()
}

fn map(n: usize) -> ConfigMap {
    let data = "x".repeat(2000);
    serde_json::from_value(json!({"metadata": {"name": format!("m{n:05}")}, "data": {"k": data}})).unwrap()
}

#[tokio::test]
async fn objects_runs_and_files_survive_a_backup_under_writes_and_a_restore() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (data, file, again) = (path("data"), path("backup"), path("again"));
    let (_model, url) = model(scratch.path(), MODEL);
    let provider = format!("openai={url}");
    let mut up = Up::start(&["--data-dir", data.to_str().unwrap(), "--provider", &provider], scratch.path());
    apply(&up, INSTANCE).await;
    submit(&up, "before", "write it down").await;
    let (shown, pod) = follow(&up, "before").await;

    let maps = up.config_maps().await;
    for n in 0..20 {
        maps.create(&PostParams::default(), &map(n)).await.unwrap();
    }
    let mut copying = tokio::process::Command::from(insula());
    let copying = copying.arg("backup").arg("--data-dir").arg(&data).arg(&file).output();
    let mut copying = std::pin::pin!(copying);
    let (mut written, anything) = (20, PostParams::default());
    let done = loop {
        let next = map(written);
        tokio::select! {
            done = &mut copying => break done.unwrap(),
            made = maps.create(&anything, &next) => {
                made.unwrap();
                written += 1;
            }
        }
    };
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");

    // Not over what is there, and not where something runs.
    for (dir, words) in [(&data, "in use by process"), (&scratch.path().to_owned(), "is not empty")] {
        let refused = restore(&file, dir, &[]);
        assert!(!refused.status.success() && said(&refused).contains(words), "{}", said(&refused));
    }
    assert!(!path("lock").exists());
    let kubeconfig = std::fs::read(&up.kubeconfig).unwrap();
    let key = up.key.clone();
    assert!(up.signal(Signal::TERM).success());
    let done = restore(&file, &again, &[]);
    assert!(done.status.success(), "{}", said(&done));

    let mut up = Up::start(&["--data-dir", again.to_str().unwrap(), "--provider", &provider], scratch.path());
    assert_eq!((std::fs::read(&up.kubeconfig).unwrap(), &up.key), (kubeconfig, &key), "who had access has it");
    let found = up.config_maps().await.list(&ListParams::default()).await.unwrap();
    let found: Vec<_> =
        found.items.iter().filter_map(|it| it.metadata.name.clone()).filter(|it| it.starts_with('m')).collect();
    let first: Vec<_> = (0..found.len()).map(|n| format!("m{n:05}")).collect();
    assert_eq!(found, first, "one moment: all writes up to it and none after");
    assert!((20..=written + 1).contains(&found.len()), "{} of {written}", found.len());
    assert_eq!(follow(&up, "before").await, (shown, pod.clone()), "every step of the run");
    submit(&up, "after", "read it").await;
    let (shown, _) = follow(&up, "after").await;
    if pod.is_none() {
        println!("skipped: files, since this machine makes no sandboxes");
    } else {
        assert!(shown.contains("kept"), "{shown}");
    }
    assert!(up.signal(Signal::TERM).success());
}

#[test]
fn a_backup_of_a_stopped_directory_goes_through_a_pipe() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, again) = (scratch.path().join("data"), scratch.path().join("again"));
    let mut up = Up::start(&["--data-dir", data.to_str().unwrap()], scratch.path());
    assert!(up.signal(Signal::TERM).success());
    let kept = data.join("workspaces/default/me/0/file");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(&kept, "text").unwrap();
    let mut from = insula().arg("backup").arg("--data-dir").arg(&data).arg("-").stdout(Stdio::piped()).spawn().unwrap();
    let mut to = insula();
    to.args(["restore", "--without-workspaces", "-"]).arg("--data-dir").arg(&again);
    let done = to.stdin(from.stdout.take().unwrap()).output().unwrap();
    assert!(from.wait().unwrap().success() && done.status.success(), "{}", said(&done));
    assert!(!again.join("workspaces/default").exists());
    let mut up = Up::start(&["--data-dir", again.to_str().unwrap()], scratch.path());
    assert!(up.signal(Signal::TERM).success());
}

#[test]
fn what_cannot_be_backed_up_or_restored_is_refused_in_one_line_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let refused = |done: &Output, words: &str| {
        let said = said(done);
        assert!(!done.status.success() && said.contains(words) && said.lines().count() == 1, "{said}");
    };
    refused(&backup(&path("absent"), &path("file"), &[]), "there is no data directory");
    std::fs::create_dir(path("theirs")).unwrap();
    refused(&backup(&path("theirs"), &path("file"), &[]), "no data directory of Insula");
    std::fs::write(path("theirs/layout"), "99").unwrap();
    refused(&backup(&path("theirs"), &path("file"), &[]), "newer version");
    std::fs::write(path("theirs/layout"), "1").unwrap();
    refused(&backup(&path("theirs"), &path("file"), &[]), "cannot open");
    refused(&backup(&path("theirs"), Path::new("/dev/null"), &[]), "no file");
    std::fs::write(path("file"), "no backup").unwrap();
    refused(&restore(&path("file"), &path("into"), &[]), "is no backup of Insula");
    refused(&restore(&path("absent"), &path("into"), &[]), "open");
    let mut left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "theirs"]);
}
