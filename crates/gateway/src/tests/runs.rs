use super::*;

use ledger::{Cause, Claimant, Outcome, Step, Tokens};

fn pending(message: &str) -> Value {
    json!([{"type": "Accepted", "status": "False", "reason": "SecretMissing", "message": message}])
}

fn waiting(message: &str) -> Value {
    let mut conditions = pending(message);
    conditions[0]["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
    json!({"phase": "Pending", "conditions": conditions})
}

#[tokio::test(start_paused = true)]
async fn a_run_is_told_from_what_it_waits_for_to_its_outcome_and_again_from_any_place() {
    let house = House::new();
    house.cluster.put("u1", waiting("the Secret model-key is missing"));
    let router = house.router();
    let mut live = Stream::open(&router, None).await;
    let is_pending = |message| event("state", json!({"state": "pending", "conditions": pending(message)}));
    assert_eq!(live.next().await.unwrap(), is_pending("the Secret model-key is missing"));
    // What changes nothing that is told is not told; what does, is.
    let change = async {
        while !house.cluster.watched() {
            tokio::task::yield_now().await;
        }
        house.cluster.put("u1", waiting("the Secret model-key is missing"));
        house.cluster.put("u1", waiting("the Secret model-key has no key API_KEY"));
    };
    let (told, ()) = tokio::join!(live.next(), change);
    assert_eq!(told.unwrap(), is_pending("the Secret model-key has no key API_KEY"));

    house.submit("u1").await;
    assert_eq!(live.next().await.unwrap(), event("state", json!({"state": "queued"})));
    let lease = house.ledger.lease("test").await.unwrap();
    assert_eq!(live.next().await.unwrap(), event("state", json!({"state": "running", "attempt": 1})));
    let by = Claimant {
        namespace: lease.ticket.namespace.clone(),
        instance: lease.ticket.instance.clone(),
        session: String::new(),
        run: lease.run.clone(),
        pod: "me-box".into(),
        shape: "{}".into(),
    };
    house.ledger.claim("box", by).await.unwrap();
    let append = async |step| house.ledger.append(&lease.run, lease.epoch, step).await.unwrap();
    append(Step::Asked { turn: 1, model: "m".into() }).await;
    append(Step::Retrying { why: "429".into(), wait: Duration::from_millis(1500) }).await;
    assert_eq!(live.next().await.unwrap(), durable("1", "asked", json!({"turn": 1, "model": "m"})));
    assert_eq!(live.next().await.unwrap(), durable("2", "retry", json!({"why": "429", "wait": 1.5})));
    for piece in ["Let\n", "\r\n\nme é"] {
        house.ledger.stream(&lease.run, lease.epoch, piece);
        assert_eq!(live.next().await.unwrap(), event("text", json!({"text": piece, "after": "2"})));
    }
    let calls = json!([{"id": "c", "name": "f", "arguments": "{}"}]);
    let message = json!({"role": "assistant", "text": "Let me", "calls": calls});
    append(Step::Answered { message, usage: Tokens { input: 7, output: 3, total: 10 }, cut: None }).await;
    append(Step::Called { call_id: "c".into(), name: "f".into(), arguments: "{}".into() }).await;
    append(Step::Returned { call_id: "c".into(), output: "out".into(), failed: true }).await;
    append(Step::Noted { text: "by the way".into() }).await;
    let message = json!({"role": "assistant", "text": "done"});
    let cut = Some("cut short".to_owned());
    append(Step::Answered { message, usage: Tokens { input: 1, output: 1, total: 2 }, cut }).await;
    house.ledger.finish(&lease.run, lease.epoch, Outcome::succeeded("done")).await.unwrap();

    let usage = |input, output| json!({"inputTokens": input, "outputTokens": output, "totalTokens": input + output});
    let total = json!({"inputTokens": 8, "outputTokens": 4, "totalTokens": 12, "toolCalls": 1, "durationMs": 0});
    let mut end =
        durable("end", "state", json!({"state": "succeeded", "result": "done", "usage": total, "pod": "me-box"}));
    end.data["startedAt"] = json!("1970-01-01T00:00:00Z");
    let durables = vec![
        durable("1", "asked", json!({"turn": 1, "model": "m"})),
        durable("2", "retry", json!({"why": "429", "wait": 1.5})),
        durable("3.1", "answer", json!({"text": "Let me", "calls": calls})),
        durable("3", "usage", usage(7, 3)),
        durable("4", "tool_call", json!({"id": "c", "name": "f", "arguments": "{}"})),
        durable("5", "tool_result", json!({"id": "c", "output": "out", "failed": true})),
        durable("6", "note", json!({"text": "by the way"})),
        durable("7.1", "answer", json!({"text": "done", "calls": []})),
        durable("7.2", "note", json!({"text": "cut short"})),
        durable("7", "usage", usage(1, 1)),
        end,
    ];
    assert_eq!(live.all().await, durables[2..]);
    assert_eq!(Stream::open(&router, None).await.all().await, durables);
    for (i, seen) in durables.iter().enumerate().take(durables.len() - 1) {
        let rest = Stream::open(&router, seen.id.as_deref()).await.all().await;
        assert_eq!(rest, durables[i + 1..], "after {:?}", seen.id);
    }
}

#[tokio::test]
async fn a_run_that_fails_is_cancelled_or_deleted_says_so() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    let router = house.router();
    let last = async |run: &str| {
        house.cluster.put(run, json!({}));
        Stream::open(&router, None).await.all().await.pop().unwrap()
    };
    house.submit("u1").await;
    let lease = house.ledger.lease("test").await.unwrap();
    house.ledger.finish(&lease.run, lease.epoch, Outcome::failed(Cause::Provider, "401")).await.unwrap();
    let failed = last("u1").await;
    assert_eq!(
        (failed.id.as_deref(), &failed.data["reason"], &failed.data["message"]),
        (Some("end"), &json!("ProviderFailed"), &json!("401"))
    );

    house.submit("u2").await;
    house.ledger.cancel(&run("u2"), "no longer wanted").await.unwrap();
    let cancelled = last("u2").await.data;
    assert_eq!((&cancelled["reason"], &cancelled["message"]), (&json!("Cancelled"), &json!("no longer wanted")));

    house.submit("u3").await;
    house.cluster.put("u3", json!({}));
    let mut live = Stream::open(&router, None).await;
    live.next().await.unwrap();
    house.ledger.forget(&run("u3")).await.unwrap();
    let deleted = live.all().await.pop().unwrap().data;
    assert!(deleted["state"] == "failed", "{deleted}");
}

