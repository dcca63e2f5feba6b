//! Pods whose containers have kernels of their own: gVisor's.

use super::*;

/// `None` where there is no gVisor. Where there is, it must work.
async fn place() -> Option<Place> {
    let place = Place::open().await;
    if !place.runtime.has_runsc() {
        eprintln!("skipped: there is no runsc in PATH");
        place.close().await;
        return None;
    }
    let found = place.runtime.sentry().await;
    assert!(found.ok, "{}", found.why);
    Some(place)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_its_command_in_a_sentry() {
    let Some(place) = place().await else { return };
    let host = place.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    let volume = |name: &str, source| Volume { name: name.into(), source, fs_group: None };
    let volumes = vec![
        volume("disk", VolumeSource::Path(host.clone())),
        volume("memory", VolumeSource::Memory { size: Some(1 << 20) }),
    ];
    place.pod("one", |it| (it.kernel, it.volumes) = (Kernel::Sentry, volumes)).await;
    let mount = |volume: &str, path: &str, read_only| Mount {
        volume: volume.into(),
        sub_path: String::new(),
        path: path.into(),
        read_only,
    };
    let mounts = vec![mount("disk", "/tmp", false), mount("memory", "/dev/words", false)];
    let script = "dmesg | grep -c gVisor; echo $$ $A $(hostname); echo two >&2; pwd; cat /etc/hosts; grep CapEff /proc/self/status; \
        echo x > /tmp/made; echo y > /dev/words/made; echo z > /dev/shm/made; echo last > /dev/termination-log; exit 3";
    let config = ContainerConfig { mounts: mounts.clone(), ..container("c", script) };
    place.start("one", config).await;
    let (exit, printed) = place.end("one", "c", 0).await;
    assert_eq!((exit.code, exit.signal, exit.message.as_str()), (3, None, "last\n"), "{printed}");
    let mut lines: Vec<_> = printed.lines().collect();
    lines.retain(|it| *it != "two");
    let expected = ["1", "1 one p", "/", "127.0.0.1\tlocalhost", "CapEff:\t00000000000000e1"];
    assert_eq!((lines.as_slice(), printed.contains("two\n")), (&expected[..], true));
    assert_eq!(std::fs::read_to_string(host.join("made")).unwrap(), "x\n");

    // What it has written is there for the next one, and for another.
    let mounts = vec![mount("disk", "/data", true), mount("memory", "/mem", false)];
    let other = ContainerConfig { mounts, read_only_root: true, ..container("d", "exec sleep 1000") };
    place.start("one", other).await;
    let seen = "cat /data/made /mem/made /dev/shm/made; for it in /data/x /x /usr/x /tmp/x; do touch $it 2>/dev/null && echo wrote $it; done; echo $A; exit 7";
    let done = place.exec("one", "d", seen).await;
    assert_eq!(done, (7, "x\ny\nz\none\n".to_owned()), "{}", place.printed("one", "d", 0).await);
    place.runtime.kill("one", "d").await.unwrap();
    assert_eq!(place.end("one", "d", 0).await.0.code, 137);
    place.runtime.remove("one").await.unwrap();
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_command_in_a_sentry() {
    let Some(place) = place().await else { return };
    place.pod("one", |it| it.kernel = Kernel::Sentry).await;
    let script = "trap 'echo told; exit 5' TERM; while true; do sleep 1000 & wait $!; done";
    place.start("one", container("c", script)).await;
    // It waits for the Sentry; that the trap is set by then, nobody can tell but the shell.
    let (code, _) = place.exec("one", "c", "until [ $(ps -e | grep -c sleep) -gt 0 ]; do :; done").await;
    assert_eq!(code, 0);
    place.runtime.signal("one", "c", libc::SIGTERM).await.unwrap();
    let (exit, printed) = place.end("one", "c", 0).await;
    assert_eq!((exit.code, printed.as_str()), (5, "told\n"));
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_in_a_sentry_is_said() {
    let Some(place) = place().await else { return };
    let mounts = place.refuses_commands("one", Kernel::Sentry).await;
    place.start("one", ContainerConfig { args: vec!["/v/program".into()], mounts, ..container("c", "") }).await;
    let args = vec!["no-such".into()];
    let config = ExecConfig { args, env: vec![], stdin: false, stdout: true, stderr: true, tty: false };
    let refused = place.runtime.exec("one", "c", config).await;
    let why = "exec: \"no-such\": executable file not found in $PATH";
    assert!(matches!(&refused, Err(StartError::Command(said)) if said == why), "{:?}", refused.err());
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_nobody_waits_for_ends_in_the_sentry() {
    let Some(place) = place().await else { return };
    place.pod("one", |it| it.kernel = Kernel::Sentry).await;
    place.start("one", container("c", "exec sleep 1000")).await;
    let args = sh("echo begun; exec sleep 2000");
    let config = ExecConfig { args, env: vec![], stdin: false, stdout: true, stderr: false, tty: false };
    let mut exec = place.runtime.exec("one", "c", config).await.unwrap();
    let mut said = [0; 6];
    exec.stdout.as_mut().unwrap().read_exact(&mut said).await.unwrap();
    drop(exec);
    let gone = "while cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q '[s]leep 2000'; do :; done; echo gone";
    assert_eq!(place.exec("one", "c", gone).await, (0, "gone\n".to_owned()));
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_sentries_outlives_its_node() {
    let Some(place) = place().await else { return };
    place.close().await;
    outlives(&[(SENTRY, "yes")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_reaches_the_command_in_a_sentry() {
    let Some(place) = place().await else { return };
    place.pod("one", |it| it.kernel = Kernel::Sentry).await;
    place.start("one", container("c", "exec sleep 1000")).await;
    let args = sh("stty -echo; echo ready; read it; stty size; echo got $it; read it; echo never");
    let config = ExecConfig { args, env: vec![], stdin: true, stdout: true, stderr: false, tty: true };
    let mut exec = place.runtime.exec("one", "c", config).await.unwrap();
    let (mut input, mut output) = (exec.stdin.take().unwrap(), exec.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("ready") {
        said.push(char::from(output.read_u8().await.unwrap()));
    }
    exec.resize.as_ref().unwrap().to(30, 90).unwrap();
    input.write_all(b"that\n").await.unwrap();
    while !said.contains("got that") {
        said.push(char::from(output.read_u8().await.unwrap()));
    }
    assert!(said.contains("30 90"), "{said:?}");
    // Ctrl-C is the terminal's to tell.
    input.write_all(b"\x03").await.unwrap();
    assert_eq!((&mut exec.exit).await.unwrap(), 130);
    place.close().await;
}
