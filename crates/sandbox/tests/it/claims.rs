use std::time::Duration;

use ledger::Outcome;
use sandbox::{Error, Want};
use wire::node::Phase;

use crate::cell::{Cell, House, command, is_running, owner, run, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_sandbox_and_nobody_elses_files() {
    let Some(cell) = Cell::open().await else { return };
    let (first, lease) = cell.begin("a", "s").await;
    let hand = cell.claim(&first).await;
    sh(&hand, "echo kept > /workspace/f; echo here > /root/f").await;
    assert_eq!(cell.claim(&first).await.id(), hand.id());
    assert_eq!(cell.ledger.run(&first.run).await.unwrap().unwrap().pod.as_deref(), Some(hand.pod()));
    cell.ledger.finish(&first.run, lease.epoch, Outcome::succeeded("x")).await.unwrap();

    let (second, _lease) = cell.begin("b", "s").await;
    let again = cell.claim(&second).await;
    assert_eq!((again.id(), sh(&again, "cat /workspace/f /root/f").await.as_str()), (hand.id(), "kept\nhere"));
    assert_eq!(cell.ledger.run(&second.run).await.unwrap().unwrap().pod.as_deref(), Some(hand.pod()));

    let (other, _lease) = cell.begin("c", "t").await;
    let other = cell.claim(&other).await;
    assert_ne!(other.id(), hand.id());
    assert_eq!(
        sh(&other, "ls /workspace /root | wc -l").await,
        sh(&other, "printf '\\n/root:\\n/workspace:\\n' | wc -l").await
    );

    // Wanted in another shape it is another one, over the same workspace.
    let want = Want { cpu: Some("500m".into()), ..Want::default() };
    let slower = cell.sandboxes.claim(&second, &want).await.unwrap();
    assert_ne!(slower.id(), hand.id());
    assert_eq!(sh(&slower, "cat /workspace/f /root/f 2>/dev/null").await, "kept");
    let gone = again.exec(&command("true"), |_| {}).await.unwrap_err();
    assert!(matches!(gone, Error::Ended { begun: false, .. }), "{gone:?}");
    let unfit = Want { image: Some("postgres:17".into()), ..Want::default() };
    assert!(matches!(cell.sandboxes.claim(&second, &unfit).await, Err(Error::Unfit(_))));
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_sandboxes_are_there_again_and_many_claims_at_once_get_one_each() {
    let Some(cell) = Cell::open().await else { return };
    let mut owners = Vec::new();
    for i in 0..12 {
        owners.push(cell.begin(&format!("r{i:02}"), &format!("s{i}")).await);
    }
    let claims = owners.iter().flat_map(|(owner, _)| [cell.claim(owner), cell.claim(owner)]);
    let hands = futures::future::join_all(claims).await;
    let ids: std::collections::BTreeSet<_> = hands.iter().map(|it| it.id()).collect();
    assert_eq!(ids.len(), 12, "one for each session");
    assert_eq!(cell.ledger.claims().await.unwrap().len(), 12);
    let mut watch = cell.watch().await;
    while cell.sandboxes.warm() < 2 {
        watch.until(|id, phase| phase == Phase::Running && !ids.contains(id)).await;
        tokio::task::yield_now().await;
    }
    drop(watch);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_with_its_run_or_instance_and_a_workspace_with_it() {
    let Some(cell) = Cell::open().await else { return };
    let (alone, lease) = cell.begin("a", "").await;
    let (of_session, _lease) = cell.begin("b", "s").await;
    let (hand, kept) = (cell.claim(&alone).await, cell.claim(&of_session).await);
    assert!(hand.pod().starts_with("name-of-a-"), "{}", hand.pod());
    for it in [&hand, &kept] {
        sh(it, "mkdir -p /workspace/deep; echo x > /workspace/deep/f; setsid sleep 16180 > /dev/null 2>&1 &").await;
    }
    let mut watch = cell.watch().await;
    cell.ledger.finish(&alone.run, lease.epoch, Outcome::succeeded("x")).await.unwrap();
    watch.ended(hand.id()).await;
    let instance = cell.dir.path().join("workspaces/default/me");
    assert_eq!(std::fs::read_dir(&instance).unwrap().count(), 2, "a workspace stays until its run is deleted");
    let over = cell.sandboxes.claim(&alone, &Want::default()).await;
    assert!(matches!(over, Err(Error::Ledger { .. })), "a run that is over gets none");

    cell.ledger.forget(&alone.run).await.unwrap();
    cell.sandboxes.end_run("default", "me", &alone.run).await.unwrap();
    cell.sandboxes.end_run("default", "me", &alone.run).await.unwrap();
    assert_eq!(std::fs::read_dir(&instance).unwrap().count(), 1);
    assert!(is_running("16180"), "that of the session");
    cell.ledger.forget_instance("default", "me").await.unwrap();
    cell.sandboxes.end_instance("default", "me").await.unwrap();
    cell.sandboxes.end_instance("default", "me").await.unwrap();
    assert!(!instance.exists() && !is_running("16180"));
    assert!(cell.sandboxes.claim(&of_session, &Want::default()).await.is_err());
    assert!(!instance.exists(), "who comes too late makes nothing");
    drop(watch);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_nobody_uses_goes_and_one_in_use_stays() {
    let Some(cell) = Cell::open_with(|options| options.idle = Duration::from_millis(200)).await else { return };
    let (first, _lease) = cell.begin("a", "s").await;
    let hand = cell.claim(&first).await;
    let mut watch = cell.watch().await;
    assert_eq!(sh(&hand, "echo kept > /workspace/f; sleep 1; echo still").await, "still");
    watch.ended(hand.id()).await;
    let again = cell.claim(&first).await;
    assert_ne!(again.id(), hand.id());
    assert_eq!(cell.ledger.claims().await.unwrap().len(), 1);
    assert_eq!(sh(&again, "cat /workspace/f").await, "kept");
    drop(watch);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_deleted_under_a_command_is_told_and_replaced() {
    let Some(cell) = Cell::open().await else { return };
    let (first, _lease) = cell.begin("a", "s").await;
    let hand = cell.claim(&first).await;
    sh(&hand, "echo kept > /workspace/f").await;
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let long = command("echo begun; sleep 1000");
    let running = hand.exec(&long, |_| {
        tell.take().map(|tell| tell.send(()));
    });
    let delete = async {
        told.await.unwrap();
        cell.remove(hand.id()).await;
    };
    let (done, ()) = tokio::join!(running, delete);
    let error = done.unwrap_err();
    assert!(matches!(&error, Error::Ended { why, begun: true } if why == "it was deleted"), "{error:?}");
    let again = cell.claim(&first).await;
    assert_eq!(sh(&again, "cat /workspace/f").await, "kept");
    cell.end().await;
}

#[test]
fn after_a_crash_what_was_claimed_goes_on_and_the_rest_is_ended() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    let begun = first.block_on(async {
        let house = House::open(dir.path(), |_| {}).await?;
        let (of_session, lease) = house.begin("a", "s").await;
        let (alone, _lease) = house.begin("b", "").await;
        let hand = house.claim(&of_session).await;
        sh(&hand, "echo state > /root/f; setsid sleep 14142 > /dev/null 2>&1 &").await;
        let left = house.claim(&alone).await.id().to_owned();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let it = hand.clone();
        house.tasks.tenant("call", async move {
            let long = command("echo begun >> /workspace/log; echo; sleep 17320; echo ended >> /workspace/log");
            let _ = it
                .exec(&long, |_| {
                    tell.take().map(|tell| tell.send(()));
                })
                .await;
        });
        told.await.unwrap();
        house.ledger.forget(&alone.run).await.unwrap();
        drop(lease);
        Some((hand.id().to_owned(), left))
    });
    // As a SIGKILL does: nothing more happens, every descriptor is closed.
    drop(first);
    let Some((kept, left)) = begun else { return };
    let second = runtime();
    second.block_on(async {
        let house = House::open(dir.path(), |_| {}).await.unwrap();
        let mut claims = house.ledger.claims().await.unwrap();
        claims.retain(|it| it.sandbox == left);
        assert!(claims.is_empty(), "nobody's");
        let lease = house.ledger.lease("test").await.unwrap();
        assert_eq!(lease.run.as_str(), "a");
        let hand = house.claim(&owner("a", "s")).await;
        assert_eq!(hand.id(), kept, "it goes on in its sandbox");
        let said =
            "while grep -qz 1732[0] /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.01; done; cat /root/f /workspace/log";
        assert_eq!(sh(&hand, said).await, "state\nbegun", "what was interrupted is over");
        assert!(is_running("14142"), "what ran beside it goes on");
        assert_eq!(run(&hand, "true").await.exit, sandbox::Exit::Code(0));
        house.tasks.end().await;
    });
    assert!(!is_running("14142"));
}
