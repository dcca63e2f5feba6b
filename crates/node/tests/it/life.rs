//! Made, bound, used, frozen, ended.

use crate::cell::Cell;

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_the_hosts_programs_and_nothing_else_of_it() {
    let cell = Cell::open().await;
    let (sandbox, workspace) = cell.bound("one").await;
    assert!(sandbox.bound);
    println!(
        "{}",
        cell.sh("one", "id; hostname; ls -la / /dev /proc/1/fd /etc; mount; env; cat /proc/self/status").await
    );
    assert_eq!(cell.sh("one", "echo hi > /workspace/a; cat /workspace/a").await, "hi");
    assert_eq!(std::fs::read_to_string(workspace.join("a")).unwrap(), "hi\n");
    cell.client().delete("one").await.unwrap();
    cell.end().await;
}
