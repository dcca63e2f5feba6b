use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn ticket(run: &str) -> Ticket {
    Ticket {
        run: run.into(),
        namespace: "default".to_owned(),
        name: format!("name-of-{run}"),
        instance: "me".to_owned(),
        session: String::new(),
        created: at(0),
        limit: 5,
        timeout: Duration::from_secs(600),
        job: Job { task: format!("do {run}"), model: "m".to_owned(), ..Job::default() },
    }
}

fn in_session(run: &str, session: &str) -> Ticket {
    Ticket { session: session.to_owned(), ..ticket(run) }
}

fn noted(text: &str) -> Step {
    Step::Noted { text: text.to_owned() }
}

fn succeeded(answer: &str) -> Outcome {
    Outcome::succeeded(answer)
}

fn state(attempt: u32, state: State) -> Event {
    Event::State { attempt, state }
}

fn memory() -> Ledger {
    Ledger::open(Location::Memory, Clock::system()).unwrap()
}

fn file(path: &Path) -> Result<Ledger, Error> {
    Ledger::open(Location::File(path.to_owned()), Clock::system())
}

/// What a kill -9 leaves: the files as they are, in another place.
fn killed(path: &Path) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for end in ["", "-wal"] {
        let from = format!("{}{end}", path.display());
        if Path::new(&from).exists() {
            std::fs::copy(from, home.path().join(format!("ledger.db{end}"))).unwrap();
        }
    }
    home
}

/// Polls once: is it due already?
async fn now<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! { biased; it = future => Some(it), () = std::future::ready(()) => None }
}

/// A lease that is due, or the knowledge that none is: the writer has dealt with the request when the order after it is
/// answered.
async fn due(ledger: &Ledger) -> Option<Lease> {
    let mut lease = Box::pin(ledger.lease("test"));
    if let Some(lease) = now(&mut lease).await {
        return Some(lease.unwrap());
    }
    ledger.cancel(&"nobody".into(), "").await.unwrap();
    let granted = ledger.0.writer.lock().unwrap().waiting() == 0;
    if granted { Some(lease.await.unwrap()) } else { None }
}

