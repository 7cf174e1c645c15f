//! Builds the XDP programs (`bpf/steer.c`, `bpf/port.c`) with clang into `OUT_DIR/steer.o` and `port.o`; `src/xsk/program.rs` and
//! `src/xsk/port.rs` include them.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

const PROGRAMS: [&str; 2] = ["steer", "port"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CLANG");
    for program in PROGRAMS {
        println!("cargo::rerun-if-changed=bpf/{program}.c");
        if let Err(error) = build(program) {
            println!("cargo::error={error}");
        }
    }
}

fn build(program: &str) -> Result<(), String> {
    let source = format!("bpf/{program}.c");
    let var =
        |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"));
    let object = PathBuf::from(var("OUT_DIR")?).join(format!("{program}.o"));
    // Debian keeps asm/types.h in the architecture's own folder, which `-target bpf` does not look into.
    let headers = format!("-I/usr/include/{}-linux-gnu", var("CARGO_CFG_TARGET_ARCH")?);
    let target = if var("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb" } else { "bpfel" };
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_string());
    // -g for the BTF that describes the maps.
    let output = Command::new(&clang)
        .args([
            "-target", target, "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", &headers, "-c",
            &source, "-o",
        ])
        .arg(&object)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            Err(format!(
                "clang could not build {source} (its messages are below); are libbpf's headers there? run `make setup`"
            ))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("{clang} not found: run `make setup`"))
        }
        Err(error) => Err(format!("{clang} could not be started: {error}")),
    }
}
