//! The binary `peregrine`; everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    peregrine_control::cli::main()
}