#[tokio::test]
async fn a_run_is_leased_logged_and_finished_once() {
    let ledger = memory();
    ledger.submit(ticket("r")).await.unwrap();
    ledger.submit(ticket("r")).await.unwrap();
    let lease = ledger.lease("one").await.unwrap();
    assert_eq!((lease.run.as_str(), lease.epoch, &lease.ticket), ("r", Epoch(1), &ticket("r")));
    assert!(lease.log.is_empty() && lease.history.is_empty());
    let usage = Tokens { input: 100, output: 20, total: 120 };
    let steps = [
        Step::Asked { turn: 1, model: "m".to_owned() },
        Step::Answered { message: json!({"role": "assistant", "content": "a\u{0}b"}), usage, cut: None },
        Step::Called { call_id: "c".to_owned(), name: "t".to_owned(), arguments: "{}".to_owned() },
        Step::Returned { call_id: "c".to_owned(), output: "out".to_owned(), failed: false },
        Step::Retrying { why: "503".to_owned(), wait: Duration::from_millis(1500) },
    ];
    let (first, rest) = steps.split_at(1);
    assert_eq!(ledger.append(&lease.run, lease.epoch, first[0].clone()).await.unwrap(), Seq(1));
    assert_eq!(ledger.append_all(&lease.run, lease.epoch, rest.to_vec()).await.unwrap(), Seq(5));
    assert_eq!(ledger.run(&lease.run).await.unwrap().unwrap().state, State::Running);
    ledger.finish(&lease.run, lease.epoch, succeeded("42")).await.unwrap();
    let again = ledger.finish(&lease.run, lease.epoch, succeeded("43")).await;
    assert!(matches!(again, Err(Error::Stale { .. })), "{again:?}");
    assert!(matches!(ledger.append(&lease.run, lease.epoch, noted("late")).await, Err(Error::Stale { .. })));
    ledger.submit(ticket("r")).await.unwrap();
    let run = ledger.run(&lease.run).await.unwrap().unwrap();
    assert_eq!((run.state.clone(), run.attempt), (State::Done(succeeded("42")), 1));
    assert_eq!(run.usage, Usage { tokens: usage, tool_calls: 1 });
    assert!(run.duration().is_some() && run.name == "name-of-r");
    assert!(due(&ledger).await.is_none(), "a finished run is not leased again");
    let mut follow = ledger.follow(&lease.run, Seq(0));
    for step in steps {
        let Some(Event::Entry(entry)) = follow.next().await.unwrap() else { panic!("an entry") };
        assert_eq!(entry.step, step);
    }
    assert_eq!(follow.next().await.unwrap(), Some(state(1, run.state)));
    assert_eq!(follow.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_released_run_goes_on_with_its_log_and_its_old_holder_changes_nothing() {
    let ledger = memory();
    ledger.submit(ticket("r")).await.unwrap();
    let first = ledger.lease("one").await.unwrap();
    ledger.append(&first.run, first.epoch, noted("begun")).await.unwrap();
    ledger.release(&first.run, first.epoch).await.unwrap();
    let second = ledger.lease("two").await.unwrap();
    assert_eq!((second.epoch, second.started), (Epoch(2), first.started));
    assert_eq!(
        second.log.iter().map(|it| (it.seq, it.epoch, &it.step)).collect::<Vec<_>>(),
        [(Seq(1), Epoch(1), &noted("begun"))]
    );
    assert!(matches!(ledger.append(&first.run, first.epoch, noted("late")).await, Err(Error::Stale { .. })));
    assert!(matches!(ledger.finish(&first.run, first.epoch, succeeded("x")).await, Err(Error::Stale { .. })));
    ledger.release(&first.run, first.epoch).await.unwrap();
    assert_eq!(ledger.append(&second.run, second.epoch, noted("mine")).await.unwrap(), Seq(2));
    first.cancelled().await;
    drop(second);
    assert_eq!(ledger.lease("three").await.unwrap().epoch, Epoch(3), "a dropped lease is given back");
}

#[tokio::test]
async fn a_lease_nobody_waits_for_any_more_goes_to_the_next_one() {
    let ledger = memory();
    let mut gone = Box::pin(ledger.lease("gone"));
    assert!(now(&mut gone).await.is_none());
    ledger.submit(ticket("r")).await.unwrap();
    drop(gone);
    let lease = ledger.lease("here").await.unwrap();
    assert_eq!(lease.run.as_str(), "r");
}

#[tokio::test]
async fn limits_hold_and_a_queued_runs_new_limit_is_taken_over() {
    let ledger = memory();
    for run in ["a", "b", "c"] {
        ledger.submit(Ticket { limit: 1, ..ticket(run) }).await.unwrap();
    }
    let first = due(&ledger).await.unwrap();
    assert!(due(&ledger).await.is_none());
    ledger.submit(Ticket { limit: 9, ..ticket("a") }).await.unwrap();
    assert!(due(&ledger).await.is_none(), "a leased run's ticket changes nothing");
    ledger.submit(Ticket { limit: 2, ..ticket("c") }).await.unwrap();
    let second = due(&ledger).await.unwrap();
    assert_eq!((first.run.as_str(), second.run.as_str()), ("a", "b"));
    assert!(due(&ledger).await.is_none());
    ledger.finish(&first.run, first.epoch, succeeded("x")).await.unwrap();
    assert_eq!(due(&ledger).await.unwrap().run.as_str(), "c");
}

#[tokio::test]
async fn a_session_remembers_what_succeeded_and_shares_nothing() {
    let ledger = memory();
    for (run, session) in [("a", "s"), ("b", "s"), ("c", "s"), ("d", ""), ("e", "other")] {
        ledger.submit(in_session(run, session)).await.unwrap();
    }
    ledger.submit(Ticket { instance: "you".to_owned(), ..in_session("f", "s") }).await.unwrap();
    for (run, outcome, turns) in [
        ("a", succeeded(" one\n"), vec![]),
        ("f", succeeded("x"), vec![]),
        ("b", Outcome::failed(Cause::Other, "no"), vec!["a"]),
        ("c", succeeded("x"), vec!["a"]),
        ("d", succeeded("x"), vec![]),
        ("e", succeeded("x"), vec![]),
    ] {
        let lease = ledger.lease("test").await.unwrap();
        assert_eq!(lease.run.as_str(), run);
        let expected: Vec<_> =
            turns.iter().map(|it| Turn { task: format!("do {it}"), answer: " one\n".to_owned() }).collect();
        assert_eq!(lease.history, expected, "{run}");
        ledger.finish(&lease.run, lease.epoch, outcome).await.unwrap();
    }
    ledger.forget(&"a".into()).await.unwrap();
    ledger.submit(in_session("g", "s")).await.unwrap();
    let lease = ledger.lease("test").await.unwrap();
    assert_eq!(lease.history.iter().map(|it| it.task.as_str()).collect::<Vec<_>>(), ["do a", "do c"]);
    ledger.forget_instance("default", "me").await.unwrap();
    lease.cancelled().await;
    let cancelled = State::Done(Outcome::Cancelled { reason: "the instance me was deleted".to_owned() });
    assert_eq!(ledger.run(&lease.run).await.unwrap().unwrap().state, cancelled);
    ledger.submit(in_session("h", "s")).await.unwrap();
    assert_eq!(ledger.lease("test").await.unwrap().history, []);
}

#[tokio::test]
async fn cancelling_unqueues_or_stops_and_forgetting_leaves_nothing() {
    let ledger = memory();
    for run in ["a", "b"] {
        ledger.submit(ticket(run)).await.unwrap();
    }
    let lease = ledger.lease("test").await.unwrap();
    let mut follow = ledger.follow(&lease.run, Seq(0));
    assert_eq!(follow.next().await.unwrap(), Some(state(1, State::Running)));
    assert!(now(lease.cancelled()).await.is_none());
    for run in ["a", "b", "a", "unknown"] {
        ledger.cancel(&run.into(), "deleted").await.unwrap();
    }
    lease.cancelled().await;
    let cancelled = State::Done(Outcome::Cancelled { reason: "deleted".to_owned() });
    assert_eq!(follow.next().await.unwrap(), Some(state(1, cancelled.clone())));
    assert_eq!(ledger.run(&"b".into()).await.unwrap().unwrap().state, cancelled);
    assert!(matches!(ledger.finish(&lease.run, lease.epoch, succeeded("x")).await, Err(Error::Stale { .. })));
    assert!(due(&ledger).await.is_none());
    ledger.submit(ticket("c")).await.unwrap();
    let lease = ledger.lease("test").await.unwrap();
    ledger.append(&lease.run, lease.epoch, noted("x")).await.unwrap();
    let mut follow = ledger.follow(&lease.run, Seq(1));
    assert_eq!(follow.next().await.unwrap(), Some(state(1, State::Running)));
    for run in ["a", "b", "c", "unknown"] {
        ledger.forget(&run.into()).await.unwrap();
        assert_eq!(ledger.run(&run.into()).await.unwrap(), None);
    }
    lease.cancelled().await;
    assert!(matches!(
        follow.next().await.unwrap(),
        Some(Event::State { attempt: 1, state: State::Done(Outcome::Cancelled { .. }) })
    ));
    assert_eq!(follow.next().await.unwrap(), None);
    let rows = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        ledger.0.reads.read(move |it| it.query_row(&sql, [], |row| row.get::<_, i64>(0)))
    };
    for table in ["runs", "jobs", "log", "turns"] {
        assert_eq!(rows(table).await.unwrap(), 0, "{table}");
    }
}

#[tokio::test]
async fn a_follower_sees_all_that_happens_and_a_slow_one_is_cut_off() {
    let ledger = memory();
    let mut changes = ledger.changes();
    let mut early = ledger.follow(&"r".into(), Seq(0));
    assert!(now(early.next()).await.is_none());
    ledger.submit(ticket("r")).await.unwrap();
    assert_eq!(early.next().await.unwrap(), Some(state(0, State::Queued)));
    let (event, lease) = tokio::join!(early.next(), ledger.lease("test"));
    let lease = lease.unwrap();
    assert_eq!(event.unwrap(), Some(state(1, State::Running)));
    ledger.stream(&lease.run, lease.epoch, "He");
    ledger.stream(&lease.run, Epoch(7), "of a stranger");
    ledger.append(&lease.run, lease.epoch, noted("one")).await.unwrap();
    let mut slow = ledger.follow(&lease.run, Seq(0));
    ledger.stream(&lease.run, lease.epoch, "llo");
    let mut late = ledger.follow(&lease.run, Seq(1));
    assert_eq!(late.next().await.unwrap(), Some(state(1, State::Running)));
    ledger.append(&lease.run, lease.epoch, noted("two")).await.unwrap();
    ledger.finish(&lease.run, lease.epoch, succeeded("x")).await.unwrap();
    async fn rest(follow: &mut Follow) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(event) = follow.next().await.unwrap() {
            seen.push(match event {
                Event::State { attempt, state } => format!("{attempt} {state:?}"),
                Event::Entry(entry) => format!("{:?} {:?}", entry.seq, entry.step),
                Event::Text { text, .. } => text.to_string(),
            });
        }
        seen
    }
    let (one, two) = ("Seq(1) Noted { text: \"one\" }", "Seq(2) Noted { text: \"two\" }");
    let done = "1 Done(Succeeded { answer: \"x\", cut: None })";
    assert_eq!(rest(&mut early).await, ["He", one, "llo", two, done]);
    assert_eq!(rest(&mut late).await, [two, done]);
    assert_eq!(rest(&mut slow).await, [one, two, done], "nothing lost between the log and what is live, no old text");
    for _ in ["queued", "running", "done"] {
        let change = changes.next().await.unwrap();
        assert!(matches!(&change, Change::Run { run, name, .. } if run.as_str() == "r" && &**name == "name-of-r"));
    }

    ledger.submit(ticket("q")).await.unwrap();
    let lease = ledger.lease("test").await.unwrap();
    for (piece, count) in [("x".repeat(1 << 20), 6), ("x".to_owned(), 2000)] {
        let mut slow = ledger.follow(&lease.run, Seq(0));
        slow.next().await.unwrap();
        for _ in 0..count {
            ledger.stream(&lease.run, lease.epoch, &piece);
        }
        let cut = loop {
            match slow.next().await {
                Ok(event) => assert!(event.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(cut, Error::TooSlow));
    }
    drop(lease);
    drop(ledger.lease("test").await.unwrap());
    assert!(due(&ledger).await.is_some());
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_changes_nothing() {
    let ledger = memory();
    let large = |bytes: usize| "x".repeat(bytes);
    let task = Ticket { job: Job { task: large(JOB_LIMIT), ..Job::default() }, ..ticket("r") };
    assert!(matches!(ledger.submit(task).await, Err(Error::TooLarge { what: "the job", .. })));
    let session = in_session("r", &large(2000));
    assert!(matches!(ledger.submit(session).await, Err(Error::TooLarge { what: "the session's key", .. })));
    ledger.submit(ticket("r")).await.unwrap();
    let lease = ledger.lease("test").await.unwrap();
    let error = ledger.append(&lease.run, lease.epoch, noted(&large(STEP_LIMIT))).await.unwrap_err();
    assert_eq!(error.to_string(), "a step has 1048602 bytes, more than 1048576");
    let answer = |bytes| Step::Answered { message: json!(large(bytes)), usage: Tokens::default(), cut: None };
    assert!(ledger.append(&lease.run, lease.epoch, answer(ANSWER_LIMIT)).await.is_err());
    assert!(ledger.finish(&lease.run, lease.epoch, succeeded(&large(ANSWER_LIMIT + 1))).await.is_err());
    ledger.finish(&lease.run, lease.epoch, Outcome::failed(Cause::Other, "too large")).await.unwrap();
}

#[tokio::test]
async fn a_log_has_a_limit_over_all_attempts() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    file(&path).unwrap().submit(ticket("r")).await.unwrap();
    let database = rusqlite::Connection::open(&path).unwrap();
    for (column, value) in [("bytes", LOG_BYTES - 100), ("entries", LOG_ENTRIES as usize - 2)] {
        database.execute(&format!("UPDATE runs SET {column} = {value}"), []).unwrap();
    }
    let ledger = file(&path).unwrap();
    let lease = ledger.lease("test").await.unwrap();
    let (large, small) = (noted(&"x".repeat(100)), noted("x"));
    let together = ledger.append_all(&lease.run, lease.epoch, vec![small.clone(); 3]).await;
    assert!(matches!(together, Err(Error::LogFull { .. })), "all or none: {together:?}");
    for (step, fits) in [(large, false), (small.clone(), true), (small.clone(), true), (small, false)] {
        let appended = ledger.append(&lease.run, lease.epoch, step).await;
        assert!(appended.is_ok() == fits && matches!(appended, Ok(_) | Err(Error::LogFull { .. })), "{appended:?}");
    }
    ledger.finish(&lease.run, lease.epoch, Outcome::failed(Cause::Other, "full")).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_reads_go_on() {
    let home = tempfile::tempdir().unwrap();
    let ledger = file(&home.path().join("ledger.db")).unwrap();
    ledger.submit(ticket("r")).await.unwrap();
    let lease = ledger.lease("test").await.unwrap();
    ledger.append(&lease.run, lease.epoch, noted("before")).await.unwrap();
    let limit = |pages: u32| {
        let writer = ledger.0.writer.lock().unwrap();
        writer.connection().pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(1); // SQLite makes it the size that the file has.
    let large = || noted(&"x".repeat(100_000));
    let many = (0..4).map(|_| ledger.append(&lease.run, lease.epoch, large())).collect::<Vec<_>>();
    for refused in many {
        let refused = refused.await.unwrap_err();
        assert!(matches!(refused, Error::Full) && refused.class() == kit::Class::Retry(None), "{refused:?}");
    }
    ledger.append(&lease.run, lease.epoch, noted("small")).await.expect("what fits is written");
    assert_eq!(ledger.run(&lease.run).await.unwrap().unwrap().state, State::Running);
    limit(1_000_000);
    assert_eq!(ledger.append(&lease.run, lease.epoch, large()).await.unwrap(), Seq(3));
    ledger.release(&lease.run, lease.epoch).await.unwrap();
    let steps: Vec<_> = ledger.lease("test").await.unwrap().log.into_iter().map(|it| it.step).collect();
    assert_eq!(steps, [noted("before"), noted("small"), large()]);
}

#[tokio::test]
async fn everything_acknowledged_survives_a_kill_at_any_moment() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = file(&path).unwrap();
    let check = async |what: &str, state: Option<State>, log: usize, history: usize| {
        let copy = killed(&path);
        let again = file(&copy.path().join("ledger.db")).unwrap();
        let expected = match &state {
            Some(State::Running) => Some(State::Queued), // Leases of earlier processes are void.
            other => other.clone(),
        };
        let found = again.run(&"r".into()).await.unwrap();
        assert_eq!(found.as_ref().map(|run| run.state.clone()), expected, "{what}");
        again.submit(Ticket { created: at(9), ..in_session("later", "s") }).await.unwrap();
        let lease = again.lease("again").await.unwrap();
        if let Some(State::Queued | State::Running) = state {
            assert_eq!((lease.run.as_str(), lease.log.len()), ("r", log), "{what}");
            assert_eq!(lease.epoch.0, found.unwrap().attempt + 1, "{what}");
            assert!(due(&again).await.is_none(), "{what}: the session waits");
        } else {
            assert_eq!((lease.run.as_str(), lease.history.len()), ("later", history), "{what}");
        }
    };
    check("empty", None, 0, 0).await;
    ledger.submit(in_session("r", "s")).await.unwrap();
    check("submitted", Some(State::Queued), 0, 0).await;
    let lease = ledger.lease("test").await.unwrap();
    check("leased", Some(State::Running), 0, 0).await;
    for count in 1..4 {
        ledger.append(&lease.run, lease.epoch, noted("step")).await.unwrap();
        check("logged", Some(State::Running), count, 0).await;
    }
    ledger.finish(&lease.run, lease.epoch, succeeded("x")).await.unwrap();
    check("finished", Some(State::Done(succeeded("x"))), 0, 1).await;
    ledger.forget(&lease.run).await.unwrap();
    check("forgotten", None, 0, 1).await;
    ledger.forget_instance("default", "me").await.unwrap();
    check("without instance", None, 0, 0).await;
}

#[tokio::test]
async fn a_run_whose_record_cannot_be_read_fails_and_holds_up_nobody() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = file(&path).unwrap();
    for run in ["a", "b", "c"] {
        ledger.submit(ticket(run)).await.unwrap();
    }
    let database = rusqlite::Connection::open(&path).unwrap();
    let spoil = |sql: &str| assert_eq!(database.execute(sql, []).unwrap(), 1);
    spoil("UPDATE jobs SET job = '{' WHERE id = (SELECT id FROM runs WHERE run = 'a')");
    spoil("DELETE FROM jobs WHERE id = (SELECT id FROM runs WHERE run = 'b')");
    assert_eq!(ledger.lease("test").await.unwrap().run.as_str(), "c");
    for (run, why) in [("a", "EOF while parsing"), ("b", "the job of run b is missing")] {
        let state = ledger.run(&run.into()).await.unwrap().unwrap().state;
        assert!(matches!(&state, State::Done(Outcome::Failed { error, .. }) if error.contains(why)), "{state:?}");
    }
}

#[tokio::test]
async fn who_misses_changes_is_told_to_look_at_all() {
    let ledger = memory();
    let mut changes = ledger.changes();
    for run in 0..5000 {
        ledger.submit(ticket(&run.to_string())).await.unwrap();
    }
    assert_eq!(changes.next().await, Some(Change::All));
    assert!(matches!(changes.next().await, Some(Change::Run { .. })));
}

#[tokio::test]
async fn opening_looks_at_no_run_that_is_done() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    drop(file(&path).unwrap());
    let database = rusqlite::Connection::open(&path).unwrap();
    for (sql, index) in [
        ("UPDATE runs SET state = 0 WHERE state = 1", "runs_leased"),
        ("SELECT * FROM runs r WHERE r.state < 2", "runs_active"),
        ("SELECT count(*) FROM runs WHERE state = 1 AND namespace = 'a' AND instance = 'b'", "runs_leased"),
    ] {
        let plan: String =
            database.query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get("detail")).unwrap();
        assert!(plan.contains(index), "{sql}: {plan}");
    }
}

