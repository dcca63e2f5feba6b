use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::json;

use crate::house::{Answer, Execd, program};

fn resident(execd: &Execd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", execd.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn rubbish_is_answered_or_closed_and_the_next_one_is_served() {
    let execd = Execd::open();
    let giant = format!("GET /ping HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /ping HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(5000));
    for rubbish in
        [b"\0\xff\x16\x03\x01\r\n\r\n".to_vec(), b"GET\r\n\r\n".to_vec(), giant.into_bytes(), many.into_bytes()]
    {
        let mut stream = execd.connect();
        let _ = stream.write_all(&rubbish);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));
    }
    for body in ["{not json", "", "[]", "{\"command\": [1]}", "\u{0}"] {
        assert_eq!(execd.send("POST", "/command", "", body.as_bytes()).problem(400), "INVALID_REQUEST_BODY");
    }
    assert_eq!(execd.send("POST", "/files/mv", "", &vec![b' '; 9 << 20]).problem(413), "TOO_LARGE");
    let deep = "[".repeat(1 << 20);
    assert_eq!(execd.send("POST", "/files/mv", "", deep.as_bytes()).problem(400), "INVALID_REQUEST_BODY");
    for (method, target) in [
        ("GET", "/"),
        ("PUT", "/command"),
        ("GET", "/command"),
        ("GET", "/files"),
        ("POST", "/files/nothing"),
        ("GET", "/v1/filesystem/1"),
    ] {
        assert_eq!(execd.send(method, target, "", b"").problem(404), "NOT_SUPPORTED", "{method} {target}");
    }
    execd.get("/ping").ok();
}

#[test]
fn a_stream_that_nobody_reads_stops_its_command_alone() {
    let execd = Execd::open();
    let before = resident(&execd);
    let stuck: Vec<_> = (0..4).map(|_| execd.begin(&json!({"command": "yes"}))).collect();
    for at in 0..20 {
        assert_eq!(execd.run(&format!("echo {at}")).out, [at.to_string()]);
    }
    assert!(resident(&execd) < before + (32 << 20), "{} MiB", resident(&execd) >> 20);
    drop(stuck);
    let (_, mut quiet) = execd.begin(&json!({"command": "head -c 100000000 /dev/zero | tr '\\0' x; echo; echo end"}));
    let mut length = 0;
    while let Some(event) = quiet.event() {
        length += event["text"].as_str().map_or(0, str::len);
    }
    assert_eq!(length, 100_000_003, "a line without end comes whole");
    assert!(resident(&execd) < before + (32 << 20), "{} MiB", resident(&execd) >> 20);
}

#[test]
fn thousands_of_connections_leave_room_for_the_next() {
    let execd = Execd::open();
    let (_, mut working) = execd.begin(&json!({"command": "read x; echo still here; sleep 0.01", "background": false}));
    let mut idle: Vec<UnixStream> = Vec::new();
    for at in 0..3000 {
        // Half of them say half a request.
        if let Ok(mut stream) = UnixStream::connect(execd.path("socket")) {
            if at % 2 == 0 {
                let _ = stream.write_all(b"GET /ping HTT");
            }
            idle.push(stream);
        }
        if idle.len() > 500 {
            idle.remove(0);
        }
    }
    execd.get("/ping").ok();
    assert_eq!(working.event().unwrap()["text"], "still here");
    assert_eq!(execd.run("echo alive").out, ["alive"]);
}

#[test]
fn without_descriptors_it_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let inner = program(dir.path());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 48 && exec \"$0\" \"$@\""]).arg(inner.get_program());
    command.args(["--open", "--listen"]).arg(format!("unix:{}", dir.path().join("socket").display()));
    command.stdout(std::process::Stdio::piped());
    let execd = Execd::from_command(dir, command);
    let flood: Vec<_> = (0..200).filter_map(|_| UnixStream::connect(execd.path("socket")).ok()).collect();
    let busy: Vec<_> = (0..30)
        .filter_map(|_| {
            let mut stream = UnixStream::connect(execd.path("socket")).ok()?;
            stream
                .write_all(
                    b"POST /command HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n{\"command\": \"sleep 3141\"}  ",
                )
                .ok()?;
            Some(stream)
        })
        .collect();
    drop((flood, busy));
    let started = std::time::Instant::now();
    loop {
        // While the flood is cleared away an answer may be that there are no descriptors.
        let mut stream = execd.connect();
        let _ = stream.write_all(b"POST /command HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 22\r\n\r\n{\"command\": \"echo ok\"}");
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        if String::from_utf8_lossy(&bytes).contains("\"text\":\"ok\"") {
            return;
        }
        assert!(started.elapsed() < crate::house::PATIENCE, "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn at_the_limit_of_processes_it_says_so_and_files_are_still_served() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the limit is set for a user that nobody else is");
        return;
    }
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let user = 912_345;
    std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).unwrap();
    // A copy, because the user may not get to where this one was built.
    let copy = dir.path().join("execd");
    // By another process: what other tests fork would have it open for writing, too, and make it busy.
    assert!(Command::new("cp").arg("-p").arg(env!("CARGO_BIN_EXE_execd")).arg(&copy).status().unwrap().success());
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -u 20 && exec \"$0\" \"$@\""]).arg(&copy).args(["--open", "--listen"]);
    command.arg(format!("unix:{}", dir.path().join("socket").display())).current_dir(dir.path());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("EXECD_ENVS", dir.path().join("envs"));
    command.uid(user).gid(user).stdout(std::process::Stdio::piped());
    let execd = Execd::from_command(dir, command);
    let mut running = Vec::new();
    loop {
        let answer = execd.post("/command", &json!({"argv": ["sleep", "3141"], "background": true}));
        if answer.status != 200 {
            assert_eq!(answer.problem(503), "AT_LIMIT");
            break;
        }
        running.push(answer.text().split('"').nth(7).unwrap().to_owned());
    }
    assert!(running.len() < 20);
    // No thread can be had either.
    execd.upload(execd.path("file").to_str().unwrap(), 600, b"content").ok();
    assert_eq!(execd.get(&format!("/files/download?path={}", execd.path("file").display())).ok().text(), "content");
    execd.delete(&format!("/command?id={}", running[0])).ok();
    execd.delete(&format!("/command?id={}", running[1])).ok();
    assert_eq!(execd.run("echo alive").out, ["alive"]);
}

#[test]
fn too_many_commands_are_refused_with_a_reason() {
    let execd = Execd::open();
    let running: Vec<String> =
        (0..256).map(|_| execd.begin(&json!({"argv": ["sleep", "3141"], "background": true})).0).collect();
    assert_eq!(execd.post("/command", &json!({"command": "true"})).problem(429), "TOO_MANY");
    execd.delete(&format!("/command?id={}", running[7])).ok();
    let again: Answer = execd.post("/command", &json!({"command": "true"}));
    assert_eq!(again.status, 200);
}

#[test]
fn a_command_that_forks_without_end_is_ended() {
    let execd = Execd::open();
    // Bounded by its own depth, should it get away: each level makes two.
    let bomb = "f() { [ $1 -gt 0 ] && { f $(($1 - 1)) & f $(($1 - 1)) & }; sleep 3141; }; f 7";
    let (id, _stream) = execd.begin(&json!({"command": bomb}));
    execd.delete(&format!("/command?id={id}")).ok();
    let left = execd
        .run("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -c '^[s]leep 3141'");
    // Other tests have sleepers of their own: ours are those of this execd.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", execd.child.id())).unwrap();
    assert!(children.trim().is_empty(), "{children}; {left:?}");
}
