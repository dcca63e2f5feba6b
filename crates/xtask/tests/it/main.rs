#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

use std::fs;
use std::process::Command;

use xtask::{codegen, law, root};

#[test]
fn generated_files_are_current() {
    for (path, text) in codegen::files().unwrap() {
        let found = fs::read_to_string(root().join(&path)).unwrap_or_default();
        assert!(found == text, "{} is stale: run `cargo xtask codegen`", path.display());
    }
}

#[test]
fn rooms_import_only_what_the_architecture_allows() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert_eq!(law::breaches(&law::allowed(&page).unwrap(), &law::actual().unwrap()), Vec::<String>::new());
}

#[test]
fn a_new_edge_and_a_room_without_a_row_are_breaches() {
    let page = "| room | what it hides | may import (ours) |\n|---|---|---|\n| `a` | x | – |\n| `b`, `c` | y | a |\n\n";
    let allowed = law::allowed(page).unwrap();
    let edges = |pairs: &[(&str, &[&str])]| {
        pairs
            .iter()
            .map(|(room, to)| (room.to_string(), to.iter().map(ToString::to_string).collect()))
            .collect::<law::Edges>()
    };
    assert!(law::breaches(&allowed, &edges(&[("a", &[]), ("b", &["a"]), ("c", &[])])).is_empty());
    assert_eq!(law::breaches(&allowed, &edges(&[("a", &["b"]), ("b", &[]), ("c", &[]), ("d", &[])])).len(), 2);
}

#[test]
fn cargo_run_has_one_program_to_run() {
    let all = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap();
    let programs: Vec<String> = all
        .workspace_default_packages()
        .iter()
        .flat_map(|it| &it.targets)
        .filter(|it| it.is_bin())
        .map(|it| it.name.clone())
        .collect();
    assert_eq!(programs, ["insula"], "the README's first command is `cargo run`");
}

/// What `deny.toml` bans outright. The rest of that file is for cargo-deny, where it is installed.
#[test]
fn no_banned_crate_is_in_the_graph() {
    let page = fs::read_to_string(root().join("deny.toml")).unwrap();
    let banned: Vec<&str> = page
        .lines()
        .filter(|line| !line.contains("wrappers"))
        .filter_map(|line| line.split_once("crate = \"")?.1.split('"').next())
        .collect();
    assert!(banned.contains(&"openssl-sys"), "the page is not read rightly");
    // Not `cargo metadata`: it names optional crates too that no feature turns on.
    let args = ["tree", "--workspace", "--locked", "--prefix", "none", "--format", "{p}"];
    let tree = Command::new(env!("CARGO")).args(args).current_dir(root()).output().unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let there: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(there.contains(&"rustls"), "the graph is not read rightly");
    assert_eq!(banned.iter().filter(|it| there.contains(it)).collect::<Vec<_>>(), Vec::<&&str>::new());
}