#[tokio::test]
async fn a_ledger_that_is_newer_or_none_is_refused_and_stays_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    drop(file(&path).unwrap());
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(database);
    let before = std::fs::read(&path).unwrap();
    let error = file(&path).err().unwrap();
    assert!(matches!(error, Error::Newer { found, known, .. } if found == known + 1), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    std::fs::write(&path, "this is a letter to my aunt, and no database at all".repeat(100)).unwrap();
    assert!(matches!(file(&path).err().unwrap(), Error::Corrupt { .. }));
    let other = home.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(file(&other).err().unwrap(), Error::Corrupt { what } if what.ends_with("is not a ledger")));
    let error = file(&home.path().join("no/such/directory")).err().unwrap();
    assert!(matches!(error, Error::Open { .. }) && kit::chain(&error).contains("unable to open"), "{error}");
}

#[tokio::test]
async fn many_at_once_lose_nothing_and_double_nothing() {
    let home = tempfile::tempdir().unwrap();
    let ledger = file(&home.path().join("ledger.db")).unwrap();
    let tasks = kit::Tasks::new(kit::Shutdown::new());
    let leased = Arc::new(Mutex::new(Vec::new()));
    for holder in 0..8 {
        let (ledger, leased) = (ledger.clone(), leased.clone());
        tasks.tenant("holder", async move {
            for _ in 0..25 {
                let lease = ledger.lease(&holder.to_string()).await.unwrap();
                leased.lock().unwrap().push(lease.run.to_string());
                for _ in 0..3 {
                    ledger.append(&lease.run, lease.epoch, noted("x")).await.unwrap();
                }
                ledger.finish(&lease.run, lease.epoch, succeeded("x")).await.unwrap();
            }
        });
    }
    for run in 0..200 {
        ledger.submit(in_session(&format!("{run:03}"), &(run % 20).to_string())).await.unwrap();
    }
    tasks.end().await;
    let mut leased = leased.lock().unwrap().clone();
    leased.sort();
    assert_eq!(leased, (0..200).map(|run| format!("{run:03}")).collect::<Vec<_>>());
}

