use super::model::results;
use super::*;
use crate::transcript::Next;

fn writes(what: &[&str]) -> Reply {
    Reply::Calls(what.iter().map(|it| ("write", json!({"what": it}).to_string())).collect())
}

#[tokio::test]
async fn a_run_is_asked_answered_and_finished() {
    let house = House::new(|_, _| Reply::Stream(&[" 4", "2\n", ""])).await;
    let mut ticket = house.ticket("r");
    ticket.job.system = "Be brief.".to_owned();
    ticket.job.thinking = Some("high".to_owned());
    let mut follow = house.ledger.follow(&"r".into(), Seq(0));
    let run = house.run(ticket).await;
    assert_eq!(answer(&run), " 42\n", "word for word");
    assert_eq!(run.attempt, 1);
    assert_eq!(house.model.messages(0), ["system: Be brief.", "user: task of r"]);
    let (headers, body) = &house.model.asked()[0];
    assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!((&body["model"], &body["reasoning_effort"]), (&json!("m"), &json!("high")));
    let message = serde_json::to_value(Message::Assistant { text: " 42\n".to_owned(), calls: vec![] }).unwrap();
    let log = house.log("r").await;
    assert_eq!(log[0], Step::Asked { turn: 1, model: "m".to_owned() });
    assert!(matches!(&log[1], Step::Answered { message: it, .. } if *it == message) && log.len() == 2, "{log:?}");
    assert!(!format!("{log:?}").contains(KEY));
    // Follows from the beginning: the live text may be there or its time may have passed, the rest must be there.
    let mut seen = 0;
    while let Some(event) = follow.next().await.unwrap() {
        seen += usize::from(matches!(event, Event::Entry(_)));
    }
    assert_eq!(seen, 2);
}

#[tokio::test]
async fn text_is_seen_while_the_model_speaks_and_cancelling_hangs_up_at_once() {
    let house = House::new(|_, _| Reply::Hang(&["Once ", "upon"])).await;
    let mut follow = house.ledger.follow(&"r".into(), Seq(0));
    house.ledger.submit(house.ticket("r")).await.unwrap();
    let mut text = String::new();
    while text != "Once upon" {
        match follow.next().await.unwrap().expect("the run goes on") {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::State { .. } | Event::Entry(_) => {}
        }
    }
    house.model.open_requests(1).await;
    house.ledger.cancel(&"r".into(), "deleted").await.unwrap();
    house.model.open_requests(0).await;
    assert!(matches!(house.done("r").await.state, State::Done(Outcome::Cancelled { .. })));
}

#[tokio::test]
async fn a_session_goes_in_order_and_remembers_its_turns() {
    let house = House::new(|number, _| Reply::Text(["one", "two", "three"][number])).await;
    for run in ["a", "b", "c"] {
        house.ledger.submit(Ticket { session: "s".to_owned(), ..house.ticket(run) }).await.unwrap();
    }
    assert_eq!(answer(&house.done("c").await), "three");
    assert_eq!(
        house.model.messages(2),
        ["user: task of a", "assistant: one", "user: task of b", "assistant: two", "user: task of c"]
    );
}

#[tokio::test]
async fn tools_act_in_order_and_their_failures_go_to_the_model() {
    let house = House::new(|_, body| match results(body) {
        0 => Reply::Calls(vec![
            ("write", json!({"what": "a"}).to_string()),
            ("no_such_tool", "{}".to_owned()),
            ("write", "{\"what\": ".to_owned()),
            ("write", "[1]".to_owned()),
        ]),
        // Half of a surrogate pair, as models write it.
        6 => Reply::Calls(vec![("write", "{\"what\": \"\\ud83d\"}".to_owned())]),
        4 => writes(&["nonsense", "b"]),
        _ => Reply::Text("done"),
    })
    .await;
    let run = house.run(house.ticket("r")).await;
    assert_eq!(answer(&run), "done");
    assert_eq!(run.usage, ledger::Usage { tokens: Tokens { input: 400, output: 80, total: 480 }, tool_calls: 7 });
    assert_eq!(*house.tools.acted.lock().unwrap(), ["a", "nonsense", "b", "\u{fffd}"]);
    let told = house.model.told();
    assert_eq!((told[0].as_str(), told[4].as_str(), told[5].as_str()), ("wrote a", "wrote nonsense", "wrote b"));
    assert_eq!(told[1], "there is no tool \"no_such_tool\": this run has write, hang, panic");
    assert!(told[2].starts_with("the arguments of write are not a JSON object: EOF"), "{}", told[2]);
    assert!(told[3].starts_with("the arguments of write are not a JSON object: "), "{}", told[3]);
    let failed = house.log("r").await.into_iter().filter_map(|step| match step {
        Step::Returned { failed, .. } => Some(failed),
        _ => None,
    });
    let failed = failed.collect::<Vec<_>>();
    assert_eq!(failed, [false, true, true, true, true, false, false]);
}

