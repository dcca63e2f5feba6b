use std::path::Path;
use std::time::Duration;

use sandbox::{Command, Error, Exit, Hand, Want};
use wire::node::Quota;

use crate::cell::{Cell, Watch, command, is_running, run, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_in_the_sandbox_and_says_how_it_ended() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    assert_eq!(sh(&hand, "hostname; pwd; id -u; echo $((6 * 7))").await, format!("{}\n/workspace\n0\n42", hand.pod()));
    assert!(hand.pod().starts_with("me-"));
    let exit = async |text: &str| run(&hand, text).await.exit;
    assert_eq!(exit("true").await, Exit::Code(0));
    assert_eq!(exit("exit 3").await, Exit::Code(3));
    assert_eq!(exit("kill -TERM $$").await, Exit::Code(128 + 15));
    assert_eq!(exit("no-such-program").await, Exit::Code(127));
    assert_eq!(sh(&hand, "echo out; echo err >&2; printf 'no\\n\\nend'").await.lines().count(), 5);
    let mut seen = Vec::new();
    let done = hand.exec(&command("echo a; sleep 0.1; echo b"), |line| seen.push(line.to_owned())).await.unwrap();
    assert_eq!((done.output.as_str(), seen), ("a\nb\n", vec!["a\n".to_owned(), "b\n".to_owned()]));
    let elsewhere = Command { workdir: Some("/tmp".into()), ..command("pwd") };
    assert_eq!(hand.exec(&elsewhere, |_| {}).await.unwrap().output, "/tmp\n");
    let nowhere = Command { workdir: Some("/no/such".into()), ..command("pwd") };
    let refused = hand.exec(&nowhere, |_| {}).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { said, .. } if said.contains("/no/such")), "{refused:?}");
    // A child that keeps the pipe does not hold the answer.
    assert_eq!(sh(&hand, "sleep 1000 & echo done").await, "done");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_or_whose_caller_goes_is_killed_with_all_it_started() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let late = Command {
        timeout: Duration::from_millis(300),
        ..command("trap '' TERM; (setsid sleep 31415 &); echo begun; sleep 31416")
    };
    let done = hand.exec(&late, |_| {}).await.unwrap();
    assert_eq!((done.exit, done.output.as_str()), (Exit::TimedOut, "begun\n"));
    assert!(!is_running("31415") && !is_running("31416"));

    let (tell, told) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let (it, command) = (hand.clone(), command("mkfifo /tmp/end; (setsid sleep 27182 &); echo begun; sleep 27183"));
    tokio::select! {
        done = it.exec(&command, |_| {
            tell.take().map(|tell| tell.send(()));
        }) => panic!("{done:?}"),
        begun = told => begun.unwrap(),
    }
    // It is gone as soon as the sandbox knows: this command waits for that.
    let gone = run(&hand, "while grep -qz 2718[23] /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.01; done").await;
    assert_eq!(gone.exit, Exit::Code(0));
    assert!(!is_running("27182") && !is_running("27183"));
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_output_is_told_by_its_tail_and_whole_in_a_file() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let long = Command { keep: 1000, ..command("seq 1 50000") };
    let done = hand.exec(&long, |_| {}).await.unwrap();
    assert!(done.output.len() <= 1000 && done.output.ends_with("\n49999\n50000\n"), "{}", done.output);
    assert_eq!(done.exit, Exit::Code(0));
    let (path, size) = done.full.unwrap().unwrap();
    assert_eq!(size, done.total);
    assert_eq!(sh(&hand, &format!("seq 1 50000 | cmp - {path} && echo same")).await, "same");
    let short = hand.exec(&command("seq 1 10"), |_| {}).await.unwrap();
    assert_eq!((short.full, short.total), (None, 21));

    // Bytes that are no text, a line without end, and no room for the file.
    let odd = hand.exec(&command("head -c 100000 /dev/urandom; head -c 1200000 /dev/zero"), |_| {}).await.unwrap();
    assert_eq!(odd.exit, Exit::Code(0));
    sh(&hand, "rm -rf /workspace/.outputs; touch /workspace/.outputs").await;
    let kept = hand.exec(&long, |_| {}).await.unwrap();
    assert!(kept.output.ends_with("\n50000\n") && kept.full.as_ref().is_some_and(Result::is_err), "{:?}", kept.full);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_prints_for_ever_is_bounded() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let endless =
        Command { timeout: Duration::from_secs(1), keep: 4096, ..command("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") };
    let done = hand.exec(&endless, |_| {}).await.unwrap();
    assert_eq!(done.exit, Exit::TimedOut);
    assert!(done.output.len() <= 4096 && done.total > 1 << 20);
    let (path, size) = done.full.unwrap().unwrap();
    assert_eq!(sh(&hand, &format!("stat -c %s {path}")).await, size.to_string());
    assert!(size <= (64 << 20) + (64 << 10));
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn want_of_memory_is_told_as_that() {
    let Some(cell) = Cell::open().await else { return };
    if cell.node.describe().await.can.get("memcg").is_none_or(|it| !it.ok) {
        println!("skipped: no limits of memory here");
        return cell.end().await;
    }
    let (owner, _lease) = cell.begin("r", "s").await;
    let want = Want { memory: Some("64Mi".into()), ..Want::default() };
    let hand = cell.sandboxes.claim(&owner, &want).await.unwrap();
    let hungry = "python3 -c 'x = bytearray(200 << 20)'";
    for _ in 0..2 {
        assert_eq!(run(&hand, hungry).await.exit, Exit::OutOfMemory);
        assert_eq!(run(&hand, "kill -KILL $$").await.exit, Exit::Code(137));
    }
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_grows_over_its_quota_is_stopped() {
    let change = |options: &mut sandbox::Options| {
        options.quota = 20 << 20;
        // Not while this looks at commands.
        options.counted = Duration::from_secs(3600);
    };
    let Some(cell) = Cell::open_with(change).await else { return };
    let fill = "for i in 1 2 3; do head -c 16000000 /dev/zero > /workspace/f$i; done && sleep 20";
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    if cell.node.describe().await.quota == Quota::Hard {
        let done = run(&hand, fill).await;
        assert!(done.output.contains("No space left on device"), "{done:?}");
        let refused = hand.write_file("/workspace/more", &[b'x'; 1 << 20]).await.unwrap_err();
        assert!(refused.to_string().contains("No space left on device"), "{refused}");
        run(&hand, "rm /workspace/f*").await;
        hand.write_file("/workspace/more", b"x").await.unwrap();
    }
    cell.count_only("counted");
    let (owner, _lease) = cell.begin("t", "counted").await;
    let hand = cell.claim(&owner).await;
    let done = run(&hand, fill).await;
    assert!(matches!(done.exit, Exit::OverQuota(size) if size > 40_000_000), "{done:?}");
    let refused = hand.write_file("/workspace/more", b"x").await.unwrap_err();
    assert!(refused.to_string().contains("quota"), "{refused}");
    // What does not grow is told and goes on, and so room is made.
    let done = run(&hand, "echo well").await;
    assert!(done.exit == Exit::Code(0) && done.output.starts_with("well\n[the workspace has "), "{done:?}");
    assert_eq!(sh(&hand, "rm /workspace/f*; echo done").await, "done");
    hand.write_file("/workspace/more", b"x").await.unwrap();
    // One file over it is its writer's error, and nobody else's.
    let done =
        run(&hand, "(fallocate -l 1G /workspace/large || echo refused) 2> /dev/null; kill -0 1 && echo lives").await;
    assert_eq!(done.output, "refused\nlives\n");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_has_left_running_fills_no_disk() {
    let change = |options: &mut sandbox::Options| {
        options.quota = 20 << 20;
        options.counted = Duration::from_millis(50);
    };
    let Some(cell) = Cell::open_with(change).await else { return };
    let workspace = cell.count_only("s");
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let mut watch = cell.watch().await;
    outgrow(&hand, &workspace, &mut watch).await;

    let next = cell.claim(&owner).await;
    assert_ne!(next.id(), hand.id());
    let told = next.exec(&command("true"), |_| {}).await.unwrap_err();
    assert!(matches!(&told, Error::Stopped { why } if why.contains("over its quota of 20971520 bytes")), "{told:?}");
    let done = run(&next, "true").await;
    assert!(
        done.exit == Exit::Code(0) && done.output.contains("more than its quota"),
        "told once why, then what: {done:?}"
    );
    assert_eq!(sh(&next, "rm /workspace/f*; cat /workspace/old").await, "old");

    // Of what one instance did, another one with its name is not told.
    std::fs::remove_file(workspace.join("go")).unwrap();
    outgrow(&next, &workspace, &mut watch).await;
    cell.ledger.forget_instance("default", "me").await.unwrap();
    cell.sandboxes.end_instance("default", "me").await.unwrap();
    let (owner, _lease) = cell.begin("of another", "s").await;
    assert_eq!(sh(&cell.claim(&owner).await, "echo well").await, "well");
    drop(watch);
    cell.end().await;
}

/// Leaves something running that writes until the sandbox is ended for it.
async fn outgrow(hand: &Hand, workspace: &Path, watch: &mut Watch) {
    let writer = "until [ -e /workspace/go ]; do sleep 0.01; done; i=0; while sleep 0.02; do i=$((i+1)); head -c 2000000 /dev/zero > /workspace/f$i; done";
    assert_eq!(sh(hand, &format!("({writer}) > /dev/null 2>&1 & echo left")).await, "left");
    std::fs::write(workspace.join("go"), "").unwrap();
    watch.ended(hand.id()).await;
}

/// Takes every process that it can get, for as long as it lives.
const KEEPER: &str = "
import threading, time
threading.stack_size(65536)
while True:
    try:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    except RuntimeError:
        time.sleep(0.001)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_in_which_nothing_can_start_is_ended_with_what_fills_it() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let keeper = format!("/workspace/keeper-{}.py", hand.id());
    hand.write_file(&keeper, KEEPER.as_bytes()).await.unwrap();
    assert_eq!(sh(&hand, &format!("python3 {keeper} > /dev/null 2>&1 & echo left")).await, "left");
    let full = async {
        loop {
            match hand.exec(&command("true"), |_| {}).await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(60), full).await.unwrap();
    assert!(matches!(&told, Error::Stopped { why } if why.contains("limit of processes or memory")), "{told:?}");
    let next = cell.claim(&owner).await;
    assert_ne!(next.id(), hand.id());
    assert_eq!(sh(&next, "ls /workspace").await, keeper.trim_start_matches("/workspace/"), "over the same workspace");
    assert!(!is_running(&keeper));
    cell.end().await;
}

/// Those of these that depend on what an ordinary user's sandboxes are held by.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_users_sandboxes_are_held_too() {
    crate::cell::as_ordinary_user(&[
        "commands::a_workspace_that_grows_over_its_quota_is_stopped",
        "commands::what_a_command_has_left_running_fills_no_disk",
        "commands::a_sandbox_in_which_nothing_can_start_is_ended_with_what_fills_it",
    ])
    .await;
}
