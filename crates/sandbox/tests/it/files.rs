use sandbox::{Error, WRITE_LIMIT};

use crate::cell::{Cell, sh};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_read_and_listed() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    hand.write_file("/workspace/a/b/c.txt", "one\ntwo\nthree\n".as_bytes()).await.unwrap();
    assert_eq!(sh(&hand, "cat /workspace/a/b/c.txt; stat -c %U /workspace/a").await, "one\ntwo\nthree\nroot");
    let all = hand.read_file("/workspace/a/b/c.txt", 1, 1000).await.unwrap();
    assert_eq!((all.bytes.as_slice(), all.more, all.size), (&b"one\ntwo\nthree\n"[..], false, Some(14)));
    let piece = hand.read_file("/workspace/a/b/c.txt", 2, 5).await.unwrap();
    assert_eq!((piece.bytes.as_slice(), piece.more), (&b"two\nt"[..], true));
    hand.write_file("/workspace/a/b/c.txt", b"").await.unwrap();
    assert_eq!(hand.read_file("/workspace/a/b/c.txt", 1, 10).await.unwrap().bytes, b"");
    let binary: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    hand.write_file("/tmp/binary", &binary).await.unwrap();
    let back = hand.read_file("/tmp/binary", 1, 1 << 20).await.unwrap();
    assert!(back.bytes == binary && !back.more);

    let odd = "/workspace/new\nline \u{e9}%&?#+\u{1F600}";
    hand.write_file(odd, b"odd").await.unwrap();
    assert_eq!(hand.read_file(odd, 1, 10).await.unwrap().bytes, b"odd");
    let longest = format!("/workspace/{}", "x".repeat(255));
    hand.write_file(&longest, b"long").await.unwrap();
    let listed = hand.list_directory("/workspace").await.unwrap();
    let named: Vec<_> = listed.iter().map(|it| (it.path.as_str(), it.kind.as_str())).collect();
    assert_eq!(named, [("/workspace/a", "directory"), (odd, "file"), (longest.as_str(), "file")]);

    // Of a file that says of itself that it is empty, and one without end.
    assert!(!hand.read_file("/proc/self/status", 1, 10_000).await.unwrap().bytes.is_empty());
    for (path, said) in [
        ("/no/such", "no such"),
        ("/workspace/a", "directory"),
        ("/dev/zero", "not a file"),
        (&format!("/{}", "x/".repeat(3000)), "over 4095 bytes"),
        (&format!("/{}", "x".repeat(256)), "name too long"),
    ] {
        let refused = hand.read_file(path, 1, 10).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { .. }), "{path}: {refused:?}");
        assert!(refused.to_string().to_lowercase().contains(said), "{path}: {refused}");
    }
    assert!(matches!(hand.write_file("/proc/nothing", b"x").await, Err(Error::Refused { .. })));
    assert!(matches!(hand.write_file("/tmp/x", &vec![0; WRITE_LIMIT + 1]).await, Err(Error::Refused { .. })));
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_leads_nowhere_but_within_the_sandbox() {
    let Some(cell) = Cell::open().await else { return };
    let (owner, _lease) = cell.begin("r", "s").await;
    let hand = cell.claim(&owner).await;
    let secret = cell.dir.path().join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    sh(&hand, &format!("ln -s {} /workspace/link; ln -s /etc /workspace/.outputs", secret.display())).await;
    assert!(matches!(hand.read_file("/workspace/link", 1, 100).await, Err(Error::Refused { .. })));
    hand.exec(&sandbox::Command { keep: 10, ..crate::cell::command("seq 1 1000") }, |_| {}).await.unwrap();
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host");
    let written = std::fs::read_dir("/etc").unwrap().flatten().filter(|it| {
        it.metadata().is_ok_and(|it| it.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() < 5)))
    });
    assert_eq!(written.count(), 0, "the host's /etc is as it was");
    cell.end().await;
}
