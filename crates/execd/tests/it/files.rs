use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::house::{Answer, Execd, encode};

fn download(execd: &Execd, path: &Path, more: &str) -> Answer {
    execd.send("GET", &format!("/files/download?path={}", encode(path.as_os_str().as_bytes())), more, b"")
}

fn paths(answer: &Value) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect()
}

#[test]
fn files_go_in_and_come_out_as_they_are() {
    let execd = Execd::open();
    let every: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let path = execd.path("deep/er/all.bin");
    execd.upload(path.to_str().unwrap(), 640, &every).ok();
    assert_eq!(fs::read(&path).unwrap(), every);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    let whole = download(&execd, &path, "").ok();
    assert_eq!(whole.body, every);
    assert_eq!(whole.header("content-length"), Some("3000001"));
    assert_eq!(whole.header("content-disposition"), Some("attachment; filename=\"all.bin\""));
    for (range, status, want) in [
        ("bytes=0-0", 206, &every[..1]),
        ("bytes=2999999-", 206, &every[2_999_999..]),
        ("bytes=-5", 206, &every[2_999_996..]),
        ("bytes=1000-700000", 206, &every[1000..=700_000]),
    ] {
        let part = download(&execd, &path, &format!("Range: {range}\r\n"));
        assert_eq!((part.status, part.body.len()), (status, want.len()), "{range}");
        assert_eq!(part.body, want);
    }
    let beyond = download(&execd, &path, "Range: bytes=3000001-\r\n");
    assert_eq!(beyond.header("content-range"), Some("bytes */3000001"));
    beyond.problem(416);
    execd.upload(path.to_str().unwrap(), 755, b"").ok();
    assert_eq!(download(&execd, &path, "").ok().header("content-length"), Some("0"));
    assert_eq!(download(&execd, &execd.path("none"), "").problem(404), "FILE_NOT_FOUND");
    assert_eq!(execd.get("/files/download").problem(400), "MISSING_QUERY");
    assert_eq!(fs::read_dir(execd.path("deep/er")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn an_upload_that_does_not_arrive_whole_changes_nothing() {
    let execd = Execd::open();
    let path = execd.path("kept");
    fs::write(&path, "old").unwrap();
    let part = format!(
        "--B\r\nContent-Disposition: form-data; name=metadata\r\n\r\n{}\r\n--B\r\nContent-Disposition: form-data; name=file\r\n\r\n{}",
        json!({"path": path}),
        "new".repeat(400_000)
    );
    let kind = "Content-Type: multipart/form-data; boundary=B\r\n";
    let send = |body: &str| execd.send("POST", "/files/upload", kind, body.as_bytes());
    assert_eq!(send(&part).problem(400), "INVALID_FILE");
    assert_eq!(send("--B--").problem(400), "INVALID_FILE");
    assert_eq!(
        send("--B\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--B--").problem(400),
        "INVALID_FILE_METADATA"
    );
    assert_eq!(
        send("--B\r\nContent-Disposition: form-data; name=metadata\r\n\r\n{}\r\n--B--").problem(400),
        "INVALID_FILE_METADATA"
    );
    assert_eq!(execd.send("POST", "/files/upload", "", b"x").problem(400), "INVALID_FILE");
    for metadata in [
        json!({"path": path, "mode": 999}),
        json!({"path": path, "owner": "nobody-of-that-name"}),
        json!({"path": "a\u{0}"}),
    ] {
        let body = format!(
            "--B\r\nContent-Disposition: form-data; name=metadata\r\n\r\n{metadata}\r\n--B\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--B--"
        );
        assert!(send(&body).status == 400, "{metadata}");
    }
    let cut = execd.connect();
    std::io::Write::write_all(
        &mut &cut,
        format!("POST /files/upload HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: 99999999\r\n\r\n{part}").as_bytes(),
    )
    .unwrap();
    drop(cut);
    assert_eq!(execd.run("true").code, 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn an_upload_that_is_refused_in_its_middle_is_read_over_and_the_connection_serves_on() {
    let execd = Execd::open();
    let body = format!(
        "--B\r\nContent-Disposition: form-data; name=metadata\r\n\r\n{}\r\n--B\r\nContent-Disposition: form-data; name=file\r\n\r\n{}\r\n--B--",
        json!({"path": "/proc/no/such"}),
        "x".repeat(16 << 20)
    );
    let head = format!("Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n", body.len());
    let mut stream = execd.connect();
    let upload = format!("POST /files/upload HTTP/1.1\r\nHost: x\r\n{head}\r\n{body}");
    stream.write_all(upload.as_bytes()).expect("it is read to its end");
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answers = Answer::read(stream);
    assert!((400..600).contains(&answers.status), "{answers:?}");
    assert!(answers.text().contains("HTTP/1.1 200 OK"), "{answers:?}");
}

#[test]
fn an_upload_is_answered_when_all_of_it_was_read_and_the_connection_serves_on() {
    let execd = Execd::open();
    let path = execd.path("uploaded");
    let body = format!(
        "--B\r\nContent-Disposition: form-data; name=metadata\r\n\r\n{}\r\n--B\r\nContent-Disposition: form-data; name=file\r\n\r\ncontent\r\n--B--",
        json!({"path": path}),
    );
    let head = "Content-Type: multipart/form-data; boundary=B\r\nTransfer-Encoding: chunked\r\n";
    let mut stream = execd.connect();
    let upload = format!("POST /files/upload HTTP/1.1\r\nHost: x\r\n{head}\r\n{:x}\r\n{body}\r\n", body.len());
    stream.write_all(upload.as_bytes()).unwrap();
    // The file is there with the last boundary. What ends the body itself comes later.
    while !path.exists() {
        std::thread::yield_now();
    }
    assert_eq!(execd.run("true").code, 0);
    stream.write_all(b"0\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answers = Answer::read(stream);
    assert_eq!((answers.status, answers.text().matches("HTTP/1.1 200 OK").count()), (200, 1), "{answers:?}");
}

#[test]
fn lines_are_read_by_number() {
    let execd = Execd::open();
    let path = execd.path("lines");
    fs::write(&path, (1..=100_000).map(|i| format!("line {i}\n")).collect::<String>() + "last").unwrap();
    assert_eq!(
        execd.get(&format!("/files/download?path={}&offset=99999&limit=2", path.display())).ok().text(),
        "line 99999\nline 100000\n"
    );
    assert_eq!(execd.get(&format!("/files/download?path={}&offset=100001", path.display())).ok().text(), "last");
    assert_eq!(execd.get(&format!("/files/download?path={}&limit=1", path.display())).ok().text(), "line 1\n");
    assert_eq!(
        execd.get(&format!("/files/download?path={}&offset=0&limit=1", path.display())).problem(400),
        "INVALID_PARAMETER"
    );
    assert_eq!(
        execd
            .send("GET", &format!("/files/download?path={}&limit=1", path.display()), "Range: bytes=0-1\r\n", b"")
            .status,
        400
    );
}

#[test]
fn what_is_no_file_blocks_nothing_and_is_named() {
    let execd = Execd::open();
    let fifo = execd.fifo("fifo");
    let socket = execd.path("socket");
    let looped = execd.path("loop");
    symlink(&looped, &looped).unwrap();
    for path in [fifo.as_path(), &socket, Path::new("/dev/zero"), execd.dir.path()] {
        assert_eq!(download(&execd, path, "").problem(400), "INVALID_FILE", "{}", path.display());
        assert_eq!(execd.upload(path.to_str().unwrap(), 600, b"x").problem(400), "INVALID_FILE", "{}", path.display());
        let replace = json!({path.to_str().unwrap(): {"old": "a", "new": "b"}});
        assert_eq!(execd.post("/files/replace", &replace).problem(400), "INVALID_FILE", "{}", path.display());
    }
    assert_eq!(download(&execd, &looped, "").problem(400), "INVALID_PARAMETER");
    let kind = |path: &Path| {
        execd.get(&format!("/files/info?path={}", encode(path.as_os_str().as_bytes()))).ok().json()
            [path.to_str().unwrap()]["type"]
            .clone()
    };
    assert_eq!(
        (kind(&fifo), kind(&looped), kind(execd.dir.path())),
        (json!("other"), json!("symlink"), json!("directory"))
    );
    // Files of /proc say that they are empty.
    assert!(download(&execd, Path::new("/proc/self/status"), "").ok().text().starts_with("Name:"));
    assert_eq!(
        execd.get("/files/download?path=/proc/self/status&offset=1&limit=1").ok().text().split(':').next(),
        Some("Name")
    );
}

#[test]
fn giants_with_holes_are_read_in_parts_and_not_into_memory() {
    let execd = Execd::open();
    let path = execd.path("giant");
    fs::File::create(&path).unwrap().set_len(1 << 42).unwrap();
    let part = download(&execd, &path, "Range: bytes=4398046511100-\r\n").ok();
    assert_eq!(part.body, [0; 4]);
    assert_eq!(
        execd.post("/files/replace", &json!({path.to_str().unwrap(): {"old": "a", "new": "b"}})).problem(413),
        "TOO_LARGE"
    );
    assert_eq!(
        execd.get(&format!("/files/info?path={}", path.display())).ok().json()[path.to_str().unwrap()]["size"],
        1_u64 << 42
    );
}

#[test]
fn names_are_bytes_of_any_kind_up_to_the_kernels_limits() {
    let execd = Execd::open();
    let dir = execd.path("odd\nplace");
    let long = "ü".repeat(127) + "x";
    for name in ["new\nline \"quoted\" \\", "$NOBODY ~ %41", &long] {
        let path = dir.join(name);
        execd.upload(path.to_str().unwrap(), 600, name.as_bytes()).ok();
        assert_eq!(download(&execd, &path, "").ok().text(), *name);
    }
    let listed = execd.get(&format!("/directories/list?path={}", encode(dir.as_os_str().as_bytes()))).ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let found = execd
        .get(&format!("/files/search?path={}&pattern={}", encode(dir.as_os_str().as_bytes()), encode("new*")))
        .ok()
        .json();
    assert!(paths(&found)[0].ends_with("new\nline \"quoted\" \\"));
    // No text at all: named by its bytes.
    let raw = dir.join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    fs::write(&raw, "raw").unwrap();
    assert_eq!(download(&execd, &raw, "").ok().text(), "raw");
    execd.delete(&format!("/files?path={}", encode(raw.as_os_str().as_bytes()))).ok();
    assert!(!raw.exists());

    let too_long = dir.join("x".repeat(256));
    execd.upload(too_long.to_str().unwrap(), 600, b"").problem(400);
    let mut deep = execd.path("deep");
    while deep.as_os_str().len() + 201 < 4095 {
        deep.push("d".repeat(200));
    }
    deep.push("f".repeat(4095 - deep.as_os_str().len() - 1));
    assert_eq!(deep.as_os_str().len(), 4095);
    execd.post("/directories", &json!({deep.parent().unwrap().to_str().unwrap(): {"mode": 755}})).ok();
    let parent = deep.parent().unwrap();
    assert_eq!(execd.get(&format!("/directories/list?path={}", parent.display())).ok().json(), json!([]));
    let longer = format!("{}x", deep.display());
    assert_eq!(execd.get(&format!("/files/info?path={longer}")).problem(400), "INVALID_PARAMETER");
    let all = execd.get(&format!("/directories/list?path={}&depth=1000", execd.path("deep").display())).ok().json();
    assert!(all.as_array().unwrap().len() > 15);
    execd.delete(&format!("/directories?path={}", execd.path("deep").display())).ok();
    assert!(!execd.path("deep").exists());
}

#[test]
fn listings_are_in_order_and_follow_no_links() {
    let execd = Execd::open();
    let root = execd.path("tree");
    for file in ["b/2.txt", "b/1.rs", "a.txt", "c/d/deep.txt"] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), file).unwrap();
    }
    symlink(&root, root.join("c/up")).unwrap();
    let shown = root.display();
    let below = |answer: Value| {
        paths(&answer).iter().map(|path| path[root.as_os_str().len() + 1..].to_owned()).collect::<Vec<_>>()
    };
    let list = |depth| below(execd.get(&format!("/directories/list?path={shown}{depth}")).ok().json());
    assert_eq!(list(""), ["a.txt", "b", "c"]);
    assert_eq!(list("&depth=2"), ["a.txt", "b", "b/1.rs", "b/2.txt", "c", "c/d", "c/up"]);
    assert_eq!(list("&depth=99").len(), 8);
    let search = |pattern| below(execd.get(&format!("/files/search?path={shown}&pattern={pattern}")).ok().json());
    assert_eq!(search("*.txt"), ["a.txt", "b/2.txt", "c/d/deep.txt"]);
    assert_eq!(search("b/*"), ["b/1.rs", "b/2.txt"]);
    assert_eq!(search("**/deep.{txt,rs}"), ["c/d/deep.txt"]);
    assert_eq!(below(execd.get(&format!("/files/search?path={shown}")).ok().json()).len(), 5);
    assert_eq!(execd.get(&format!("/directories/list?path={shown}/c/up")).problem(400), "INVALID_PARAMETER");
    assert_eq!(execd.get(&format!("/directories/list?path={shown}/none")).problem(404), "FILE_NOT_FOUND");
    assert_eq!(execd.get(&format!("/files/search?path={shown}/none")).problem(404), "FILE_NOT_FOUND");
    assert_eq!(execd.get("/directories/list?path=/&depth=0").problem(400), "INVALID_PARAMETER");
}

#[test]
fn files_are_moved_changed_and_removed() {
    let execd = Execd::open();
    let at = |name: &str| execd.path(name).to_str().unwrap().to_owned();
    fs::write(at("a"), "one two two").unwrap();
    execd.post("/files/permissions", &json!({at("a"): {"mode": 600}})).ok();
    let counted = execd.post("/files/replace?verbose=true", &json!({at("a"): {"old": "two", "new": "2"}})).ok().json();
    assert_eq!(counted[at("a")], json!({"replacedCount": 2}));
    assert!(execd.post("/files/replace", &json!({at("a"): {"old": "one", "new": ""}})).ok().body.is_empty());
    assert_eq!(fs::read_to_string(at("a")).unwrap(), " 2 2");
    assert_eq!(
        execd.post("/files/replace", &json!({at("a"): {"old": "", "new": "x"}})).problem(400),
        "INVALID_REQUEST_BODY"
    );

    execd.post("/files/mv", &json!([{"src": at("a"), "dest": at("new/place/b")}])).ok();
    fs::write(at("c"), "").unwrap();
    assert_eq!(
        execd.post("/files/mv", &json!([{"src": at("c"), "dest": at("new/place/b")}])).problem(500),
        "RUNTIME_ERROR"
    );
    assert_eq!(execd.post("/files/mv", &json!([{"src": at("none"), "dest": at("x")}])).problem(404), "FILE_NOT_FOUND");
    let info = execd.get(&format!("/files/info?path={}", at("new/place/b"))).ok().json()[at("new/place/b")].clone();
    assert_eq!(
        (info["type"].as_str(), info["size"].as_u64(), info["mode"].as_u64()),
        (Some("file"), Some(4), Some(600))
    );
    assert_eq!(info["path"], json!(at("new/place/b")));
    for time in ["modified_at", "created_at"] {
        assert!(info[time].as_str().unwrap().starts_with("20"));
    }
    assert_eq!(execd.get("/files/info?path=/nowhere").problem(404), "FILE_NOT_FOUND");
    assert_eq!(execd.get("/files/info").ok().json(), json!({}));

    execd.post("/directories", &json!({at("x/y"): {"mode": 750, "owner": null}})).ok();
    assert_eq!(fs::metadata(at("x/y")).unwrap().permissions().mode() & 0o7777, 0o750);
    execd.post("/directories", &json!({at("x/y"): {"mode": 700}})).ok();
    assert_eq!(fs::metadata(at("x/y")).unwrap().permissions().mode() & 0o7777, 0o750, "what is there keeps its mode");
    assert_eq!(execd.post("/directories", &json!({at("c/below"): {}})).status, 400);
    symlink(at("new"), at("x/link")).unwrap();
    assert_eq!(execd.delete(&format!("/files?path={}", at("x"))).problem(500), "RUNTIME_ERROR");
    execd.delete(&format!("/files?path={}&path={}", at("c"), at("never-was"))).ok();
    execd.delete(&format!("/directories?path={}&path={}", at("x"), at("never-was"))).ok();
    assert!(!Path::new(&at("x")).exists() && Path::new(&at("new/place/b")).exists() && !Path::new(&at("c")).exists());
    let home = execd.get("/files/info?path=~/new&path=$HOME/new").ok().json();
    assert_eq!(home["~/new"]["path"], json!(at("new")));
    assert_eq!(home["$HOME/new"]["type"], "directory");
}

#[test]
fn files_are_used_as_another_user() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may become somebody else");
        return;
    }
    let execd = Execd::open();
    fs::set_permissions(execd.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = execd.path("secret");
    fs::write(&secret, "root's").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let place = execd.path("place");
    execd.post("/directories", &json!({place.to_str().unwrap(): {"mode": 777}})).ok();
    let as_user = |rest: &str| execd.get(&format!("/v1/filesystem/1234/2345{rest}"));
    assert_eq!(as_user(&format!("/files/download?path={}", secret.display())).problem(500), "RUNTIME_ERROR");
    let made = place.join("made");
    execd.post("/v1/filesystem/1234/2345/directories", &json!({made.to_str().unwrap(): {"mode": 700}})).ok();
    let info = as_user(&format!("/files/info?path={}", made.display())).ok().json()[made.to_str().unwrap()].clone();
    assert_eq!((info["owner"].as_str(), info["group"].as_str()), (Some("1234"), Some("2345")));
    // The thread that did it is itself again.
    assert_eq!(download(&execd, &secret, "").ok().text(), "root's");
    assert_eq!(execd.get("/v1/filesystem/x/1/files/info?path=/").problem(400), "INVALID_PARAMETER");
}
