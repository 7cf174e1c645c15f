//! `peregrine-perf`: measures the dataplane where a wire would be the limit. Figures are of the machine it runs on;
//! each run says how many cores it used.
#![forbid(unsafe_code)]

mod core_case;
mod environment;
mod kernel_case;
mod memif_case;
mod micro;
mod report;
mod rig;
mod tenants_case;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measurements of Peregrine.
#[derive(Debug, Parser)]
#[command(name = "peregrine-perf", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One worker's path without a wire: frames from memory to a memif tenant on another core, and the way back.
    Core {
        /// Shorter runs: some seconds in all.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// The kernel's overlay beside Peregrine, over the same wire: rates, round trips, CPU time; five runs, half an hour (needs root).
    Kernel {
        /// Fewer cases and shorter runs: under a minute in all.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// What two tenants that talk to each other notice of a third: 1000 idle ones, and hostile ones of several kinds.
    Tenants {
        /// Shorter runs: half a minute in all.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Packets from one process to another over one memif ring, beside DPDK's testpmd on both ends.
    Memif {
        /// Shorter runs: well under a minute in all.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Draws results as one page, report.html, beside report.json: of the given files, or of all cases, run now.
    Report(report::ReportArgs),
    /// Pieces of the packet path, each by itself on one core: time, and that they allocate nothing.
    Micro {
        /// Shorter runs: some seconds in all.
        #[arg(long)]
        quick: bool,
        /// Print one JSON object and nothing else.
        #[arg(long)]
        json: bool,
        /// Only cases with this in their name, such as `stage/`.
        #[arg(default_value = "", hide_default_value = true)]
        filter: String,
    },
    /// The same pieces under valgrind: instructions per packet, which are the same in every run.
    Instructions(micro::instructions::Args),
    #[command(hide = true)]
    MemifSide(memif_case::Side),
    #[command(hide = true)]
    MicroRounds { filter: String },
}

fn main() -> ExitCode {
    let Cli { command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return peregrine_control::cli::usage("peregrine-perf", &error),
    };
    let text = match command {
        Command::Core { quick, json } => {
            core_case::run(quick).map(|r| if json { r.json() } else { r.text() })
        }
        Command::Kernel { quick, json } => {
            kernel_case::run(quick).map(|r| if json { r.json() } else { r.text() })
        }
        Command::Tenants { quick, json } => {
            tenants_case::run(quick).map(|r| if json { r.json() } else { r.text() })
        }
        Command::Memif { quick, json } => {
            memif_case::run(quick).map(|r| if json { r.json() } else { r.text() })
        }
        Command::Report(args) => match report::run(&args) {
            Err(report::Error::Input(error)) => {
                eprintln!("peregrine-perf: error: {error}");
                return ExitCode::from(2);
            }
            Err(report::Error::Failed(error)) => Err(error),
            Ok(text) => Ok(text),
        },
        Command::Micro { quick, json, filter } => {
            micro::run(quick, &filter).map(|r| if json { r.json() } else { r.text() })
        }
        Command::Instructions(args) => micro::instructions::run(&args),
        Command::MemifSide(side) => side.run(),
        Command::MicroRounds { filter } => micro::instructions::rounds(&filter),
    };
    match text {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        Err(error) => {
            eprintln!("peregrine-perf: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// JSON has no numbers without a value, as a rate of 0 makes of what is divided by it: it is written as `null`.
fn null_as_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(<Option<f64> as serde::Deserialize>::deserialize(from)?.unwrap_or(f64::NAN))
}