#[tokio::test]
async fn a_run_that_ends_before_it_is_queued_ends_its_events() {
    let house = House::new();
    let router = house.router();
    let ended = json!({"phase": "Failed", "error": "timeout", "completedAt": "2026-01-01T00:00:00Z", "conditions": [
        {"type": "Complete", "status": "False", "reason": "Timeout", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    house.cluster.put("u1", ended);
    let said = json!({"state": "failed", "reason": "Timeout", "message": "timeout", "at": "2026-01-01T00:00:00Z"});
    let end = |data| Event { name: "state".into(), id: Some("end".into()), data };
    assert_eq!(Stream::open(&router, None).await.all().await, [end(said)]);

    // Deleted, or deleted and made anew under the same name.
    let deleted = end(json!({"state": "failed", "reason": "Deleted", "message": "the run was deleted"}));
    for anew in [false, true] {
        house.cluster.put("u2", json!({}));
        let mut live = Stream::open(&router, None).await;
        assert_eq!(live.next().await.unwrap().data, json!({"state": "pending", "conditions": []}));
        house.cluster.delete();
        if anew {
            house.cluster.put("u3", json!({}));
        }
        assert_eq!(live.all().await, std::slice::from_ref(&deleted), "anew: {anew}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_kept_alive() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    let mut stream = Stream::open(&house.router(), None).await;
    assert!(stream.next().await.is_some());
    let from = tokio::time::Instant::now();
    assert_eq!(stream.block().await.unwrap(), ":");
    assert!(from.elapsed() >= Duration::from_secs(15));
}

#[tokio::test]
async fn a_listener_that_does_not_keep_up_is_cut_off_and_goes_on_where_it_was() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    house.submit("u1").await;
    let lease = house.ledger.lease("test").await.unwrap();
    let router = house.router();
    let mut slow = Stream::open(&router, None).await;
    assert_eq!(slow.next().await.unwrap(), event("state", json!({"state": "running", "attempt": 1})));
    let note = |n: u32| Step::Noted { text: n.to_string() };
    house.ledger.append(&lease.run, lease.epoch, note(1)).await.unwrap();
    assert_eq!(slow.next().await.unwrap().id.as_deref(), Some("1"));
    house.ledger.stream(&lease.run, lease.epoch, "kept up so far");
    assert_eq!(slow.next().await.unwrap().name, "text");
    for _ in 0..2000 {
        house.ledger.stream(&lease.run, lease.epoch, "x");
    }
    house.ledger.append(&lease.run, lease.epoch, note(2)).await.unwrap();
    let seen = slow.all().await;
    let odd = seen.iter().find(|it| it.name != "text");
    assert!(!seen.is_empty() && odd.is_none(), "{odd:?}");
    house.ledger.finish(&lease.run, lease.epoch, Outcome::succeeded("")).await.unwrap();
    let rest: Vec<_> =
        Stream::open(&router, Some("1")).await.all().await.into_iter().map(|it| it.id.unwrap()).collect();
    assert_eq!(rest, ["2", "end"]);
}
