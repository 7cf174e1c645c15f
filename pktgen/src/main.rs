//! `peregrine-pktgen`: reads the command line, runs the command, prints its report. Exit status: 0 done; 1 it ran and
//! failed, or was not what `--max-loss` or `--min-received` want; 2 bad arguments.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use peregrine_pktgen::cli::{Cli, Command, EchoArgs, PortSettings, SearchArgs, SendArgs, SinkArgs};
use peregrine_pktgen::echo::{self, MemifResponder};
use peregrine_pktgen::error::Error;
use peregrine_pktgen::floor::{self, Floor};
use peregrine_pktgen::limits::{Stop, pin};
use peregrine_pktgen::port::memif::MemifPort;
use peregrine_pktgen::port::reconnect::ReconnectingPort;
use peregrine_pktgen::port::udp::UdpPort;
use peregrine_pktgen::port::xdp::XdpPort;
use peregrine_pktgen::report::{self, Outcome, Report};
use peregrine_pktgen::search;
use peregrine_pktgen::send::Sender;
use peregrine_pktgen::sink;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match &cli.command {
        Command::Send(args) => send(args),
        Command::Sink(args) => run_sink(args),
        Command::Echo(args) => run_echo(args),
        Command::Search(args) => run_search(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}

/// Help goes out as it is; of an error only what is wrong, in one line.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _nobody_reads = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say(
            "error: no command is given: use send, sink, echo or search; `peregrine-pktgen --help` tells more",
        );
        return ExitCode::from(2);
    }
    let lines: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
    let what = lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let what = what.replace(" For more information, try '--help'.", "");
    say(&format!("{what}: see `peregrine-pktgen --help`"));
    ExitCode::from(2)
}

/// A line to standard error, if somebody reads it.
fn say(line: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "{line}");
}

/// Whoever started us may go on: the socket is open, the ring connected; with `--reconnect` it will be once its server is there.
fn ready() {
    say("ready");
}

fn finish<R: Report>(outcome: Outcome<R>, floor: Option<Floor>, json: bool) -> Result<(), Error> {
    report::print(&outcome.report, floor, json)?;
    outcome.failure.map_or(Ok(()), Err)
}

fn send(args: &SendArgs) -> Result<(), Error> {
    let settings = args.settings()?;
    let counts = args.rtt_counts.as_deref().map(|path| open("--rtt-counts", path)).transpose()?;
    let floor = if args.rtt && !args.no_floor {
        // There where the answers are received: with --rtt this thread is the one that sends.
        pin(settings.cores.first().copied())?;
        Some(floor::measure()?)
    } else {
        None
    };
    let sender = Sender::open(settings)?;
    let stop = Stop::at_signals()?;
    ready();
    let outcome = sender.run(&stop)?;
    let printed = report::print(&outcome.report, floor, args.json);
    if let (Some((file, what)), Some(rtt)) = (counts, &outcome.report.rtt) {
        overwrite(file, |file| rtt.latency.write_counts(file)).map_err(Error::system(what))?;
    }
    printed?; // only now: who reads no more may still want the file
    outcome.failure.map_or(Ok(()), Err)
}

/// Before the run, so that a bad path does not cost a measurement; the old file stays until there is a new one. With it
/// what an error is to name.
fn open(flag: &str, path: &Path) -> Result<(File, String), Error> {
    let what = format!("{flag} {}", path.display());
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.map(|file| (file, what.clone())).map_err(Error::system(what))
}

fn run_sink(args: &SinkArgs) -> Result<(), Error> {
    let (port, settings) = args.settings()?;
    pin(args.common.core)?;
    let percentiles = args.percentiles.as_deref().map(|path| open("--percentiles", path)).transpose()?;
    let floor = (!args.no_floor).then(floor::measure).transpose()?;
    let outcome = match port {
        PortSettings::Memif(socket, config) => {
            let port = MemifPort::connect(&socket, config)?;
            let stop = Stop::at_signals()?;
            ready();
            sink::run(port.rx, &settings, stop)?
        }
        PortSettings::Reconnecting(socket, config) => {
            let port = ReconnectingPort::new(&socket, config)?;
            let stop = Stop::at_signals()?;
            ready();
            sink::run(port, &settings, stop)?
        }
        PortSettings::Udp(address) => {
            let port = UdpPort::bind_with(address, args.udp_buffer as usize)?;
            let stop = Stop::at_signals()?;
            ready();
            sink::run(port, &settings, stop)?
        }
        PortSettings::Xdp(xdp) => {
            let port = XdpPort::open(&xdp)?;
            let stop = Stop::at_signals()?;
            ready();
            sink::run(port, &settings, stop)?
        }
    };
    let printed = report::print(&outcome.report, floor, args.common.json);
    if let Some((file, what)) = percentiles {
        overwrite(file, |file| outcome.report.latency.write_percentiles(file))
            .map_err(Error::system(what))?;
    }
    printed?;
    outcome.failure.map_or(Ok(()), Err)?;
    args.demands().check(&outcome.report)
}

/// In place of what the file held.
fn overwrite(
    file: File,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?; // else it is a pipe, such as /dev/stdout
    }
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    file.flush()
}

fn run_echo(args: &EchoArgs) -> Result<(), Error> {
    let (port, identity, settings) = args.settings()?;
    pin(args.common.core)?;
    let outcome = match (port, identity) {
        (PortSettings::Memif(socket, config), Some(identity)) => {
            let port = MemifPort::connect(&socket, config)?;
            let stop = Stop::at_signals()?;
            ready();
            echo::run(MemifResponder { port, identity }, &settings, stop)
        }
        (PortSettings::Reconnecting(socket, config), Some(identity)) => {
            let port = ReconnectingPort::new(&socket, config)?;
            let stop = Stop::at_signals()?;
            ready();
            echo::run(MemifResponder { port, identity }, &settings, stop)
        }
        (PortSettings::Memif(..) | PortSettings::Reconnecting(..), None) => {
            return Err(Error::Arguments("echo --memif needs --mac and --ip".into()));
        }
        (PortSettings::Xdp(_), _) => return Err(Error::Arguments("echo has no AF_XDP".into())),
        (PortSettings::Udp(address), _) => {
            let port = UdpPort::bind(address)?;
            let stop = Stop::at_signals()?;
            ready();
            echo::run(port, &settings, stop)
        }
    };
    finish(outcome, None, args.common.json)
}

fn run_search(args: &SearchArgs) -> Result<(), Error> {
    let settings = args.settings()?;
    if !settings.profile_unused.is_empty() {
        let keys = settings.profile_unused.join(", ");
        say(&format!(
            "warning: a search does not use what --profile says of {keys}: give --rate (the highest) and --seconds (for each size)"
        ));
    }
    let stop = Stop::new();
    // Not before: while it connects nobody looks at `stop`, and there is nothing to report.
    let open = || {
        stop.watch_signals()?;
        ready();
        Ok(())
    };
    let outcome = search::device::run(&settings, &stop, open)?;
    search::report::finish(outcome, args.send.json)
}
