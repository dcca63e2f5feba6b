//! Builds execd, the daemon inside every sandbox, as one static program, and tells where it is: `INSULA_EXECD` is its path,
//! for `include_bytes!(env!("INSULA_EXECD"))`.
//!
//! With the toolchain and the lock file of this build, without network, and in a target directory of its own below
//! `OUT_DIR`, so that it waits for no lock of the build that runs this script.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What of the inner build must not come from the outer one: its flags, its wrappers (clippy's among them), its places.
const NOT_INHERITED: [&str; 9] = [
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
];

fn main() -> ExitCode {
    match build() {
        Ok(program) => {
            println!("cargo::rustc-env=INSULA_EXECD={}", program.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("cargo::error={}", why.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let root = place("CARGO_MANIFEST_DIR")?.join("../..");
    for watched in [
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        "crates/execd/Cargo.toml",
        "crates/execd/src",
        "crates/wire/Cargo.toml",
        "crates/wire/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let out = place("OUT_DIR")?.join("execd");
    let target = place("TARGET")?;
    let mut cargo = Command::new(place("CARGO")?);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    // With --target the flags are execd's alone: build scripts and macros of its dependencies stay dynamic. A fixed
    // address, because nobody gains from a moving one here and every relocated page would be each sandbox's own.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static");
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--offline",
        "--profile",
        "execd",
        "--package",
        "execd",
        "--bin",
        "execd",
    ]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml"));
    cargo.arg("--target").arg(&target).arg("--target-dir").arg(&out);
    let done = cargo.output().map_err(|error| format!("cargo could not be started to build execd: {error}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let hint = if said.contains("cannot find -lc") {
            "a static C library is needed to link it (glibc-static on Fedora, libc6-dev on Debian)"
        } else if said.contains("offline") {
            "its dependencies are not all here: run `cargo fetch --locked` once"
        } else {
            "the compiler's words"
        };
        return Err(format!("execd, the program inside the sandboxes, could not be built: {hint}: {said}"));
    }
    let program = out.join(target).join("execd/execd");
    if program.is_file() { Ok(program) } else { Err(format!("cargo built no {}", program.display())) }
}

fn place(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}