fn claimant(run: &str, session: &str) -> Claimant {
    Claimant {
        namespace: "default".to_owned(),
        instance: "me".to_owned(),
        session: session.to_owned(),
        run: run.into(),
        pod: format!("pod-of-{session}"),
        shape: "{}".to_owned(),
    }
}

#[tokio::test]
async fn a_sandbox_is_one_sessions_and_a_session_has_one_sandbox() {
    let ledger = memory();
    for (run, session) in [("a", "s"), ("b", "t"), ("c", ""), ("d", "")] {
        ledger.submit(in_session(run, session)).await.unwrap();
    }
    let not_begun = ledger.claim("one", claimant("a", "s")).await;
    assert!(matches!(not_begun, Err(Error::NotLeased { .. })));
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(ledger.lease("test").await.unwrap());
    }
    let mut changes = ledger.changes();
    let first = ledger.claim("one", claimant("a", "s")).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Run { run, .. }) if run == "a".into()));
    assert_eq!(ledger.run(&"a".into()).await.unwrap().unwrap().pod.as_deref(), Some("pod-of-s"));
    for (sandbox, run, session) in [("one", "b", "t"), ("two", "a", "s")] {
        let taken = ledger.claim(sandbox, claimant(run, session)).await;
        assert!(matches!(taken, Err(Error::Claimed { .. })), "{sandbox} {session}");
    }
    ledger.claim("two", claimant("c", "")).await.unwrap();
    ledger.claim("three", claimant("d", "")).await.unwrap();
    assert!(ledger.claim("four", claimant("d", "")).await.is_err(), "one each");

    ledger.unclaim(first).await.unwrap();
    let second = ledger.claim("one", claimant("b", "t")).await.unwrap();
    assert!(second > first);
    ledger.unclaim(first).await.unwrap();
    assert!(matches!(ledger.reuse(first, &"b".into()).await, Err(Error::Unclaimed { .. })), "an old epoch");
    let held = ledger.claims().await.unwrap();
    assert_eq!(held.iter().map(|it| it.sandbox.as_str()).collect::<Vec<_>>(), ["two", "three", "one"]);
    assert_eq!(held[2].by, claimant("b", "t"));
}