#[tokio::test]
async fn a_denied_tool_is_not_offered_and_does_not_act() {
    let house = House::new(|_, body| if results(body) == 0 { writes(&["a"]) } else { Reply::Text("done") }).await;
    let mut ticket = house.ticket("r");
    let rules = vec![("write".to_owned(), Action::Deny)];
    ticket.job.tools.gate = Some(Gate { policy: "careful".to_owned(), default: Action::Allow, rules });
    assert_eq!(answer(&house.run(ticket).await), "done");
    let offered = house.model.asked()[0].1["tools"].clone();
    assert_eq!(offered.as_array().unwrap().len(), 2, "{offered}");
    assert_eq!(house.model.told(), ["denied: the policy careful does not allow the tool write"]);
    assert!(house.tools.acted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_passes_is_tried_again_and_noted() {
    let house = House::new(|number, _| match number {
        0 => Reply::Status(503, vec![], "scripted".to_owned()),
        1 => Reply::Status(429, vec![("retry-after", "0")], "slow down".to_owned()),
        2 => Reply::Half(&["half of"]),
        3 => Reply::Raw("{\"choices\": [{\"mess".to_owned()),
        _ => Reply::Text("at last"),
    })
    .await;
    assert_eq!(answer(&house.run(house.ticket("r")).await), "at last");
    let why = house.log("r").await.into_iter().filter_map(|step| match step {
        Step::Retrying { why, .. } => Some(why),
        _ => None,
    });
    let why = why.collect::<Vec<_>>();
    assert_eq!(why.len(), 4, "{why:?}");
    for (why, expected) in why.iter().zip(["503", "429", "cut off", "broken"]) {
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn what_does_not_pass_fails_the_run_with_the_reason_and_without_the_key() {
    let limit = 4 << 20;
    let house = House::new(move |_, body| match body["model"].as_str().unwrap() {
        "refuses" => Reply::Status(401, vec![], format!("Incorrect API key provided: {KEY}.")),
        "down" => Reply::Status(500, vec![], "oops".to_owned()),
        "busy" => Reply::Status(429, vec![("retry-after", "3600")], "slow down".to_owned()),
        "mumbles" => Reply::Raw("{".to_owned()),
        "talks" => Reply::Raw(json!({"choices": [{"message": {"content": "x".repeat(limit + 1)}}]}).to_string()),
        "loops" => writes(&["again"]),
        "mute" => Reply::Raw(json!({"choices": [{"message": {}, "finish_reason": "content_filter"}]}).to_string()),
        _ => Reply::Raw(json!({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}).to_string()),
    })
    .await;
    for (model, asked, expected) in [
        ("refuses", 1, vec!["401", "Incorrect API key provided: [the key]."]),
        ("down", 10, vec!["500", "oops", "asked 10 times"]),
        ("busy", 1, vec!["timeout: too little is left of the run's 1m", "429", "slow down"]),
        ("mumbles", 3, vec!["broken", "asked 3 times"]),
        ("mute", 1, vec!["the model provider's filter cut the answer before it said anything"]),
        ("talks", 1, vec!["larger than 4194304 bytes"]),
        ("loops", 50, vec!["asked 50 times and came to no end"]),
        ("silent", 1, vec!["cut at its limit of tokens before it said anything"]),
    ] {
        let mut ticket = house.ticket(model);
        ticket.job.model = model.to_owned();
        let error = house.fails(ticket).await;
        for expected in expected {
            assert!(error.contains(expected), "{model}: {error}");
        }
        assert!(!error.contains(KEY), "{error}");
        let found = house.model.asked().iter().filter(|(_, body)| body["model"] == model).count();
        assert_eq!(found, asked, "{model}");
    }
    for (run, provider, base_url) in [("nowhere", "ours", "not an address"), ("unknown", "theirs", "")] {
        let mut ticket = house.ticket(run);
        ticket.job.provider = provider.to_owned();
        ticket.job.base_url = base_url.to_owned();
        assert!(house.fails(ticket).await.contains("baseURL"));
    }
}

/// Also when the process dies between the answer and the end of the run.
#[tokio::test]
async fn an_answer_that_the_provider_cut_says_so_to_the_end() {
    let cut = |text: &str, reason: &str| {
        Reply::Raw(json!({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).to_string())
    };
    let house = House::new(move |_, body| match body["model"].as_str().unwrap() {
        "long" => cut("as much as", "length"),
        "rude" => cut("you", "content_filter"),
        _ => cut("enough", "stop"),
    })
    .await;
    for (model, answer, why) in [
        ("long", "as much as", Some("the model's answer was cut at its limit of tokens")),
        ("rude", "you", Some("the model provider's filter cut the answer")),
        ("good", "enough", None),
    ] {
        let mut ticket = house.ticket(model);
        ticket.job.model = model.to_owned();
        let outcome = Outcome::Succeeded { answer: answer.to_owned(), cut: why.map(str::to_owned) };
        assert_eq!(house.run(ticket.clone()).await.state, State::Done(outcome.clone()));
        let log = house.log(model).await;
        let entry = |(seq, step): (u32, &Step)| ledger::Entry {
            seq: Seq(seq),
            epoch: ledger::Epoch(1),
            at: Timestamp::UNIX_EPOCH,
            step: step.clone(),
        };
        let read = Transcript::read(&(1..).zip(&log).map(entry).collect::<Vec<_>>()).unwrap();
        let Next::End(end) = read.next() else { panic!("no end: {read:?}") };
        assert_eq!((end.text.as_str(), end.cut.as_deref()), (answer, why));
    }
}

#[tokio::test]
async fn calls_of_nothing_and_too_many_at_once_are_refused_one_by_one() {
    let house = House::new(|_, body| match results(body) {
        0 => {
            let write = |number: usize| ("write", json!({"what": number.to_string()}).to_string());
            Reply::Calls((0..127).map(write).chain([("", "{}".to_owned())]).chain((128..131).map(write)).collect())
        }
        131 => Reply::Text("enough"),
        some => panic!("{some} results"),
    })
    .await;
    let run = house.run(house.ticket("r")).await;
    assert_eq!(answer(&run), "enough");
    assert_eq!(house.model.asked().len(), 2, "no answer was broken");
    assert_eq!(house.tools.acted.lock().unwrap().len(), 127);
    let told = house.model.told();
    assert_eq!((told.len(), told[126].as_str()), (131, "wrote 126"));
    assert_eq!(told[127], "there is no tool \"\": this run has write, hang, panic");
    assert!(told[128..].iter().all(|it| it.starts_with("not called: no more than 128 calls")), "{:?}", &told[128..]);
}

#[tokio::test]
async fn a_provider_without_an_address_is_asked_at_the_one_given_for_its_name() {
    let house = House::new(|_, _| Reply::Text("ok")).await;
    let mut ticket = house.ticket("r");
    ticket.job.provider = "ours".to_owned();
    ticket.job.base_url = String::new();
    assert_eq!(answer(&house.run(ticket).await), "ok");
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails_and_hangs_up() {
    let house = House::new(|_, body| match body["model"].as_str().unwrap() {
        "thinks" => Reply::Hang(&[]),
        "speaks" => Reply::Hang(&["Once"]),
        "fails" => Reply::Status(429, vec![], "slow down".to_owned()),
        _ => Reply::Calls(vec![("hang", "{}".to_owned())]),
    })
    .await;
    for (model, cause, expected) in [
        ("thinks", Cause::Provider, "longer than 50ms; the model provider had not begun to answer"),
        ("speaks", Cause::Timeout, "longer than 50ms; the model was answering"),
        ("fails", Cause::Provider, "slow down"),
        ("acts", Cause::Timeout, "longer than 50ms; the tool hang was acting"),
    ] {
        let mut ticket = Ticket { timeout: Duration::from_millis(50), ..house.ticket(model) };
        ticket.job.model = model.to_owned();
        let State::Done(Outcome::Failed { error, cause: found }) = house.run(ticket).await.state else {
            panic!("{model}: not failed")
        };
        assert!(error.starts_with("timeout: ") && error.contains(expected), "{model}: {error}");
        assert_eq!(found, cause, "{model}: {error}");
    }
    house.model.open_requests(0).await;
    assert!(house.tools.dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn what_questions_cost_is_counted_though_no_answer_came_of_them() {
    let house = House::at(Clock::starting_at(Timestamp::UNIX_EPOCH), |_, body| match body["model"].as_str().unwrap() {
        "broken" => {
            Reply::Raw(r#"{"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}"#.to_owned())
        }
        "refuses" => Reply::Status(401, vec![], "no".to_owned()),
        _ => Reply::Hang(&["Once upon"]),
    })
    .await;
    let ticket = |model: &str| {
        let mut ticket = house.ticket(model);
        ticket.job.model = model.to_owned();
        ticket
    };
    let tokens = |run: &ledger::Run| {
        assert!(matches!(run.state, State::Done(Outcome::Failed { .. })), "{:?}", run.state);
        run.usage.tokens
    };
    let broken = house.run(ticket("broken")).await;
    assert_eq!(
        tokens(&broken),
        Tokens { input: 300, output: 60, total: 360 },
        "the provider's figures, of three tries"
    );
    assert_eq!(tokens(&house.run(ticket("refuses")).await), Tokens::default());
    let mut follow = house.ledger.follow(&"stalls".into(), Seq(0));
    house.ledger.submit(ticket("stalls")).await.unwrap();
    while !matches!(follow.next().await.unwrap(), Some(Event::Text { .. })) {}
    // Nothing more comes: the clock jumps to the run's deadline.
    tokio::time::pause();
    let Tokens { input, output, total } = tokens(&house.done("stalls").await);
    assert!(input > 0 && output == 3 && total == input + 3, "{input}, {output}, {total}");
    assert!(matches!(house.log("stalls").await.last(), Some(Step::Spent { .. })));
}

#[tokio::test]
async fn a_key_that_is_missing_is_waited_for_and_named() {
    let house = House::new(|_, _| Reply::Text("ok")).await;
    let mut ticket = Ticket { timeout: Duration::from_millis(50), ..house.ticket("late") };
    ticket.job.secret = Some("other".to_owned());
    let error = house.fails(ticket).await;
    assert_eq!(error, "timeout: the run took longer than 50ms; the Secret \"other\" is not there");
    house.secrets.lock().unwrap().insert("other".to_owned(), vec![("a", "x"), ("b", "y")]);
    let mut ticket = house.ticket("heals");
    ticket.job.secret = Some("other".to_owned());
    let mut follow = house.ledger.follow(&"heals".into(), Seq(0));
    house.ledger.submit(ticket).await.unwrap();
    let noted = loop {
        if let Some(Event::Entry(entry)) = follow.next().await.unwrap() {
            break entry.step.clone();
        }
    };
    assert!(matches!(&noted, Step::Noted { text } if text.contains("\"other\" has no key")), "{noted:?}");
    house.secrets.lock().unwrap().insert("other".to_owned(), vec![("OPENAI_API_KEY", "the only one")]);
    assert_eq!(answer(&house.done("heals").await), "ok");
    assert_eq!(house.model.asked()[0].0["authorization"], "Bearer the only one");
    let mut ticket = house.ticket("keyless");
    ticket.job.secret = None;
    assert_eq!(answer(&house.run(ticket).await), "ok");
    assert!(!house.model.asked()[1].0.contains_key("authorization"));
}

#[tokio::test]
async fn a_panic_fails_its_own_run_only() {
    let house = House::new(|_, body| match body["model"].as_str().unwrap() {
        "panics" => Reply::Calls(vec![("panic", "{}".to_owned())]),
        _ => Reply::Text("fine"),
    })
    .await;
    let mut ticket = house.ticket("p");
    ticket.job.model = "panics".to_owned();
    assert_eq!(house.fails(ticket).await, "internal error: the run's task panicked");
    assert_eq!(answer(&house.run(house.ticket("r")).await), "fine");
}

#[tokio::test]
async fn shutdown_gives_runs_back_at_once_and_another_runner_goes_on() {
    let script = |_: usize, body: &Value| match results(body) {
        0 => writes(&["a"]),
        1 => Reply::Calls(vec![("hang", "{}".to_owned())]),
        _ => Reply::Text("done"),
    };
    let house = House::new(script).await;
    house.ledger.submit(house.ticket("r")).await.unwrap();
    house.tools.hanging.begun().await;
    house.tasks.end().await;
    assert!(house.tools.dropped.load(Ordering::SeqCst));
    let run = house.ledger.run(&"r".into()).await.unwrap().unwrap();
    assert_eq!((run.state, run.attempt), (State::Queued, 1));
    let again = house.again(house.ledger.clone());
    let run = again.done("r").await;
    assert_eq!((answer(&run), run.attempt), ("done", 2));
    assert!(again.tools.acted.lock().unwrap().is_empty());
    assert!(house.model.told()[1].starts_with("interrupted, outcome unknown"), "{:?}", house.model.told());
}

/// For every prefix of a run's log: whoever finds it comes to the same end and repeats nothing that was logged.
#[tokio::test]
async fn killed_after_any_step_a_run_comes_to_the_same_end_and_repeats_nothing() {
    let script = |_: usize, body: &Value| match results(body) {
        0 => writes(&["a", "b"]),
        2 => writes(&["c"]),
        _ => Reply::Text("finished"),
    };
    let house = House::new(script).await;
    assert_eq!(answer(&house.run(house.ticket("r")).await), "finished");
    let whole = house.log("r").await;
    let kinds = |log: &[Step]| log.iter().map(std::mem::discriminant).collect::<Vec<_>>();
    assert_eq!(whole.len(), 12);
    for length in 0..=whole.len() {
        let home = tempfile::tempdir().unwrap();
        let file = || Ledger::open(Location::File(home.path().join("ledger.db")), Clock::system()).unwrap();
        let ledger = file();
        let prefix = &whole[..length];
        ledger.submit(house.ticket("r")).await.unwrap();
        let lease = ledger.lease("killed").await.unwrap();
        for step in prefix {
            ledger.append(&lease.run, lease.epoch, step.clone()).await.unwrap();
        }
        std::mem::forget(lease); // A killed process gives nothing back.
        let asked_before = house.model.asked().len();
        let again = house.again(file());
        let run = again.done("r").await;
        assert_eq!((answer(&run), run.attempt), ("finished", 2), "after {length} steps");
        let log = again.log("r").await;
        assert_eq!(&log[..length], prefix, "after {length} steps");
        // What was logged stays; what was only asked is asked again, and logged so.
        let asked_again = usize::from(matches!(prefix.last(), Some(Step::Asked { .. })));
        let mut rest = log[length..].to_vec();
        rest.drain(..asked_again);
        assert_eq!(kinds(&rest), kinds(&whole[length..]), "after {length} steps");
        let asked = house.model.asked().len() - asked_before;
        let answered = |log: &[Step]| log.iter().filter(|it| matches!(it, Step::Answered { .. })).count();
        assert_eq!(asked, answered(&whole[length..]), "after {length} steps");
        let called = prefix.iter().filter(|it| matches!(it, Step::Called { .. })).count();
        assert_eq!(*again.tools.acted.lock().unwrap(), ["a", "b", "c"][called..], "after {length} steps");
        let lost = matches!(prefix.last(), Some(Step::Called { .. }));
        let told = house.model.told();
        if asked > 0 {
            let interrupted: Vec<_> = told.iter().filter(|it| it.starts_with("interrupted, outcome unknown")).collect();
            assert_eq!(interrupted.len(), usize::from(lost), "after {length} steps: {told:?}");
        }
        again.tasks.end().await;
    }
}
