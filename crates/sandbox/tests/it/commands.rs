use std::time::Duration;

use sandbox::{Command, Error, Exit, Want};
use wire::node::Quota;

use crate::cell::{Cell, command, is_running, run, sh};

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
    let Some(cell) = Cell::open_with(|options| options.quota = 20 << 20).await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let done = run(&hand, "head -c 50000000 /dev/zero > /workspace/f && sleep 20").await;
    if cell.node.describe().await.quota == Quota::Hard {
        assert!(done.output.contains("No space left on device"), "{done:?}");
        let refused = hand.write_file("/workspace/more", &[b'x'; 1 << 20]).await.unwrap_err();
        assert!(refused.to_string().contains("No space left on device"), "{refused}");
        run(&hand, "rm /workspace/f").await;
    } else {
        assert!(matches!(done.exit, Exit::OverQuota(size) if size > 40_000_000), "{done:?}");
        let refused = hand.write_file("/workspace/more", b"x").await.unwrap_err();
        assert!(refused.to_string().contains("quota"), "{refused}");
        // What does not grow goes on, and so room is made.
        let done = run(&hand, "sleep 2.5; rm /workspace/f; sleep 2.5").await;
        assert_eq!(done.exit, Exit::Code(0));
    }
    hand.write_file("/workspace/more", b"x").await.unwrap();
    cell.end().await;
}
