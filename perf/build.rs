//! Notes which compiler builds the program, and how: instruction counts are compared only with those of the same.

use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let version = Command::new(variable("RUSTC")).arg("--version").output();
    let version =
        version.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let flags = variable("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " ");
    let built_by = format!("{version} {} opt-level={} {flags}", variable("TARGET"), variable("OPT_LEVEL"));
    println!("cargo::rustc-env=PEREGRINE_BUILT_BY={}", built_by.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
