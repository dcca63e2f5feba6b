use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Instant;

use serde_json::json;

use crate::house::{Execd, PATIENCE, Run, program};

fn bind(execd: &Execd, token: &str) -> crate::house::Answer {
    let cwd = execd.path("work");
    let bind = json!({"generation": 1, "token": token, "env": {"GREETING": "hello", "PATH": "/bin:/usr/bin"}, "cwd": cwd,
                      "limits": {"memory_bytes": 256 << 20, "cpus": 0.5}});
    execd.post(wire::execd::BIND, &bind)
}

#[test]
fn a_warm_execd_lets_nobody_in_until_it_is_bound_once() {
    let mut execd = Execd::warm();
    execd.get("/ping").ok();
    assert_eq!(execd.post("/command", &json!({"command": "true"})).problem(503), "NOT_BOUND");
    assert_eq!(
        execd.post(wire::execd::BIND, &json!({"generation": 2, "token": "x"})).problem(400),
        "INVALID_REQUEST_BODY"
    );
    assert_eq!(
        execd.post(wire::execd::BIND, &json!({"generation": 1, "token": ""})).problem(400),
        "INVALID_REQUEST_BODY"
    );
    assert_eq!(bind(&execd, "s3cret").ok().json(), json!({"generation": 1}));
    assert_eq!(bind(&execd, "other").problem(409), "ALREADY_BOUND");
    for wrong in [None, Some("s3cre"), Some("s3cret2"), Some("other")] {
        execd.token = wrong.map(str::to_owned);
        for target in ["/metrics", "/files/info?path=/", "/nowhere"] {
            assert_eq!(execd.get(target).problem(401), "UNAUTHORIZED");
        }
        assert_eq!(execd.post("/command", &json!({"command": "true"})).problem(401), "UNAUTHORIZED");
        execd.get("/ping").ok();
    }
    execd.token = Some("s3cret".into());
    let run = execd.run("echo $GREETING; pwd; env; cat /proc/$PPID/cmdline /proc/$PPID/environ | tr '\\0' '\\n'");
    assert_eq!(run.out[0], "hello");
    assert!(run.out[1].ends_with("/work"));
    assert!(run.out.iter().all(|line| !line.contains("s3cret")));
    let metrics = execd.get("/metrics").ok().json();
    assert_eq!((metrics["cpu_count"].as_f64(), metrics["mem_total_mib"].as_f64()), (Some(0.5), Some(256.0)));
    let used = metrics["mem_used_mib"].as_f64().unwrap();
    assert!(used > 0.0 && used <= 256.0);
    assert_eq!(execd.get("/code/contexts").problem(404), "NOT_SUPPORTED");
}

#[test]
fn a_token_and_a_listener_are_inherited_and_go_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let (token, write) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&write, b" t0ken\n").unwrap();
    drop(write);
    let stranger = std::fs::File::open("/etc/passwd").unwrap();
    // Left open over exec, as a parent would.
    let open = rustix::io::FdFlags::empty();
    rustix::io::fcntl_setfd(&token, open).unwrap();
    rustix::io::fcntl_setfd(&listener, open).unwrap();
    rustix::io::fcntl_setfd(&stranger, open).unwrap();
    let mut command = program(dir.path());
    command.args(["--listen-fd", &listener.as_raw_fd().to_string(), "--token-fd", &token.as_raw_fd().to_string()]);
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut execd = Execd { dir, child, token: Some("t0ken".into()) };
    assert_eq!(
        execd.run("ls -l /proc/self/fd | grep -c -e socket -e passwd -e pipe").out,
        ["2"],
        "stdout and stderr are pipes"
    );
    assert_eq!(bind(&execd, "other").problem(409), "ALREADY_BOUND");
    execd.token = None;
    assert_eq!(execd.get("/metrics").problem(401), "UNAUTHORIZED");
}

#[test]
fn it_ends_at_once_when_told_and_takes_everybody_with_it() {
    let mut execd = Execd::open();
    let fifo = execd.fifo("held");
    let held = {
        let fifo = fifo.clone();
        std::thread::spawn(move || std::fs::File::open(fifo).unwrap())
    };
    let script = format!(
        "exec 7> {}; trap '' TERM HUP; setsid env -i sh -c 'sleep 3141' & echo ready; while :; do sleep 3141; done",
        fifo.display()
    );
    let (_, mut stream) = execd.begin(&json!({"command": script}));
    assert_eq!(stream.event().unwrap()["text"], "ready");
    let started = Instant::now();
    rustix::process::kill_process(execd.pid(), rustix::process::Signal::TERM).unwrap();
    assert!(execd.child.wait().unwrap().success());
    assert!(started.elapsed() < PATIENCE / 4);
    let mut rest = Vec::new();
    held.join().unwrap().read_to_end(&mut rest).unwrap();
}

#[test]
fn orphans_are_reaped_and_signals_are_passed_on() {
    let execd = Execd::open();
    let (_, mut stream) =
        execd.begin(&json!({"command": "trap 'echo usr1; exit 5' USR1; echo ready; while :; do sleep 0.05; done"}));
    assert_eq!(stream.event().unwrap()["text"], "ready");
    rustix::process::kill_process(execd.pid(), rustix::process::Signal::USR1).unwrap();
    // The whole group gets it: the shell may say on stderr that its sleep has died of it.
    let rest: Vec<_> = std::iter::from_fn(|| stream.event()).filter(|event| event["type"] != "stderr").collect();
    assert_eq!((rest[0]["text"].as_str(), rest[1]["error"]["evalue"].as_str()), (Some("usr1"), Some("5")));

    execd.run("for i in 1 2 3 4 5 6 7 8 9; do (setsid sh -c 'true & true &' &) done");
    let started = Instant::now();
    let zombies = || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", execd.child.id())).unwrap();
        children.split_ascii_whitespace().count()
    };
    while zombies() > 0 {
        assert!(started.elapsed() < PATIENCE, "{} are left", zombies());
        std::thread::yield_now();
    }
}

#[test]
fn wrong_arguments_are_told_with_the_right_ones() {
    for arguments in [
        &["--open"][..],
        &["--listen", "/tmp/x"],
        &["--listen"],
        &["--what"],
        &["--listen-fd", "x"],
        &["--token-fd", "99", "--open"],
    ] {
        let done = program(std::path::Path::new("/")).args(arguments).arg0("execd").output().unwrap();
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&done.stderr).contains("usage:"));
    }
    let taken = program(std::path::Path::new("/")).args(["--listen-fd", "77"]).output().unwrap();
    assert_eq!(taken.status.code(), Some(1));
}

#[test]
fn a_run_is_told_what_the_wire_says() {
    // The same types on both sides: what one writes the other reads.
    let execd = Execd::open();
    let request = wire::execd::RunCommand { command: Some("echo x".into()), ..Default::default() };
    assert_eq!(Run::of(execd.post("/command", &serde_json::to_value(request).unwrap())).out, ["x"]);
}