#[tokio::test]
async fn claims_outlive_the_process_and_end_with_their_run_or_instance() {
    let home = tempfile::tempdir().unwrap();
    let ledger = file(&home.path().join("ledger.db")).unwrap();
    for (run, session) in [("a", "s"), ("b", "")] {
        ledger.submit(in_session(run, session)).await.unwrap();
    }
    let (_a, _b) = (ledger.lease("test").await.unwrap(), ledger.lease("test").await.unwrap());
    let first = ledger.claim("one", claimant("a", "s")).await.unwrap();
    ledger.claim("two", claimant("b", "")).await.unwrap();
    ledger.finish(&"a".into(), _a.epoch, succeeded("x")).await.unwrap();
    assert!(matches!(ledger.reuse(first, &"a".into()).await, Err(Error::NotLeased { .. })), "the run is over");
    ledger.submit(in_session("c", "s")).await.unwrap();
    let _c = ledger.lease("test").await.unwrap();
    ledger.reuse(first, &"c".into()).await.unwrap();
    assert_eq!(ledger.run(&"c".into()).await.unwrap().unwrap().pod.as_deref(), Some("pod-of-s"));

    let copy = killed(&home.path().join("ledger.db"));
    let again = file(&copy.path().join("ledger.db")).unwrap();
    assert_eq!(again.claims().await.unwrap(), ledger.claims().await.unwrap());
    let held = async || again.claims().await.unwrap().into_iter().map(|it| it.sandbox).collect::<Vec<_>>();
    again.forget(&"c".into()).await.unwrap();
    assert_eq!(held().await, ["one", "two"], "a session's sandbox outlives its runs");
    again.forget(&"b".into()).await.unwrap();
    assert_eq!(held().await, ["one"]);
    again.forget_instance("default", "me").await.unwrap();
    assert!(held().await.is_empty());
}

