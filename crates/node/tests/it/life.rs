//! Made, bound, used, frozen, ended.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::node::{Bind, Code, Create, Event, ExitReason, Limits, Phase, Sandbox, Sandboxes, Stats, Workspace};

use crate::cell::{Cell, Client, at, is_root, open_dir, program};

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_the_hosts_programs_over_a_layer_of_its_own() {
    let cell = Cell::open().await;
    cell.bound("one").await;
    cell.bound("two").await;
    assert_eq!(cell.sh("one", "python3 -c 'print(6 * 7)'").await, "42");
    assert_eq!(cell.sh("one", "id -u; cat /etc/hostname; hostname; pwd").await, "0\none\none\n/");
    assert_eq!(cell.sh("one", "tr '\\0' ' ' < /proc/1/cmdline").await, wire::node::init::ARGS.join(" "));
    assert_eq!(cell.sh("one", "getent hosts one | cut -d' ' -f1").await.lines().next(), Some("::1"));
    // What one writes the other does not see, nor does the host.
    cell.sh("one", "echo mine > /etc/mine; echo mine > /root/mine").await;
    assert_eq!(cell.sh("two", "cat /etc/mine /root/mine 2>/dev/null | grep -c mine").await, "0");
    assert!(!std::path::Path::new("/etc/mine").exists());
    if is_root() {
        assert_eq!(
            cell.sh("one", "echo mine > /usr/bin/mine && stat -c %U /usr/bin/mine /usr/bin/env").await,
            "root\nroot"
        );
        assert!(!std::path::Path::new("/usr/bin/mine").exists());
    }
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_sandbox_is_bound_once_and_late() {
    let cell = Cell::open().await;
    let made = cell.sandbox("it").await;
    assert_eq!((made.phase, made.bound, made.hostname.as_str()), (Phase::Running, false, "it"));
    assert_eq!(cell.sh("it", "touch /workspace/before; ls /workspace").await, "before");

    let workspace = cell.dir.path().join("a").join("b");
    let bind = Bind {
        workspace: Some(at(&workspace)),
        env: BTreeMap::from([("AGENT".into(), "7".into())]),
        hostname: Some("claimed".into()),
        labels: BTreeMap::from([("run".into(), "r1".into())]),
        limits: Limits { memory: Some(256 << 20), pids: Some(100), ..Limits::default() },
        ..Bind::default()
    };
    let bound: Sandbox = cell.client().post("/v1/sandboxes/it/bind", &bind).await.unwrap();
    assert!(bound.bound && bound.labels["run"] == "r1" && bound.limits.memory == Some(256 << 20));
    assert_eq!(bound.limits.disk, made.limits.disk, "what was not given stays");
    std::fs::write(workspace.join("from-outside"), "hello").unwrap();
    let seen =
        cell.sh("it", "cat /workspace/from-outside; hostname; cat /etc/hostname; echo in > /workspace/inside").await;
    assert_eq!(seen, "helloclaimed\nclaimed");
    assert_eq!(std::fs::read_to_string(workspace.join("inside")).unwrap(), "in\n");

    // execd was told, and hears the token with every call; a caller's own is not passed on.
    let request = Request::get("/v1/sandboxes/it/execd/bind").header(wire::execd::TOKEN_HEADER, "forged");
    let response = cell.client().send(request.body(Full::new(Bytes::new())).unwrap()).await;
    let heard = response.headers()["seen-token"].to_str().unwrap().to_owned();
    let told: wire::execd::Bind =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(
        (told.token.expose(), told.env["AGENT"].as_str(), told.cwd.as_deref()),
        (heard.as_str(), "7", Some("/workspace"))
    );
    assert_eq!(told.limits.memory_bytes, Some(256 << 20));

    let again = cell.client().post::<Sandbox>("/v1/sandboxes/it/bind", &Bind::default()).await.unwrap_err();
    assert_eq!(again.code, Code::Conflict);

    // The workspace outlives its sandbox, and can be shown read-only.
    cell.client().delete("it").await.unwrap();
    cell.sandbox("next").await;
    let read_only = Workspace { read_only: true, ..at(&workspace) };
    let bind = Bind { workspace: Some(read_only), ..Bind::default() };
    cell.client().post::<Sandbox>("/v1/sandboxes/next/bind", &bind).await.unwrap();
    let seen =
        cell.sh("next", "cat /workspace/inside; (echo no > /workspace/inside) 2>/dev/null || echo refused").await;
    assert_eq!(seen, "in\nrefused");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_let_nobody_through_hold_the_node_and_its_workspaces() {
    let cell = Cell::open().await;
    let closed = cell.dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&closed, Some(65_534), Some(65_534)).unwrap();
    }
    for (id, quota) in [("plain", None), ("bounded", Some(32 << 20))] {
        cell.sandbox(id).await;
        let workspace = Some(Workspace { quota, ..at(&closed.join(id)) });
        let bind = Bind { workspace, ..Bind::default() };
        cell.client().post::<Sandbox>(&format!("/v1/sandboxes/{id}/bind"), &bind).await.unwrap();
        assert_eq!(
            cell.sh(id, "echo mine > /workspace/file; cat /workspace/file; ls /usr/bin/env").await,
            "mine\n/usr/bin/env"
        );
    }
    let mode = std::fs::metadata(cell.dir.path().join("node")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "the node's own directory is such a one");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_several_users_keep_their_owners() {
    if !is_root() {
        println!("skipped: one user id only");
        return;
    }
    let cell = Cell::open().await;
    let (_, workspace) = cell.bound("one").await;
    let (_, other) = cell.bound("two").await;
    let said = cell.sh("one", "touch /workspace/f && chown 1000:1000 /workspace/f && stat -c %u:%g /workspace/f").await;
    assert_eq!(said, "1000:1000");
    let owner = |path: std::path::PathBuf| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
    assert_eq!(owner(workspace.join("f")), 1000, "on the host: the same id, not the sandbox's range");
    std::fs::rename(workspace.join("f"), other.join("f")).unwrap();
    assert_eq!(cell.sh("two", "stat -c %u /workspace/f").await, "1000");
    // Yet on the host they run as different ids, none of which is anybody's.
    let maps = [cell.sh("one", "cat /proc/self/uid_map").await, cell.sh("two", "cat /proc/self/uid_map").await];
    assert_ne!(maps[0], maps[1]);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sandbox_fills_is_its_own() {
    let cell = Cell::open().await;
    cell.client().create("full", Limits { disk: Some(8 << 20), ..Limits::default() }).await;
    cell.sandbox("neighbour").await;
    for path in ["/root/f", "/tmp/f", "/dev/shm/f", "/etc/f", "/var/tmp/f"] {
        let said = cell.sh("full", &format!("head -c 20000000 /dev/zero > {path}; rm {path}")).await;
        assert!(said.contains("No space left"), "{path}: {said}");
    }
    assert_eq!(cell.sh("neighbour", "head -c 20000000 /dev/zero > /root/f && echo fits").await, "fits");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_with_a_quota_is_full_at_it_and_stays_when_its_sandbox_goes() {
    let cell = Cell::open().await;
    if !cell.can("quota").await {
        return;
    }
    let workspace = cell.dir.path().join("bounded");
    let bound = async |id: &str| {
        cell.sandbox(id).await;
        let bind = Bind { workspace: Some(Workspace { quota: Some(32 << 20), ..at(&workspace) }), ..Bind::default() };
        cell.client().post::<Sandbox>(&format!("/v1/sandboxes/{id}/bind"), &bind).await.unwrap();
    };
    bound("one").await;
    assert_eq!(cell.sh("one", "ls -A /workspace; echo kept > /workspace/kept; chown 1000 /workspace/kept").await, "");
    let said = cell.sh("one", "head -c 50000000 /dev/zero > /workspace/big; rm /workspace/big").await;
    assert!(said.contains("No space left"), "{said}");
    // Two sandboxes over one workspace see the same.
    bound("two").await;
    assert_eq!(cell.sh("two", "stat -c %u /workspace/kept; echo also > /workspace/also").await, "1000");
    cell.client().delete("one").await.unwrap();
    assert_eq!(cell.sh("two", "cat /workspace/kept /workspace/also").await, "kept\nalso");
    cell.client().delete("two").await.unwrap();
    bound("three").await;
    assert_eq!(cell.sh("three", "cat /workspace/kept /workspace/also").await, "kept\nalso");

    // A node died while it made a file system.
    let half = cell.dir.path().join("half");
    std::fs::create_dir(&half).unwrap();
    let new = half.join("workspace.ext4.new");
    std::fs::write(&new, "half").unwrap();
    rustix::fs::setxattr(&new, "trusted.insula.workspace", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    cell.sandbox("five").await;
    let bind = Bind { workspace: Some(Workspace { quota: Some(32 << 20), ..at(&half) }), ..Bind::default() };
    cell.client().post::<Sandbox>("/v1/sandboxes/five/bind", &bind).await.unwrap();
    assert_eq!(cell.sh("five", "ls -A /workspace").await, "");
    assert!(half.join("workspace.ext4").exists() && !new.exists());

    // What was there before there were quotas is not hidden by one.
    let old = cell.dir.path().join("old");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("file"), "old").unwrap();
    cell.sandbox("four").await;
    let bind = Bind { workspace: Some(Workspace { quota: Some(32 << 20), ..at(&old) }), ..Bind::default() };
    cell.client().post::<Sandbox>("/v1/sandboxes/four/bind", &bind).await.unwrap();
    assert_eq!(cell.sh("four", "cat /workspace/file").await, "old");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_a_workspace_that_is_only_counted_is_larger_than_its_quota() {
    let cell = Cell::open().await;
    let workspace = cell.dir.path().join("workspace");
    std::fs::create_dir(&workspace).unwrap();
    // With something in it already it gets no file system of its own, on any machine.
    std::fs::write(workspace.join("old"), "old").unwrap();
    cell.sandbox("it").await;
    let bind = Bind { workspace: Some(Workspace { quota: Some(1 << 20), ..at(&workspace) }), ..Bind::default() };
    cell.client().post::<Sandbox>("/v1/sandboxes/it/bind", &bind).await.unwrap();
    let script = "head -c 3000000 /dev/zero > /workspace/f; fallocate -l 12G /workspace/g; truncate -s 12G /workspace/h; \
                  stat -c %s /workspace/f /workspace/g /workspace/h";
    let said = cell.sh("it", &format!("({script}) 2>/dev/null")).await;
    assert_eq!(said, "1048576\n0\n0");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_kills_only_in_that_sandbox() {
    let cell = Cell::open().await;
    if !cell.can("memcg").await {
        return;
    }
    cell.client().create("hungry", Limits { memory: Some(64 << 20), ..Limits::default() }).await;
    cell.sandbox("neighbour").await;
    let (code, _) = cell.run("hungry", &["python3", "-c", "x = bytearray(200 << 20)"]).await;
    assert_ne!(code, 0);
    let stats: Stats = cell.client().get("/v1/sandboxes/hungry/stats").await.unwrap();
    assert!(stats.oom_kills > Some(0) && stats.memory < Some(64 << 20) && stats.cpu_usec > Some(0), "{stats:?}");
    let stats: Stats = cell.client().get("/v1/sandboxes/neighbour/stats").await.unwrap();
    assert_eq!(stats.oom_kills, Some(0));
    assert_eq!(cell.sh("neighbour", "echo fine").await, "fine");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stops_at_the_limit_and_is_removed() {
    let cell = Cell::open().await;
    if !cell.can("pidscg").await {
        return;
    }
    cell.client().create("bomb", Limits { pids: Some(200), ..Limits::default() }).await;
    cell.sandbox("neighbour").await;
    cell.sh("bomb", "sh -c 'b() { b | b & }; b' >/dev/null 2>&1; echo").await;
    assert_eq!(cell.sh("neighbour", "echo fine").await, "fine");
    let stats: Stats = cell.client().get("/v1/sandboxes/bomb/stats").await.unwrap();
    assert!(stats.pids <= Some(200), "{stats:?}");
    let gone = tokio::time::timeout(PATIENCE, cell.client().delete("bomb")).await.unwrap().unwrap();
    assert_eq!(gone.phase, Phase::Ended);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sandbox_stands_still_and_goes_on() {
    let cell = Cell::open().await;
    let (_, workspace) = cell.bound("it").await;
    let count = "i=0; while :; do i=$((i + 1)); echo $i > /workspace/new; mv /workspace/new /workspace/count; done";
    cell.sh("it", &format!("({count}) >/dev/null 2>&1 &")).await;
    let counted = || std::fs::read_to_string(workspace.join("count")).ok().and_then(|it| it.trim().parse::<u64>().ok());
    let grows_from = |from: Option<u64>| {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if counted() > from {
                return true;
            }
            std::thread::yield_now();
        }
        false
    };
    assert!(grows_from(None));

    let frozen: Sandbox = cell.client().post("/v1/sandboxes/it/freeze", &()).await.unwrap();
    assert_eq!(frozen.phase, Phase::Frozen);
    let before = counted();
    // Longer than the loop takes many times over; nothing is waited for.
    let busy = Instant::now();
    while busy.elapsed() < Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    assert_eq!(counted(), before);
    let (status, _, _) = cell.client().call("GET", "/v1/sandboxes/it/execd/ping", Vec::new()).await;
    assert_eq!(status, StatusCode::CONFLICT, "nobody waits for one who cannot answer");
    let twice: Sandbox = cell.client().post("/v1/sandboxes/it/freeze", &()).await.unwrap();
    assert_eq!(twice.phase, Phase::Frozen);

    let thawed: Sandbox = cell.client().post("/v1/sandboxes/it/thaw", &()).await.unwrap();
    assert_eq!(thawed.phase, Phase::Running);
    assert!(grows_from(before));

    cell.client().post::<Sandbox>("/v1/sandboxes/it/freeze", &()).await.unwrap();
    assert_eq!(cell.client().delete("it").await.unwrap().phase, Phase::Ended, "frozen, it still ends");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_learns_of_every_end_and_its_reason() {
    let cell = Cell::open().await;
    cell.sandbox("there").await;
    let request = Request::get("/v1/watch").body(Full::new(Bytes::new())).unwrap();
    let mut lines = cell.client().send(request).await.into_body();
    let mut next = async || -> Event {
        let line = tokio::time::timeout(PATIENCE, lines.frame()).await.unwrap().unwrap().unwrap();
        serde_json::from_slice(&line.into_data().unwrap()).unwrap()
    };
    let Event::All { sandboxes } = next().await else { panic!("the first line is not all") };
    assert_eq!(sandboxes.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["there"]);

    let create =
        Create { id: Some("it".into()), labels: BTreeMap::from([("a".into(), "b".into())]), ..Create::default() };
    cell.client().post::<Sandbox>("/v1/sandboxes", &create).await.unwrap();
    let Event::Changed { sandbox } = next().await else { panic!("no change") };
    assert_eq!((sandbox.id.as_str(), sandbox.phase), ("it", Phase::Running));
    let (status, ..) = cell.client().call("GET", "/v1/sandboxes/it/execd/exit", Vec::new()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let Event::Changed { sandbox } = next().await else { panic!("no change") };
    let exit = sandbox.exit.unwrap();
    assert_eq!(
        (sandbox.phase, exit.reason, exit.code, sandbox.labels["a"].as_str()),
        (Phase::Ended, ExitReason::Exited, Some(7), "b")
    );

    cell.client().delete("there").await.unwrap();
    let Event::Changed { sandbox } = next().await else { panic!("no change") };
    let exit = sandbox.exit.unwrap();
    assert_eq!((sandbox.id.as_str(), exit.reason, exit.signal), ("there", ExitReason::Removed, Some(9)));
    let all: Sandboxes = cell.client().get("/v1/sandboxes").await.unwrap();
    assert!(all.sandboxes.is_empty());
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_while_still_sending_learns_why_and_the_connection_serves_on() {
    let cell = Cell::make(open_dir(), &program("node-execd"), node::Guards::all()).await;
    cell.bound("it").await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(cell.node.connect())).await.unwrap();
    cell.tasks.tenant("client", async move { connection.await.unwrap() });
    let body = Bytes::from(vec![b'x'; 16 << 20]);
    for (path, status) in [
        ("/v1/sandboxes/none/execd/echo", StatusCode::NOT_FOUND),
        ("/v1/sandboxes", StatusCode::BAD_REQUEST),
        ("/v1/sandboxes/it/execd/nowhere", StatusCode::NOT_FOUND),
        ("/kubelet/nowhere", StatusCode::NOT_FOUND),
        ("/v1/sandboxes/it/execd/command", StatusCode::PAYLOAD_TOO_LARGE),
        ("/v1/sandboxes/it/freeze", StatusCode::OK),
        ("/v1/sandboxes/it/execd/ping", StatusCode::CONFLICT),
    ] {
        sender.ready().await.unwrap();
        let response = sender.send_request(Request::post(path).body(Full::new(body.clone())).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        response.into_body().collect().await.unwrap();
    }
    drop(sender);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_execd_streams_both_ways_and_upgrades() {
    let cell = Cell::open().await;
    cell.sandbox("it").await;
    let mut stream = cell.node.connect();
    let head = "POST /v1/sandboxes/it/execd/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    for word in ["first", "second", "third"] {
        stream.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).await.unwrap();
        // Comes back before the next one, or the end, is sent.
        read_until(&mut stream, &mut seen, word).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, &mut seen, "0\r\n\r\n").await;

    let request = Request::get("/v1/sandboxes/it/execd/pty").header("connection", "upgrade").header("upgrade", "echo");
    let mut response = cell.client().send(request.body(Full::new(Bytes::new())).unwrap()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut both = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    both.write_all(b"typed").await.unwrap();
    let mut back = [0; 5];
    both.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"typed");
    drop(both);

    let large = vec![b'x'; 5 << 20];
    let (status, _, body) = cell.client().call("POST", "/v1/sandboxes/it/execd/echo?a=b", large.clone()).await;
    assert!(status.is_success() && body == large);
    cell.end().await;
}

async fn read_until(stream: &mut tokio::io::DuplexStream, seen: &mut Vec<u8>, word: &str) {
    while !String::from_utf8_lossy(seen).contains(word) {
        let got = tokio::time::timeout(PATIENCE, stream.read_buf(seen)).await.unwrap().unwrap();
        assert_ne!(got, 0, "ended before {word:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_refused_with_a_reason() {
    let cell = Cell::open().await;
    cell.sandbox("it").await;
    let post = async |path: &str, body: &str| cell.client().call("POST", path, body.into()).await.0.as_u16();
    for id in ["", "UPPER", "a/b", "..", "-a", &"x".repeat(41)] {
        assert_eq!(post("/v1/sandboxes", &format!(r#"{{"id":"{id}"}}"#)).await, 400, "{id}");
    }
    assert_eq!(post("/v1/sandboxes", r#"{"unknown":1}"#).await, 400);
    assert_eq!(post("/v1/sandboxes", r#"{"image":"nginx"}"#).await, 400);
    assert_eq!(post("/v1/sandboxes", "{").await, 400);
    assert_eq!(post("/v1/sandboxes", &" ".repeat(wire::node::BODY_LIMIT + 1)).await, 400);
    assert_eq!(post("/v1/sandboxes/it/bind", r#"{"workspace":{"path":"relative"}}"#).await, 400);
    assert_eq!(post("/v1/sandboxes/it/bind", r#"{"workspace":{"path":"/var/../etc"}}"#).await, 400);
    assert_eq!(post("/v1/sandboxes/it/bind", r#"{"hostname":"a b"}"#).await, 400);
    assert_eq!(post("/v1/sandboxes/it/bind", r#"{"limits":{"disk":1}}"#).await, 400);
    assert_eq!(post("/v1/sandboxes/none/bind", "{}").await, 404);
    assert_eq!(post("/v1/sandboxes/none/execd/run", "[]").await, 404);
    assert_eq!(post("/v2/sandboxes", "{}").await, 400);
    assert_eq!(cell.client().delete("none").await.unwrap_err().code, Code::Gone);
    let newer =
        Request::get("/v1/node").header(wire::node::GENERATION_HEADER, "99").body(Full::new(Bytes::new())).unwrap();
    let refused = cell.client().send(newer).await;
    assert_eq!(
        (refused.status(), &refused.headers()[wire::node::GENERATION_HEADER]),
        (StatusCode::BAD_REQUEST, &"1".parse().unwrap())
    );
    // And it is as it was.
    let bound: Sandbox = cell.client().post("/v1/sandboxes/it/bind", &Bind::default()).await.unwrap();
    assert!(bound.bound);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_finds_the_same_sandbox() {
    let cell = Cell::open().await;
    let create = Create { id: Some("it".into()), ..Create::default() };
    let body = serde_json::to_vec(&create).unwrap();
    let calls = (0..8).map(|_| cell.client().call("POST", "/v1/sandboxes", body.clone()));
    let statuses: Vec<_> = futures::future::join_all(calls).await.into_iter().map(|it| it.0.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|it| **it == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|it| **it == 200).count(), 7, "{statuses:?}");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_node_at_a_time() {
    let cell = Cell::open().await;
    let tasks = kit::Tasks::new(kit::Shutdown::new());
    let clock = kit::Clock::system();
    let options = node::Options::new(cell.dir.path().join("node"), program("intruder"), clock, tasks);
    assert!(matches!(node::Node::open(options).await.err().unwrap(), node::Error::InUse(_)));
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_the_same_over_a_unix_socket() {
    let cell = Cell::open().await;
    let at = cell.dir.path().join("socket");
    std::fs::write(&at, "somebody's").unwrap();
    assert!(matches!(cell.node.listen(&at), Err(node::Error::Rejected(_))));
    std::fs::remove_file(&at).unwrap();
    // As a node that is gone leaves it. It never listened: until it executes, a child of another test shares what listens here.
    let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let left = rustix::net::socket(family, kind, None).unwrap();
    rustix::net::bind(&left, &rustix::net::SocketAddrUnix::new(&at).unwrap()).unwrap();
    drop(left);
    cell.node.listen(&at).unwrap();
    assert!(matches!(cell.node.listen(&at), Err(node::Error::InUse(_))));
    let client = async || Client::over(tokio::net::UnixStream::connect(&at).await.unwrap());
    client().await.create("it", Limits::default()).await;
    assert_eq!(client().await.run("it", &["echo", "hi"]).await, (0, "hi\n".into()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&at).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_this_machine_can_do() {
    let cell = Cell::open().await;
    let node: wire::node::Node = cell.client().get("/v1/node").await.unwrap();
    for name in ["userns", "netns", "overlay", "landlock", "seccomp"] {
        assert!(node.can[name].ok, "{name}: {}", node.can[name].why);
    }
    let names: Vec<_> = node.can.keys().map(String::as_str).collect();
    let known = [
        "criu", "freezer", "idmap", "kvm", "landlock", "memcg", "netns", "overlay", "pidscg", "quota", "runsc",
        "seccomp", "userns",
    ];
    assert_eq!(names, known);
    assert!(node.can.values().all(|it| !it.why.is_empty()));
    assert!(node.can["kvm"].why.ends_with("Name no class, or `native`"), "it says what to do");
    cell.sandbox("it").await;
    let written = cell.sh("it", "mkdir /usr/local/bin/mine 2>/dev/null && echo written").await == "written";
    assert_eq!(node.can["overlay"].why == "the image can be written to, above", written);
    cell.end().await;
}
