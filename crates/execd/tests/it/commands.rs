use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use serde_json::json;

use crate::house::{Execd, PATIENCE, Run};

#[test]
fn a_command_streams_its_lines_and_ends_with_its_code() {
    let execd = Execd::open();
    let run = execd.run("echo out; echo err >&2; printf 'a\\n\\nb\\r\\nc'; exit 7");
    assert_eq!(
        (run.out, run.err),
        (vec!["out".into(), "a".into(), "\n".into(), "b".into(), "c".into()], vec!["err".into()])
    );
    assert_eq!((run.code, run.why.as_str()), (7, "exit status 7"));
    assert_eq!(execd.run("true").code, 0);
    assert_eq!(execd.run("nosuchcommand").code, 127);
    let killed = execd.run("kill -9 $$");
    assert_eq!((killed.code, killed.why.as_str()), (137, "signal: killed"));
    let many = execd.run("seq 1 100000");
    assert_eq!((many.out.len(), many.out[99_999].as_str()), (100_000, "100000"));
}

#[test]
fn output_is_told_while_the_command_runs() {
    let execd = Execd::open();
    let fifo = execd.fifo("go");
    let (_, mut stream) =
        execd.begin(&json!({"command": format!("echo first; read line < {}; echo $line", fifo.display())}));
    assert_eq!(stream.event().unwrap()["text"], "first");
    File::options().write(true).open(fifo).unwrap().write_all(b"second\n").unwrap();
    assert_eq!(stream.event().unwrap()["text"], "second");
    assert_eq!(stream.event().unwrap()["type"], "execution_complete");
    assert_eq!(stream.event(), None);
}

#[test]
fn arguments_environment_and_directory_are_as_asked() {
    let execd = Execd::open();
    let run = |request| Run::of(execd.post("/command", &request));
    let literal = run(json!({"argv": ["printf", "%s.", "$HOME", "a b", "*"], "cwd": "/"}));
    assert_eq!(literal.out, ["$HOME.a b.*."]);
    let asked = run(
        json!({"command": "pwd; echo \"$A-$PATH\"", "cwd": "$D/..", "envs": {"A": "x\ny", "D": "/usr/lib", "PATH": "/bin"}}),
    );
    assert_eq!(asked.out, ["/usr", "x", "y-/bin"]);
    let none = run(json!({"argv": ["/nowhere/at/all"]}));
    assert_eq!((none.code, none.out.len()), (127, 0));
    let not_a_program = run(json!({"argv": ["/etc/passwd"]}));
    assert_eq!(not_a_program.code, 126);
    for bad in [
        json!({}),
        json!({"command": " "}),
        json!({"command": "a", "argv": ["b"]}),
        json!({"argv": []}),
        json!({"argv": ["", "x"]}),
        json!({"argv": ["a\u{0}"]}),
        json!({"command": "a\u{0}"}),
        json!({"command": "true", "cwd": "/nowhere"}),
        json!({"command": "true", "cwd": "/etc/passwd"}),
        json!({"command": "true", "cwd": "$UNSET/x"}),
        json!({"command": "true", "gid": 5}),
        json!({"command": "true", "timeout": 0}),
        json!({"command": "true", "envs": {"A=B": "x"}}),
        json!({"command": 5}),
        json!([1]),
    ] {
        assert_eq!(execd.post("/command", &bad).problem(400), "INVALID_REQUEST_BODY", "{bad}");
    }
}

#[test]
fn a_script_longer_than_an_argument_may_be_runs_all_the_same() {
    let execd = Execd::open();
    let run = execd.run(&format!("# {}\necho $((1 + 1)) $0", "x".repeat(300_000)));
    assert_eq!((run.code, run.out.len()), (0, 1));
    assert!(run.out[0].starts_with("2 "), "{:?}", run.out);
    let body = json!({"command": "true", "envs": {"A": "x".repeat(4 << 20)}});
    assert_eq!(execd.post("/command", &body).problem(413), "TOO_LARGE");
}

#[test]
fn what_the_sdks_set_env_writes_reaches_every_later_command() {
    let execd = Execd::open();
    // The text that the SDK of OpenSandbox 1.1.1 runs.
    let set = "mkdir -p \"$(dirname \"$EXECD_ENVS\")\"\nprintf '%s\\n' 'ODD='\\''x $HOME  \"z\" \\ y'\\''' >> \"$EXECD_ENVS\"";
    assert_eq!(execd.run(set).code, 0);
    assert_eq!(execd.run("printf %s \"$ODD\"").out, ["x $HOME  \"z\" \\ y"]);
    let over = execd.post("/command", &json!({"command": "echo $ODD", "envs": {"ODD": "request"}}));
    assert_eq!(Run::of(over).out, ["request"]);
    // The file is a sandbox's: anything may be in its place.
    std::fs::remove_file(execd.path("envs")).unwrap();
    execd.fifo("envs");
    assert_eq!(execd.run("echo alive").out, ["alive"]);
}

