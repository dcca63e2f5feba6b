//! Pods whose containers stand still.

use super::*;

/// Whether pods can be frozen here; says why not.
fn can(place: &Place) -> bool {
    let why = place.runtime.no_freezer();
    why.iter().for_each(|why| eprintln!("skipped: {why}"));
    why.is_none()
}

/// Counts on and on, in memory.
const COUNTS: &str = "at=0; while :; do at=$((at+1)); echo $at > /tmp/at; done";

async fn groups(place: &Place, uid: &str) -> Vec<PathBuf> {
    place.runtime.shared.engine.cgroups.dirs(&crate::engine::pods::group(uid))
}

/// What the processes of a container have had of the processor and how often they gave it up, as the kernel tells of each.
fn used(place: &Place, container: &str) -> Vec<String> {
    let group = place.runtime.running("one", container).unwrap().1.group.clone();
    let dirs = place.runtime.shared.engine.cgroups.dirs(&group);
    let processes = std::fs::read_to_string(dirs[0].join("cgroup.procs")).unwrap();
    let told = processes.lines().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap());
    let told: Vec<String> = told.collect();
    assert!(!told.is_empty());
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_pod_stands_still_and_says_so_to_who_wants_something_of_it() {
    let place = Place::open().await;
    if !can(&place) {
        return place.close().await;
    }
    place.pod("one", |it| it.share_processes = true).await;
    let shared = |name, script| ContainerConfig { processes: Processes::Pod, ..container(name, script) };
    // A process beside the first one, and one that has left its session.
    place.start("one", shared("a", "setsid sh -c 'while :; do :; done' & wait")).await;
    place.start("one", shared("b", COUNTS)).await;
    place.runtime.freeze("one", true).await.unwrap();
    place.runtime.freeze("one", true).await.unwrap();
    assert!(place.runtime.state("one").unwrap().frozen);
    let before = [used(&place, "a"), used(&place, "b")];
    // The shim answers: a round trip, and time for them if they had any.
    let cell = place.runtime.find("one").unwrap();
    for _ in 0..50 {
        assert_eq!(cell.link().unwrap().containers().await.unwrap().len(), 2);
    }
    assert_eq!([used(&place, "a"), used(&place, "b")], before);
    let says = "kubectl annotate -n default pod p insula.dev/frozen- thaws it";
    let config = ExecConfig { args: sh("true"), env: vec![], stdin: false, stdout: true, stderr: true, tty: false };
    let Err(error) = place.runtime.exec("one", "a", config).await else { panic!("it runs") };
    assert!(error.to_string().contains(says), "{error}");
    let error = place.runtime.start("one", shared("c", "true")).await.unwrap_err();
    assert!(matches!(error, StartError::Frozen(_)), "{error}");
    let error = place.runtime.dial("one", 80).await.unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    place.runtime.freeze("one", false).await.unwrap();
    assert_eq!(place.exec("one", "a", "echo on").await, (0, "on\n".into()));
    // Until it has counted on.
    place.exec("one", "b", "it=$(cat /tmp/at); until [ \"$(cat /tmp/at)\" != \"$it\" ]; do :; done").await;
    place.runtime.remove("one").await.unwrap();
    assert!(groups(&place, "one").await.iter().all(|it| !it.exists()));
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_can_be_killed_one_by_one_and_all_at_once() {
    let place = Place::open().await;
    if !can(&place) {
        return place.close().await;
    }
    place.pod("one", |_| {}).await;
    place.start("one", container("a", "sleep 1000 & sleep 1000")).await;
    place.start("one", container("b", COUNTS)).await;
    place.runtime.freeze("one", true).await.unwrap();
    place.runtime.kill("one", "a").await.unwrap();
    assert_eq!(place.end("one", "a", 0).await.0.code, 137);
    assert!(place.runtime.state("one").unwrap().frozen, "the other one does still");
    let groups = groups(&place, "one").await;
    // Its shim is lost: nothing stays of it.
    let shim = place.runtime.find("one").unwrap().live().process.unwrap().pid;
    let mut changed = place.runtime.watch("one").unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    while place.runtime.state("one").unwrap().alive {
        changed.changed().await.unwrap();
    }
    drop(place.runtime.find("one").unwrap().work.lock().await);
    assert!(!place.runtime.state("one").unwrap().frozen && groups.iter().all(|it| !it.exists()));
    // Another one begins as any other.
    place.pod("one", |_| {}).await;
    place.start("one", ContainerConfig { attempt: 1, ..container("b", COUNTS) }).await;
    place.runtime.freeze("one", true).await.unwrap();
    place.runtime.remove("one").await.unwrap();
    assert!(place.runtime.state("one").is_none() && groups.iter().all(|it| !it.exists()));
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_stands_still_ends_with_its_node_as_any_other() {
    let place = Place::open().await;
    if !can(&place) {
        return place.close().await;
    }
    place.pod("one", |_| {}).await;
    let host = place.dir.path().to_owned();
    let script = "trap 'echo told; exit 0' TERM; echo begun; while :; do sleep 0.01; done";
    place.start("one", container("a", script)).await;
    while !place.printed("one", "a", 0).await.contains("begun") {
        tokio::task::yield_now().await;
    }
    place.runtime.freeze("one", true).await.unwrap();
    let groups = groups(&place, "one").await;
    place.tasks.end().await;
    assert_eq!(place.printed("one", "a", 0).await, "begun\ntold\n");
    assert!(groups.iter().all(|it| !it.exists()), "{}", host.display());
}

/// A node that leaves its pods frozen, when another test starts it so.
pub(super) async fn stay(place: &Place) {
    place.pod("one", |_| {}).await;
    place.start("one", container("a", COUNTS)).await;
    place.start("one", container("b", COUNTS)).await;
    place.runtime.freeze("one", true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_stood_still_when_its_node_was_killed_does_so_with_the_next_one() {
    let place = Place::open().await;
    let can = can(&place);
    place.close().await;
    if !can {
        return;
    }
    for half in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        left(dir.path(), &[(FROZEN, "1")]);
        if half {
            // As one leaves it that is killed in the middle.
            let place = Place::over(dir).await;
            let running = place.runtime.running("one", "a").unwrap().1;
            place.runtime.stand(&[running], false).await.unwrap();
            let cell = place.runtime.find("one").unwrap();
            place.runtime.find_frozen(&cell).await;
            assert!(!place.runtime.state("one").unwrap().frozen);
            assert_eq!(place.exec("one", "b", "echo on").await, (0, "on\n".into()));
            place.close().await;
            continue;
        }
        let place = Place::over(dir).await;
        let state = place.runtime.state("one").unwrap();
        assert!(state.alive && state.frozen && state.containers.iter().all(|it| it.exit.is_none()), "{state:?}");
        let before = [used(&place, "a"), used(&place, "b")];
        assert!(place.runtime.exec("one", "a", exec()).await.is_err());
        assert_eq!([used(&place, "a"), used(&place, "b")], before);
        place.runtime.freeze("one", false).await.unwrap();
        assert_eq!(place.exec("one", "a", "echo on").await, (0, "on\n".into()));
        place.close().await;
    }
}

fn exec() -> ExecConfig {
    ExecConfig { args: sh("true"), env: vec![], stdin: false, stdout: true, stderr: true, tty: false }
}

/// With a freezer of version 1 where there is one of version 2 as well: the others of these tests, in a mount namespace
/// without that.
#[test]
fn an_old_freezer_does_as_well() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |kind: &str, option: &str| {
        let line = mounts.lines().find(|it| it.contains(&format!(" - {kind} ")) && it.contains(option))?;
        line.split(' ').nth(4)
    };
    let (Some(unified), Some(_)) = (at("cgroup2", ""), at("cgroup", "freezer")) else {
        eprintln!("skipped: not both versions of control groups are mounted");
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can take one of them away");
        return;
    }
    let mut may = std::process::Command::new("unshare");
    if !may.args(["-m", "umount", unified]).status().is_ok_and(|it| it.success()) {
        eprintln!("skipped: it cannot be taken away in a mount namespace here");
        return;
    }
    let mut others = std::process::Command::new("unshare");
    let script = "umount \"$0\" && exec \"$1\" pod::runtime::tests::freeze:: --skip an_old_freezer --nocapture";
    others.args(["-m", "sh", "-c", script, unified]).arg(std::env::current_exe().unwrap());
    let done = others.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains("skipped"), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
}
