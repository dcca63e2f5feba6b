//! One test a door: closed with all guards up, and open (so the test can fail) once the guards named are taken away.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use node::Guards;

use crate::cell::{Cell, at, copy, is_root, open_dir, program};

const INTRUDER: &str = "/proc/self/exe";

async fn bound(guards: Guards) -> (Cell, PathBuf) {
    let cell = Cell::with(guards).await;
    let (_, workspace) = cell.bound("it").await;
    (cell, workspace)
}

/// Asks whether a door is open: with every guard, and with `missing` taken away.
async fn closed_and_open(missing: Guards, open: impl AsyncFn(&Cell, &Path) -> bool) {
    let (cell, workspace) = bound(Guards::all()).await;
    assert!(!open(&cell, &workspace).await, "the door is open");
    cell.end().await;
    let (cell, workspace) = bound(Guards::all().without(missing)).await;
    assert!(open(&cell, &workspace).await, "the door is closed by something else: this test shows nothing");
    cell.end().await;
}

/// Makes a system call inside; `open N`, or its error's number.
async fn call(cell: &Cell, number: i64, args: &[&str]) -> String {
    let number = number.to_string();
    let all: Vec<_> = [INTRUDER, "call", &number].into_iter().chain(args.iter().copied()).collect();
    cell.run("it", &all).await.1.trim().to_owned()
}