#[tokio::test]
async fn why_the_model_is_asked_again_is_told_until_it_answers_also_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = file(&path).unwrap();
    ledger.submit(ticket("r")).await.unwrap();
    let lease = ledger.lease("one").await.unwrap();
    let mut changes = ledger.changes();
    let retrying = |why: &str| Step::Retrying { why: why.to_owned(), wait: Duration::from_secs(1) };
    let trouble = async |ledger: &Ledger| ledger.run(&"r".into()).await.unwrap().unwrap().trouble;
    ledger.append(&lease.run, lease.epoch, retrying("429")).await.unwrap();
    assert!(now(changes.next()).await.is_some());
    ledger.append(&lease.run, lease.epoch, retrying(&"é".repeat(1 << 16))).await.unwrap();
    assert_eq!(trouble(&ledger).await, Some("é".repeat(512)), "bounded");
    ledger.append(&lease.run, lease.epoch, noted("by the way")).await.unwrap();
    let copy = killed(&path);
    let again = file(&copy.path().join("ledger.db")).unwrap();
    assert!(trouble(&again).await.is_some());
    let lease = again.lease("two").await.unwrap();
    let mut changes = again.changes();
    for _ in 0..2 {
        again.append(&lease.run, lease.epoch, Step::Asked { turn: 1, model: "m".to_owned() }).await.unwrap();
        assert_eq!(trouble(&again).await, None);
    }
    assert!(now(changes.next()).await.is_some());
    assert!(now(changes.next()).await.is_none(), "nothing changed twice");
}