#[test]
fn another_user_runs_with_its_own_rights() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may become somebody else");
        return;
    }
    let execd = Execd::open();
    let run = Run::of(execd.post(
        "/command",
        &json!({"command": "id -u; id -g; id -G; cat /etc/shadow", "uid": 1234, "gid": 2345, "cwd": "/"}),
    ));
    assert_eq!((run.out, run.code), (vec!["1234".into(), "2345".into(), "2345".into()], 1));
}

#[test]
fn a_stream_ends_with_its_command_and_what_is_left_behind_lives() {
    let execd = Execd::open();
    let (go, told) = (execd.fifo("go"), execd.fifo("told"));
    let (go_in, told_in) = (go.display(), told.display());
    let child =
        format!("(read x < {go_in}; if echo late; then r=alive; else r=broken; fi; echo $r > {told_in}) & echo begun");
    let started = Instant::now();
    let run = execd.run(&child);
    assert_eq!((run.out, run.code), (vec!["begun".into()], 0));
    assert!(started.elapsed() < PATIENCE / 4);
    // The stream is over; whoever still writes to it does not die of that.
    File::options().write(true).open(go).unwrap().write_all(b"go\n").unwrap();
    let mut answer = String::new();
    File::open(told).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "alive\n");
}

/// Starts a tree of which each process holds the FIFO: an ordinary child, one that ignores SIGTERM, and a daemon with a
/// session of its own, an empty environment and no parent. Gives the FIFO, which ends when the last one has.
fn a_stubborn_tree(execd: &Execd, request: serde_json::Value) -> (String, crate::house::Stream, File) {
    let fifo = execd.fifo("held");
    // All of them are there before the first line is told.
    let script = format!(
        "exec 7> {}\nsleep 3141 &\n(trap '' TERM; while :; do sleep 3141; done) &\n\
         setsid env -i sh -c 'trap \"\" TERM; (while :; do sleep 3141; done) & exit' &\nwait $!\necho ready\nwait",
        fifo.display()
    );
    let reader = std::thread::spawn(move || File::open(fifo).unwrap());
    let mut request = request;
    request["command"] = script.into();
    let (id, mut stream) = execd.begin(&request);
    assert_eq!(stream.event().unwrap()["text"], "ready");
    (id, stream, reader.join().unwrap())
}

#[track_caller]
fn is_over(mut held: File) {
    // Reading ends when nobody holds the other end any more.
    let mut rest = Vec::new();
    let done = std::thread::spawn(move || held.read_to_end(&mut rest).map(|_| ()));
    let started = Instant::now();
    while !done.is_finished() {
        assert!(started.elapsed() < PATIENCE, "somebody still lives");
        std::thread::yield_now();
    }
    done.join().unwrap().unwrap();
}

#[test]
fn an_interrupt_takes_the_whole_tree_and_waits_for_its_end() {
    let execd = Execd::open();
    let (id, mut stream, held) = a_stubborn_tree(&execd, json!({}));
    assert!(execd.get(&format!("/command/status/{id}")).ok().json()["running"].as_bool().unwrap());
    execd.delete(&format!("/command?id={id}")).ok();
    is_over(held);
    let end = stream.event().unwrap();
    assert_eq!(end["type"], "error");
    assert!(end["error"]["traceback"][0].as_str().unwrap().starts_with("interrupted"), "{end}");
    let status = execd.get(&format!("/command/status/{id}")).ok().json();
    assert_eq!((status["running"].as_bool(), status["exit_code"].as_i64()), (Some(false), Some(143)));
    assert_eq!(execd.delete(&format!("/command?id={id}")).problem(500), "RUNTIME_ERROR");
    assert_eq!(execd.delete("/command?id=none").problem(404), "CONTEXT_NOT_FOUND");
    assert_eq!(execd.delete("/command").problem(400), "MISSING_QUERY");
}

#[test]
fn a_timeout_kills_the_whole_tree() {
    let execd = Execd::open();
    let (_, mut stream, held) = a_stubborn_tree(&execd, json!({"timeout": 1500}));
    let end = stream.event().unwrap();
    assert_eq!(end["error"]["evalue"], "137");
    assert!(end["error"]["traceback"][0].as_str().unwrap().starts_with("timed out after 1500 ms"), "{end}");
    is_over(held);
}

#[test]
fn a_command_whose_client_leaves_is_ended() {
    let execd = Execd::open();
    let (id, stream, held) = a_stubborn_tree(&execd, json!({}));
    stream.leave();
    is_over(held);
    let started = Instant::now();
    while execd.get(&format!("/command/status/{id}")).ok().json()["running"] == true {
        assert!(started.elapsed() < PATIENCE);
    }
}