/// A file of the host that everybody may read.
fn secret(dir: &Path) -> PathBuf {
    let path = dir.join("secret");
    std::fs::write(&path, "the host's").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_to_a_file_of_the_host() {
    closed_and_open(Guards::ROOT, async |cell, workspace| {
        let secret = secret(cell.dir.path());
        let secret = secret.display();
        std::os::unix::fs::symlink(secret.to_string(), workspace.join("link")).unwrap();
        for (at, link) in [("up", "../../../../../../../.."), ("root", "/proc/1/root"), ("cwd", "/proc/1/cwd")] {
            std::os::unix::fs::symlink(format!("{link}{secret}"), workspace.join(at)).unwrap();
        }
        let mut ways = vec![format!("/mnt{secret}"), secret.to_string()];
        ways.extend(["link", "up", "root", "cwd"].map(|it| format!("/workspace/{it}")));
        ways.extend(["1", "self", "2", "3"].map(|it| format!("/proc/{it}/root{secret}")));
        ways.extend(["0", "1", "2", "3"].map(|it| format!("/proc/1/fd/{it}{secret}")));
        let mut seen = false;
        for way in ways {
            seen |= cell.sh("it", &format!("cat {way}")).await.contains("the host's");
        }
        seen
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_steers_nothing_and_shows_nothing_of_the_machine() {
    closed_and_open(Guards::PROC, async |cell, _| {
        let wrote = cell.sh("it", "echo 1 > /proc/sys/net/ipv4/ip_forward && echo yes").await;
        let shows = cell.sh("it", "cat /proc/interrupts").await;
        wrote.contains("yes") || !shows.is_empty()
    })
    .await;
    let (cell, _) = bound(Guards::all()).await;
    for file in
        ["sysrq-trigger", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/vm/drop_caches", "sys/kernel/hostname"]
    {
        let said = cell.sh("it", &format!("echo x > /proc/{file} && echo wrote")).await;
        assert!(!said.contains("wrote"), "{file}: {said}");
    }
    assert_eq!(cell.sh("it", "ls /sys").await, "");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_device_node_can_be_made() {
    // The one that a user namespace may make: a whiteout, by which an overlay hides files.
    let missing = [Guards::SECCOMP, Guards::LANDLOCK];
    for (at, guard) in missing.into_iter().enumerate() {
        let (cell, _) = bound(Guards::all().without(guard)).await;
        assert!(!whiteout(&cell).await, "guard {at} alone does not hold");
        cell.end().await;
    }
    let (cell, _) = bound(Guards::all().without(missing[0]).without(missing[1])).await;
    assert!(whiteout(&cell).await);
    cell.end().await;
    let (cell, _) = bound(Guards::all()).await;
    for device in ["1 1", "1 3", "254 0", "10 232"] {
        assert_ne!(
            cell.run("it", &["sh", "-c", &format!("mknod /tmp/d b {device} || mknod /tmp/d c {device}")]).await.0,
            0
        );
    }
    cell.end().await;
}

async fn whiteout(cell: &Cell) -> bool {
    cell.run("it", &["mknod", "/tmp/whiteout", "c", "0", "0"]).await.0 == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_node_in_the_workspace_opens_nothing() {
    if !is_root() {
        println!("skipped: only root can put a device node there");
        return;
    }
    closed_and_open(Guards::MOUNT_FLAGS, async |cell, workspace| {
        let node = workspace.join("zero");
        let made = Command::new("mknod").arg("-m").arg("666").arg(&node).args(["c", "1", "5"]).status().unwrap();
        assert!(made.success());
        cell.run("it", &["head", "-c", "1", "/workspace/zero"]).await.0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_hosts_inside_cannot_be_changed() {
    let changes = async |guards: Guards| {
        let dir = open_dir();
        let program = dir.path().join("intruder");
        copy(&crate::cell::program("intruder"), &program);
        let look = || {
            let found = std::fs::metadata(&program).unwrap();
            (found.permissions().mode(), found.len(), found.modified().unwrap())
        };
        let before = look();
        let cell = Cell::make(dir, &program, guards).await;
        cell.sandbox("it").await;
        cell.sh("it", "chmod 0777 /proc/1/exe; touch -d @1 /proc/1/exe; echo >> /proc/1/exe").await;
        let changed = look() != before;
        cell.end().await;
        changed
    };
    assert!(!changes(Guards::all()).await);
    if is_root() {
        assert!(!changes(Guards::all().without(Guards::MOUNT_FLAGS)).await, "ids of its own do not hold alone");
    } else {
        assert!(changes(Guards::all().without(Guards::MOUNT_FLAGS)).await);
    }
    let (cell, _) = bound(Guards::all()).await;
    let said = cell.sh("it", "chmod 0666 /dev/null /dev/tty").await;
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    assert_eq!(cell.sh("it", "echo x > /dev/null; head -c 3 /dev/zero | wc -c").await, "3");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_a_sandbox_is_taken_for_a_workspaces_file_system() {
    let cell = Cell::open().await;
    if !cell.can("quota").await {
        return;
    }
    let bind = async |id: &str, name: &str, quota: Option<u64>| {
        cell.sandbox(id).await;
        let workspace = wire::node::Workspace { quota, ..at(&cell.dir.path().join(name)) };
        let bind = wire::node::Bind { workspace: Some(workspace), ..wire::node::Bind::default() };
        let path = format!("/v1/sandboxes/{id}/bind");
        cell.client().post::<wire::node::Sandbox>(&path, &bind).await.unwrap();
    };
    bind("victim", "victim", Some(32 << 20)).await;
    cell.sh("victim", "echo secret > /workspace/secret").await;
    cell.client().delete("victim").await.unwrap();
    let image = cell.dir.path().join("victim/workspace.ext4");
    for (name, make) in [
        ("link", format!("ln -s {} /workspace/workspace.ext4", image.display())),
        ("file", "head -c 1000000 /dev/zero > /workspace/workspace.ext4".to_owned()),
        ("pipe", "mkfifo /workspace/workspace.ext4".to_owned()),
        ("directory", "mkdir /workspace/workspace.ext4".to_owned()),
    ] {
        bind(name, name, None).await;
        cell.sh(name, &make).await;
        let again = format!("{name}-again");
        bind(&again, name, Some(32 << 20)).await;
        assert_eq!(cell.sh(&again, "ls /workspace").await, "workspace.ext4", "{name}: as it was");
    }
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_user_id_program_gives_nobody_rights() {
    if !is_root() {
        println!("skipped: with one user id there is nobody to rise from");
        return;
    }
    // no_new_privs is set by Landlock and by the filter too: the braces to a belt.
    let missing = Guards::all()
        .without(Guards::ROOT)
        .without(Guards::PROCESSES)
        .without(Guards::NETWORK)
        .without(Guards::IPC)
        .without(Guards::PROC)
        .without(Guards::CAPABILITIES)
        .without(Guards::DESCRIPTORS);
    closed_and_open(missing, async |cell, workspace| {
        copy(Path::new("/usr/bin/id"), &workspace.join("id"));
        std::fs::set_permissions(workspace.join("id"), PermissionsExt::from_mode(0o4755)).unwrap();
        cell.run("it", &[INTRUDER, "as", "1000", "/workspace/id", "-u"]).await.1.trim() == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_attaches_to_a_process_he_did_not_start() {
    const ATTACH: &str = "16";
    closed_and_open(Guards::SECCOMP, async |cell, _| {
        let pid = cell.sh("it", "sleep 100 >/dev/null 2>&1 & echo $!").await;
        call(cell, libc::SYS_ptrace, &[ATTACH, &pid]).await.starts_with("open")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_keyrings_are_out_of_reach() {
    closed_and_open(Guards::SECCOMP, async |cell, _| {
        let session_keyring = "-3";
        call(cell, libc::SYS_add_key, &["s:user", "s:name", "s:payload", "7", session_keyring])
            .await
            .starts_with("open")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abstract_sockets_of_the_host_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("insula-test-{}", kit::id());
    let at = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&at).unwrap();
    let connects = async |cell: &Cell| cell.run("it", &[INTRUDER, "abstract", &name]).await.1.trim() == "open";
    for guard in [Guards::NETWORK, Guards::LANDLOCK] {
        let (cell, _) = bound(Guards::all().without(guard)).await;
        assert!(!connects(&cell).await, "{guard:?} was all that held");
        cell.end().await;
    }
    let (cell, _) = bound(Guards::all().without(Guards::NETWORK).without(Guards::LANDLOCK)).await;
    assert!(connects(&cell).await);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_loopback_is_out_of_reach() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    closed_and_open(Guards::NETWORK, async |cell, _| {
        cell.run("it", &["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]).await.0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signal_reaches_a_process_outside() {
    let kills = async |guards: Guards| {
        let (cell, workspace) = bound(guards).await;
        // A process outside that the kernel would let it kill: of the same id on the host.
        let id = if is_root() { host_id(&cell, &workspace).await } else { rustix::process::getuid().as_raw() };
        let mut victim = Command::new("sleep").arg("100").uid(id).gid(id).spawn().unwrap();
        cell.run("it", &["kill", "-9", &victim.id().to_string()]).await;
        let died = victim.try_wait().unwrap().is_some() || {
            // The signal may still be on its way when `kill` has returned.
            let sent = cell.run("it", &["kill", "-9", &victim.id().to_string()]).await.0 == 0;
            sent && victim.wait().is_ok()
        };
        let _ = victim.kill();
        let _ = victim.wait();
        cell.end().await;
        died
    };
    assert!(!kills(Guards::all()).await);
    assert!(!kills(Guards::all().without(Guards::PROCESSES)).await, "Landlock does not hold alone");
    assert!(!kills(Guards::all().without(Guards::LANDLOCK)).await, "own process ids do not hold alone");
    assert!(kills(Guards::all().without(Guards::PROCESSES).without(Guards::LANDLOCK)).await);
}

/// Which id of the host a sandbox's root is.
async fn host_id(cell: &Cell, _workspace: &Path) -> u32 {
    let map = cell.sh("it", "cat /proc/self/uid_map").await;
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_mounted() {
    let mounts = async |cell: &Cell| {
        cell.sh("it", "mkdir -p /tmp/m").await;
        call(cell, libc::SYS_mount, &["s:none", "s:/tmp/m", "s:tmpfs", "0", "0"]).await == "open 0"
    };
    let all = [Guards::SECCOMP, Guards::LANDLOCK, Guards::CAPABILITIES];
    for kept in all {
        let less = all.into_iter().filter(|it| *it != kept).fold(Guards::all(), Guards::without);
        let (cell, _) = bound(less).await;
        assert!(!mounts(&cell).await, "{kept:?} does not hold alone");
        cell.end().await;
    }
    let (cell, _) = bound(all.into_iter().fold(Guards::all(), Guards::without)).await;
    assert!(mounts(&cell).await);
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_new_user_namespace_can_be_made() {
    closed_and_open(Guards::SECCOMP, async |cell, _| {
        let flags = libc::CLONE_NEWUSER.to_string();
        call(cell, libc::SYS_unshare, &[&flags]).await.starts_with("open")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_has_no_power_over_the_system() {
    closed_and_open(Guards::CAPABILITIES, async |cell, _| {
        call(cell, libc::SYS_sethostname, &["s:mine", "4"]).await.starts_with("open")
    })
    .await;
}

/// What the filter answers, and what the kernel would without it.
#[tokio::test(flavor = "multi_thread")]
async fn the_filter_refuses_each_family() {
    let calls: &[(&str, i64, &[&str], i32)] = &[
        ("bpf", libc::SYS_bpf, &["0", "0", "0"], libc::EPERM),
        ("io_uring", libc::SYS_io_uring_setup, &["1", "0"], libc::ENOSYS),
        ("clone3", libc::SYS_clone3, &["0", "0"], libc::ENOSYS),
        ("request_key", libc::SYS_request_key, &["s:user", "s:none", "0", "0"], libc::EPERM),
        ("keyctl", libc::SYS_keyctl, &["0", "-3", "1"], libc::EPERM),
        ("fsopen", libc::SYS_fsopen, &["s:none", "0"], libc::EPERM),
        ("fanotify", libc::SYS_fanotify_init, &["0", "0"], libc::EPERM),
        ("name_to_handle", libc::SYS_name_to_handle_at, &["-100", "s:/none", "0", "0", "0"], libc::EPERM),
        ("process_vm", libc::SYS_process_vm_readv, &["1", "0", "0", "0", "0", "0"], libc::EPERM),
        ("kcmp", libc::SYS_kcmp, &["1", "999999", "0", "0", "0"], libc::EPERM),
        ("vsock", libc::SYS_socket, &["40", "1", "0"], libc::EAFNOSUPPORT),
        ("alg", libc::SYS_socket, &["38", "5", "0"], libc::EAFNOSUPPORT),
    ];
    let (guarded, _) = bound(Guards::all()).await;
    let (open, _) = bound(Guards::all().without(Guards::SECCOMP)).await;
    let mut differ = 0;
    for (name, number, args, errno) in calls {
        assert_eq!(call(&guarded, *number, args).await, errno.to_string(), "{name}");
        differ += usize::from(call(&open, *number, args).await != errno.to_string());
    }
    // The kernel may lack one or two of these families itself.
    assert!(differ >= calls.len() - 3, "only {differ} of {} are the filter's doing", calls.len());
    guarded.end().await;
    open.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipc_objects_of_the_host_are_out_of_reach() {
    let key = 0x1259_0000 + std::process::id() as i32;
    let id = Command::new("python3")
        .args(["-c", &format!("import ctypes;print(ctypes.CDLL(None).shmget({key}, 4096, 0o1666))")])
        .output()
        .unwrap();
    let id: i32 = String::from_utf8_lossy(&id.stdout).trim().parse().unwrap();
    closed_and_open(Guards::IPC, async |cell, _| {
        call(cell, libc::SYS_shmget, &[&key.to_string(), "0", "0"]).await.starts_with("open")
    })
    .await;
    Command::new("ipcrm").args(["-m", &id.to_string()]).status().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sandboxs_execd_is_out_of_reach() {
    let reach = async |guards: Guards| {
        let (cell, _) = bound(guards).await;
        cell.sandbox("other").await;
        let socket = cell.dir.path().join("node/sandboxes/other/execd").display().to_string();
        let connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let mut reached = false;
        for at in [socket.clone(), format!("/mnt{socket}"), format!("/proc/1/root{socket}")] {
            reached |= cell.run("it", &["python3", "-c", connect, &at]).await.0 == 0;
        }
        cell.end().await;
        reached
    };
    assert!(!reach(Guards::all()).await);
    if is_root() {
        assert!(!reach(Guards::all().without(Guards::ROOT)).await, "ids of its own do not hold alone");
    } else {
        assert!(reach(Guards::all().without(Guards::ROOT)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_of_the_node_is_inherited() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(b"the node's").unwrap();
    // As a careless library would leave it: open across exec, under a number that nobody else takes.
    let leaked = rustix::io::fcntl_dupfd_cloexec(file.as_file(), 100).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let name = file.path().file_name().unwrap().to_str().unwrap().to_owned();
    closed_and_open(Guards::DESCRIPTORS, async |cell, _| cell.sh("it", "ls -l /proc/1/fd").await.contains(&name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_hosts_environment_is_inside() {
    let (cell, _) = bound(Guards::all()).await;
    let all = cell.sh("it", "env; cat /proc/*/environ | tr '\\0' '\\n'").await;
    let known = ["PATH=", "HOME=", "LANG=", "PWD=", "SHLVL=", "_=", "OLDPWD="];
    let more: Vec<_> =
        all.lines().filter(|it| !it.is_empty() && !known.iter().any(|known| it.starts_with(known))).collect();
    assert!(more.is_empty(), "{more:?}");
    let mounts = cell.sh("it", "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains("stage"), "{mounts}");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_ne!(cell.sh("it", "hostname").await, host);
    cell.end().await;
}

/// Sends descriptors to itself until it is refused, says how many, and keeps them on their way.
const SENDER: &str = r#"
import array, signal, socket
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))]
kept, sent, refused = [], 0, None
while refused is None:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kept.append(pair)
    pair[0].setblocking(False)
    try:
        while True:
            pair[0].sendmsg([b"x"], rights)
            sent += 250
    except BlockingIOError:
        pass
    except OSError as error:
        refused = error.strerror
with open("/tmp/said", "w") as said:
    print(sent, refused, file=said)
signal.pause()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_a_sandbox_has_on_their_way_keep_nobody_else_from_sending_any() {
    let cell = Cell::open().await;
    let (_, workspace) = cell.bound("it").await;
    std::fs::write(workspace.join("sender.py"), SENDER).unwrap();
    let send = "mkfifo /tmp/said; python3 /workspace/sender.py > /dev/null 2>&1 & read said < /tmp/said; echo $said";
    let said = cell.sh("it", send).await;
    let (sent, refused) = said.split_once(' ').unwrap();
    assert!(sent.parse::<u32>().unwrap() < 5000 && refused.starts_with("Too many references"), "{said}");
    assert_eq!(cell.sh("it", "[ $(ulimit -Hn) -le 4096 ] && echo held").await, "held");
    cell.bound("next").await;
    assert_eq!(cell.sh("next", "echo well").await, "well");
    cell.end().await;
}

/// All of this once more without root, where a sandbox is a user's.
#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_for_an_ordinary_user_too() {
    if !is_root() {
        return;
    }
    const ORDINARY: u32 = 54_321;
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir_in("/var/tmp").unwrap();
    for from in [std::env::current_exe().unwrap(), program("intruder"), program("node-launcher")] {
        let to = dir.path().join(from.file_name().unwrap());
        copy(&from, &to);
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let me = dir.path().join(std::env::current_exe().unwrap().file_name().unwrap());
    let done = tokio::task::spawn_blocking(move || {
        Command::new(me).uid(ORDINARY).gid(ORDINARY).current_dir("/").env("TMPDIR", "/var/tmp").output().unwrap()
    });
    let done = done.await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
}
