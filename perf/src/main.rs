//! `peregrine-perf`: measures the dataplane where a wire would be the limit. Figures are of the machine it runs on;
//! each run says how many cores it used.
#![forbid(unsafe_code)]

mod core_case;
mod endpoints_case;
mod environment;
mod fdb_case;
mod figures;
mod generator_case;
mod hardware;
mod idle_case;
mod kernel_case;
mod memif_case;
mod micro;
mod near_host;
mod paced;
mod pipeline_case;
mod placement_latency_case;
mod priority_case;
mod proc_stat;
mod report;
mod rig;
mod skew_case;
mod tenants_case;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

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
        #[command(flatten)]
        runs: Runs,
        /// What the frames between the VTEPs are made of.
        #[arg(long, value_enum, default_value_t)]
        underlay: rig::Underlay,
    },
    /// The kernel's overlay beside Peregrine, over the same wire: rates, round trips, CPU time; five runs, a quarter of an hour or more (needs root).
    Kernel(Runs),
    /// How fast `peregrine-pktgen send` is over memif and AF_XDP, beside the bare ring and socket, and how exactly it keeps a
    /// rate (needs root).
    Generator(Runs),
    /// What two tenants that talk to each other notice of a third: 1000 idle ones, and hostile ones of several kinds.
    Tenants(Runs),
    /// Packets from one process to another over one memif ring, beside DPDK's testpmd on both ends.
    Memif(Runs),
    /// One flow on one core, and with its steps spread over two: what a hand-over costs, and from how much work on it is worth it.
    Pipeline(Runs),
    /// 100 flows over two workers, of which one turns hot: how soon the load is shared again, and what each placement carries then.
    Skew(Runs),
    /// How late one flow's packets are at 50 and 90 % of what one core can carry, by placement.
    PlacementLatency(Runs),
    /// How late an urgent flow is beside more normal packets than the worker can take, by order of work, with early classes and without;
    /// and the kernel's overlay beside it (over a wire: needs root).
    Priority(Runs),
    /// The forwarding database with up to a million addresses: look-ups by its size, 100,000 new addresses a second beside full rate, and
    /// whether ageing shows in how late packets are.
    Fdb(Runs),
    /// What a worker costs that has nothing to do, busy and adaptive, and how long a packet takes that comes every millisecond (over a
    /// wire: needs root).
    Idle(Runs),
    /// Endpoints that come in bursts, to the first packet through each, beside the kernel's overlay; what others notice meanwhile; what one
    /// costs in memory (the kernel's part needs root).
    Endpoints {
        #[command(flatten)]
        runs: Runs,
        /// Only this part of it.
        #[arg(long, value_enum)]
        only: Option<endpoints_case::Part>,
    },
    /// Draws results as one page, report.html, beside report.json: of the given files, or of all cases, run now.
    Report(report::ReportArgs),
    /// Pieces of the packet path, each by itself on one core: time, and that they allocate nothing.
    Micro {
        #[command(flatten)]
        runs: Runs,
        /// Only cases with this in their name, such as `stage/`.
        #[arg(default_value = "", hide_default_value = true)]
        filter: String,
    },
    /// The same pieces under valgrind: instructions per packet, which are the same in every run.
    Instructions(micro::instructions::Args),
    #[command(hide = true)]
    IdleSide(idle_case::Side),
    #[command(hide = true)]
    GeneratorSide(generator_case::Side),
    #[command(hide = true)]
    MemifSide(memif_case::Side),
    #[command(hide = true)]
    PrioritySide(priority_case::Side),
    #[command(hide = true)]
    MicroRounds { filter: String },
}

/// How long to measure, and for whom.
#[derive(Clone, Copy, Debug, Args)]
struct Runs {
    /// Shorter runs, in some cases fewer: seconds to a minute in all.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

impl Runs {
    /// Measures, and says what came of it.
    fn report<R: Serialize>(
        self,
        run: impl FnOnce(bool) -> Result<R, String>,
        text: fn(&R) -> String,
    ) -> Result<String, String> {
        run(self.quick).map(|report| if self.json { figures::json(&report) } else { text(&report) })
    }
}

fn main() -> ExitCode {
    let Cli { command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return peregrine_control::cli::usage(&Cli::command(), &error),
    };
    // What ended a measurement of which something can be reported all the same.
    let mut cut_short = None;
    let text = match command {
        Command::Core { runs, underlay } => {
            runs.report(|quick| core_case::run(quick, underlay), core_case::Report::text)
        }
        Command::Kernel(runs) => {
            let run = |quick| kernel_case::run(quick).inspect(|report| cut_short = report.failure.clone());
            runs.report(run, kernel_case::Report::text)
        }
        Command::Generator(runs) => runs.report(generator_case::run, generator_case::Report::text),
        Command::Idle(runs) => runs.report(idle_case::run, idle_case::Report::text),
        Command::Tenants(runs) => runs.report(tenants_case::run, tenants_case::Report::text),
        Command::Memif(runs) => runs.report(memif_case::run, memif_case::Report::text),
        Command::Pipeline(runs) => runs.report(pipeline_case::run, pipeline_case::Report::text),
        Command::Skew(runs) => runs.report(skew_case::run, skew_case::Report::text),
        Command::PlacementLatency(runs) => {
            runs.report(placement_latency_case::run, placement_latency_case::Report::text)
        }
        Command::Priority(runs) => {
            let run = |quick| priority_case::run(quick).inspect(|report| cut_short = report.failure.clone());
            runs.report(run, priority_case::Report::text)
        }
        Command::Fdb(runs) => runs.report(fdb_case::run, fdb_case::Report::text),
        Command::Endpoints { runs, only } => {
            runs.report(|quick| endpoints_case::run(quick, only), endpoints_case::Report::text)
        }
        Command::Report(args) => match report::run(&args) {
            Err(report::Error::Input(error)) => {
                eprintln!("peregrine-perf: error: {error}");
                return ExitCode::from(2);
            }
            Err(report::Error::Failed(error)) => Err(error),
            Ok(text) => Ok(text),
        },
        Command::Micro { runs, filter } => {
            runs.report(|quick| micro::run(quick, &filter), micro::Report::text)
        }
        Command::Instructions(args) => micro::instructions::run(&args),
        Command::GeneratorSide(side) => side.run(),
        Command::MemifSide(side) => side.run(),
        Command::PrioritySide(side) => side.run(),
        Command::IdleSide(side) => side.run(),
        Command::MicroRounds { filter } => micro::instructions::rounds(&filter),
    };
    match text {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => match cut_short {
                Some(failure) => {
                    eprintln!("peregrine-perf: error: {failure}");
                    ExitCode::FAILURE
                }
                None => ExitCode::SUCCESS,
            },
        },
        Err(error) => {
            eprintln!("peregrine-perf: error: {error}");
            ExitCode::FAILURE
        }
    }
}