#[test]
fn a_background_command_is_asked_about_and_its_log_read_on() {
    let execd = Execd::open();
    let (first, second) = (execd.fifo("first"), execd.fifo("second"));
    let script =
        format!("echo a; echo b >&2; read x < {}; printf 'é'; read x < {}; exit 3", first.display(), second.display());
    let (id, mut stream) = execd.begin(&json!({"command": script, "background": true}));
    assert_eq!(stream.event().unwrap()["type"], "execution_complete");
    assert_eq!(stream.event(), None);
    let go = |fifo| File::options().write(true).open(fifo).unwrap().write_all(b"go\n").unwrap();
    // Opening a FIFO waits for its reader, which has printed before.
    let log = |cursor: &str| {
        let answer = execd.get(&format!("/command/{id}/logs{cursor}")).ok();
        (answer.text(), answer.header("execd-commands-tail-cursor").unwrap().to_owned())
    };
    let started = Instant::now();
    while log("").0 != "a\nb\n" {
        assert!(started.elapsed() < PATIENCE);
    }
    let (_, cursor) = log("");
    assert_eq!(cursor, "4");
    assert_eq!(log("?cursor=4"), (String::new(), "4".into()));
    assert_eq!(execd.get(&format!("/command/status/{id}")).ok().json()["running"], true);
    go(first);
    go(second);
    let started = Instant::now();
    let status = loop {
        let status = execd.get(&format!("/command/status/{id}")).ok().json();
        if status["running"] == false {
            break status;
        }
        assert!(started.elapsed() < PATIENCE);
    };
    assert_eq!((status["exit_code"].as_i64(), status["error"].as_str()), (Some(3), Some("exit status 3")));
    // A whole second has no fraction, and `Z` comes after the point of one that has.
    let at = |name: &str| status[name].as_str().unwrap().trim_end_matches('Z').to_owned();
    assert!(at("finished_at") >= at("started_at"), "{status}");
    assert_eq!(log("?cursor=4"), ("é".into(), "6".into()));
    assert_eq!(execd.get("/command/nope/logs").problem(400), "INVALID_PARAMETER");
    assert_eq!(execd.get("/command/status/nope").problem(404), "CONTEXT_NOT_FOUND");
    let (foreground, _) = execd.begin(&json!({"command": "true"}));
    assert_eq!(execd.get(&format!("/command/{foreground}/logs")).problem(400), "INVALID_PARAMETER");
}

#[test]
fn a_log_keeps_its_tail_and_says_what_it_dropped() {
    let execd = Execd::open();
    let told = execd.fifo("told");
    let script = format!("seq 1 2000000; echo done > {}", told.display());
    let (id, _) = execd.begin(&json!({"command": script, "background": true}));
    std::fs::read_to_string(told).unwrap();
    let started = Instant::now();
    while execd.get(&format!("/command/status/{id}")).ok().json()["running"] == true {
        assert!(started.elapsed() < PATIENCE);
    }
    let log = execd.get(&format!("/command/{id}/logs?cursor=100")).ok();
    let size = 14_888_896_u64;
    assert_eq!(log.header("execd-commands-tail-cursor"), Some(size.to_string().as_str()));
    let text = log.text();
    let (notice, rest) = text.split_once('\n').unwrap();
    assert_eq!(notice, format!("[{} earlier bytes were dropped: the last 8388608 are kept]", size - 8_388_608 - 100));
    assert_eq!(rest.len(), 8_388_608);
    assert!(rest.ends_with("1999999\n2000000\n"));
}

#[test]
fn a_session_keeps_its_state_also_when_a_command_exits() {
    let execd = Execd::open();
    let id = execd.post("/session", &json!({"cwd": execd.path("made/for/it")})).ok().json()["session_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let run =
        |command: &str| Run::of(execd.post(&format!("/session/{id}/run"), &json!({"command": command, "timeout": 0})));
    assert!(run("pwd").out[0].ends_with("/made/for/it"));
    let first = run("export X='1\n2' Y==; mkdir d; cd d; echo err >&2; exit 4");
    assert_eq!((first.code, first.out), (4, vec!["err".into()]));
    let second = run("echo \"$X$Y\"; pwd; cd /; kill -9 $$");
    assert_eq!(second.out[..2], ["1", "2="]);
    assert!(second.out[2].ends_with("/made/for/it/d"));
    assert_eq!(second.code, 137);
    assert!(run("pwd").out[0].ends_with("/d"), "a killed run changes nothing");
    let busy = execd.fifo("busy");
    let (told, held) = (busy.clone(), std::thread::spawn(move || File::open(busy).unwrap()));
    let left = run(&format!("setsid sleep 3141 > {} 2>&1 & echo left", told.display()));
    assert_eq!(left.out, ["left"]);
    let held = held.join().unwrap();
    execd.delete(&format!("/session/{id}")).ok();
    is_over(held);
    assert_eq!(
        execd.post(&format!("/session/{id}/run"), &json!({"command": "true"})).problem(404),
        "CONTEXT_NOT_FOUND"
    );
    assert_eq!(execd.delete(&format!("/session/{id}")).problem(404), "CONTEXT_NOT_FOUND");
    let empty = execd.send("POST", "/session", "", b"").ok();
    assert_eq!(empty.json()["session_id"].as_str().unwrap().len(), 32);
}