#[tokio::test]
async fn runs_that_go_on_are_counted_for_their_instance() {
    let ledger = memory();
    for (run, instance) in [("a", "me"), ("b", "me"), ("c", "you"), ("d", "me")] {
        ledger.submit(Ticket { instance: instance.to_owned(), limit: 2, ..ticket(run) }).await.unwrap();
    }
    let mut leases = Vec::new();
    while let Some(lease) = due(&ledger).await {
        leases.push(lease);
    }
    let running = async |instance| ledger.running("default", instance).await.unwrap();
    assert_eq!((running("me").await, running("you").await, running("nobody").await), (2, 1, 0));
    let first = &leases[0];
    ledger.finish(&first.run, first.epoch, succeeded("")).await.unwrap();
    assert_eq!(running(&first.ticket.instance).await, if first.ticket.instance == "me" { 1 } else { 0 });
}

#[tokio::test]
async fn a_snapshot_is_a_ledger_of_its_own_and_a_damaged_one_is_found() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = file(&path).unwrap();
    ledger.submit(ticket("before")).await.unwrap();
    let snapshot = Snapshot::of(&path).unwrap();
    ledger.submit(ticket("after")).await.unwrap();
    let copy = home.path().join("copy.db");
    snapshot.write(&copy, &|| true).unwrap();
    assert!(matches!(snapshot.write(&copy, &|| true), Err(Error::Copy { .. })), "it overwrote a file");
    assert!(matches!(snapshot.write(&home.path().join("x"), &|| false), Err(Error::Copy { .. })));
    check(&copy).unwrap();
    let known = async |ledger: &Ledger, run: &str| ledger.run(&run.into()).await.unwrap().is_some();
    let again = file(&copy).unwrap();
    assert!(known(&again, "before").await && !known(&again, "after").await);
    assert!(known(&ledger, "after").await);
    drop(again);

    let mut bytes = std::fs::read(&copy).unwrap();
    bytes[4096..8192].fill(0xa5);
    let damaged = home.path().join("damaged.db");
    std::fs::write(&damaged, bytes).unwrap();
    assert!(check(&damaged).is_err());
    std::fs::write(&damaged, "SQLite is what this is not. ".repeat(100)).unwrap();
    assert!(matches!(check(&damaged), Err(Error::Corrupt { .. })));
    assert!(matches!(Snapshot::of(&home.path().join("absent")), Err(Error::Open { .. })));
}
