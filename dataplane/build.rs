//! Builds the XDP program (`bpf/steer.c`) with clang into `OUT_DIR/steer.o`; `src/xsk/program.rs` includes it.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "bpf/steer.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CLANG");
    if let Err(error) = build() {
        println!("cargo::error={error}");
    }
}

fn build() -> Result<(), String> {
    let var =
        |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"));
    let object = PathBuf::from(var("OUT_DIR")?).join("steer.o");
    // Debian keeps asm/types.h in the architecture's own folder, which `-target bpf` does not look into.
    let headers = format!("-I/usr/include/{}-linux-gnu", var("CARGO_CFG_TARGET_ARCH")?);
    let target = if var("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb" } else { "bpfel" };
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_string());
    // -g for the BTF that describes the maps.
    let output = Command::new(&clang)
        .args([
            "-target", target, "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", &headers, "-c",
            SOURCE, "-o",
        ])
        .arg(&object)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            Err(format!(
                "clang could not build {SOURCE} (its messages are below); are libbpf's headers there? run `make setup`"
            ))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("{clang} not found: run `make setup`"))
        }
        Err(error) => Err(format!("{clang} could not be started: {error}")),
    }
}
