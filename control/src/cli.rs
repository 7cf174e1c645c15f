//! The arguments of `peregrine`, and what each subcommand does. Exit status: 0 done, 1 it ran and failed, 2 bad
//! arguments or config. Errors are lines that start with `peregrine: error: ` on standard error.

/// `peregrine apply`, `export`, `watch` and `schema`.
mod declared;
/// `peregrine doctor`.
mod doctor;
/// `peregrine fdb` and `peregrine remote`.
mod forwarding;
/// `peregrine network`, `port` and `endpoint`.
mod objects;
/// `peregrine rules`.
mod rules;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use peregrine_dataplane::plan::Plan;
use serde_json::{Value, json};

use crate::client::Client;
use crate::demo::{self, DemoArgs};
use crate::error::Error;
use crate::table::{count, percent, thousands};
use crate::{daemon, render};

pub use declared::{Apply, ExportArgs, WatchArgs};
pub use doctor::DoctorArgs;
pub use forwarding::{FdbArgs, FdbCommand, RemoteCommand};
pub use objects::{EndpointCommand, NetworkCommand, PortCommand};
pub use rules::RulesCommand;

/// A userspace VXLAN dataplane: AF_XDP towards the network, memif towards the tenants.
#[derive(Debug, Parser)]
#[command(name = "peregrine", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the dataplane in the foreground, until SIGINT or SIGTERM.
    Run {
        /// The config, in TOML.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a config and tell all its mistakes.
    Check {
        /// The config, in TOML.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Tell what will not work on this machine, why, and the command that mends it. Exit status 1: something will not.
    Doctor(DoctorArgs),
    /// Show peregrine on real traffic in network namespaces, beside the kernel's overlay (needs root).
    Demo(DemoArgs),
    /// Show what runs: uplink, workers, networks, next hops, tenants.
    Status(Ask),
    /// Show the counters: traffic, drops by reason, conservation.
    Stats {
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
        /// Print a line of rates every second until interrupted.
        #[arg(short, long, conflicts_with = "json")]
        watch: bool,
    },
    /// Show where addresses are: learned, from the config, or on this host; forget learned ones, add and remove fixed ones.
    Fdb(FdbArgs),
    /// Show the remotes; add and remove some, while packets flow.
    #[command(subcommand)]
    Remote(RemoteCommand),
    /// Use more cores, or fewer, while packets flow.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Show or replace the rules that put packets into priority classes, while packets flow.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Show the networks; add and remove some, while packets flow.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Show the ports, which carry endpoints; add and remove some, while packets flow.
    #[command(subcommand)]
    Port(PortCommand),
    /// Show the endpoints; add, change, move and remove some, while packets flow.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Let what a file declares be there, and nothing else beside the config: what is missing is added, what is too much removed, all at once.
    Apply(Apply),
    /// Print all that was declared at the control socket, as a file for `apply`. With secrets: for root and the daemon's user only.
    Export(ExportArgs),
    /// Print what changes in networks, ports and endpoints, until interrupted.
    Watch(WatchArgs),
    /// Print the JSON schema of what the control socket takes and returns.
    Schema {
        /// In one line.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Part of `run`, which starts it: seals tenants' memory.
    #[command(hide = true)]
    SealHelper,
}

/// What happens to a worker.
#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Use another core: a worker that shares one moves there, or a new one takes steps for the others.
    Add {
        /// The CPU, as the kernel numbers it.
        #[arg(value_name = "CORE")]
        core: usize,
        /// The worker's priority where it is not alone, -20 (highest) to 19.
        #[arg(long, value_name = "NICE", allow_hyphen_values = true)]
        nice: Option<i8>,
        /// What it does while there is nothing to do.
        #[arg(long, value_name = "MODE", default_value = "busy", value_parser = ["busy", "adaptive"])]
        idle: String,
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
    },
    /// Use a core no more: a worker with queues of the interface moves to another one.
    Remove {
        /// The CPU.
        #[arg(value_name = "CORE")]
        core: usize,
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
    },
}

/// For which there are completion scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

/// Whom to ask, and how to print the answer.
#[derive(Debug, Args)]
pub struct Ask {
    /// Print one JSON object and nothing else.
    #[arg(long)]
    pub json: bool,
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = peregrine_config::CONTROL_SOCKET)]
    pub socket: PathBuf,
}

/// The program: parses the arguments, does what they say, tells what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&Cli::command(), &error),
    };
    match execute(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Unfit) => ExitCode::from(error.exit_code()), // what was found is on standard output
        Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                let _unread = writeln!(io::stderr(), "peregrine: error: {line}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// What clap has to say about this process's arguments: help goes out as it is; of a mistake what is wrong and what may be meant, in one
/// line, with exit status 2.
pub fn usage(program: &clap::Command, error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _nobody_reads = io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no command is given".into(),
        _ => {
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
            words.join(" ").replace(" For more information, try '--help'.", "").replace(" tip: ", ": ")
        }
    };
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let (name, meant) = (program.get_name(), meant(program, std::env::args().skip(1)));
    let _nobody_reads = writeln!(io::stderr(), "{name}: error: {what}: see `{meant} --help`");
    ExitCode::from(2)
}

/// `peregrine fdb add`: the subcommand that these arguments name, as far as there is one.
fn meant(program: &clap::Command, arguments: impl Iterator<Item = String>) -> String {
    let (mut command, mut words) = (program, vec![program.get_name()]);
    for argument in arguments.filter(|argument| !argument.starts_with('-')) {
        let Some(found) = command.find_subcommand(&argument) else { break };
        command = found;
        words.push(found.get_name());
    }
    words.join(" ")
}

/// Does what a subcommand says.
pub fn execute(command: &Command) -> Result<(), Error> {
    match command {
        Command::Run { config } => daemon::run(&load(config)?),
        Command::Check { file } => {
            let plan = load(file)?;
            print(&format!("{}: ok — {}\n", file.display(), summary(&plan)))
        }
        Command::Doctor(args) => doctor::execute(args),
        Command::Demo(args) => demo::run(args, print),
        Command::Status(ask) => show(ask, "status", render::status),
        Command::Fdb(args) => forwarding::fdb(args),
        Command::Remote(command) => forwarding::remote(command),
        Command::Worker(WorkerCommand::Add { core, nice, idle, ask }) => {
            let params = json!({ "core": core, "nice": nice, "idle": idle });
            show_with(ask, "worker.add", &params, render::cores)
        }
        Command::Worker(WorkerCommand::Remove { core, ask }) => {
            show_with(ask, "worker.remove", &json!({ "core": core }), render::cores)
        }
        Command::Rules(command) => rules::execute(command),
        Command::Network(command) => objects::network(command),
        Command::Port(command) => objects::port(command),
        Command::Endpoint(command) => objects::endpoint(command),
        Command::Apply(args) => declared::apply(args),
        Command::Export(args) => declared::export(args),
        Command::Watch(args) => declared::watch(args),
        Command::Schema { json } => declared::schema(*json),
        Command::Completion { shell } => print(&completion(*shell)),
        Command::SealHelper => peregrine_memif::sealer::serve(),
        Command::Stats { ask, watch: true } => watch(&ask.socket),
        Command::Stats { ask, watch: false } => show(ask, "stats", render::stats),
    }
}

/// The script for a shell.
fn completion(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let (mut program, mut script) = (Cli::command(), Vec::new());
    let name = program.get_name().to_owned();
    clap_complete::generate(shell, &mut program, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn load(path: &Path) -> Result<Plan, Error> {
    let plan = peregrine_config::load(path).map_err(Error::Config)?;
    for warning in peregrine_config::warnings(&plan) {
        let _nobody_reads = writeln!(io::stderr(), "peregrine: warning: {warning}");
    }
    Ok(plan)
}

/// `1 worker, 2 networks, 3 endpoints`.
fn summary(plan: &Plan) -> String {
    [
        count(plan.workers.len(), "worker"),
        count(plan.networks.len(), "network"),
        count(plan.endpoints.len(), "endpoint"),
    ]
    .join(", ")
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}

fn show(ask: &Ask, method: &str, human: impl FnOnce(&Value) -> String) -> Result<(), Error> {
    show_with(ask, method, &json!({}), human)
}

fn show_with(
    ask: &Ask,
    method: &str,
    params: &Value,
    human: impl FnOnce(&Value) -> String,
) -> Result<(), Error> {
    let answer = Client::connect(&ask.socket)?.call_with(method, params)?;
    print(&if ask.json { format!("{answer}\n") } else { human(&answer) })
}

/// One line a second, until the daemon ends or somebody presses Ctrl-C.
fn watch(socket: &Path) -> Result<(), Error> {
    let mut client = Client::connect(socket)?;
    let mut before = client.call("stats")?;
    print("  frames/s in          out      dropped   Mbit/s in        out   busy\n")?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let after = client.call("stats")?;
        print(&rates(&before, &after))?;
        before = after;
    }
}

/// What changed in a second.
fn rates(before: &Value, after: &Value) -> String {
    let total = |stats: &Value, keys: [&str; 2], unit: &str| -> u64 {
        keys.iter().filter_map(|key| stats["totals"][key][unit].as_u64()).sum()
    };
    let rate = |keys, unit| total(after, keys, unit).saturating_sub(total(before, keys, unit));
    let (rx, tx) = (["uplink_rx", "tenant_rx"], ["uplink_tx", "tenant_tx"]);
    let dropped = |stats: &Value| stats["totals"]["dropped"].as_u64().unwrap_or(0);
    let busy: Vec<String> = after["workers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|w| percent(w["busy"].as_f64().unwrap_or(0.0)))
        .collect();
    format!(
        "{:>13} {:>12} {:>12} {:>11} {:>10}   {}\n",
        thousands(rate(rx, "frames")),
        thousands(rate(tx, "frames")),
        thousands(dropped(after).saturating_sub(dropped(before))),
        thousands(rate(rx, "bytes") * 8 / 1_000_000),
        thousands(rate(tx, "bytes") * 8 / 1_000_000),
        busy.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contract_is_kept() {
        assert!(matches!(parse("peregrine run -c x.toml").unwrap().command,
            Command::Run { config } if config == Path::new("x.toml")));
        assert!(matches!(parse("peregrine check x.toml").unwrap().command, Command::Check { .. }));
        let Command::Status(ask) = parse("peregrine status --json").unwrap().command else { panic!() };
        assert!(ask.json && ask.socket == Path::new(peregrine_config::CONTROL_SOCKET));
        let Command::Stats { ask, watch } = parse("peregrine stats --socket /x").unwrap().command else {
            panic!()
        };
        assert!(!watch && !ask.json && ask.socket == Path::new("/x"));
        let Command::Worker(WorkerCommand::Add { core, nice, .. }) =
            parse("peregrine worker add 3 --nice -10").unwrap().command
        else {
            panic!()
        };
        assert_eq!((core, nice), (3, Some(-10)));
        let Command::Rules(RulesCommand::Set(set)) = parse("peregrine rules set x.toml").unwrap().command
        else {
            panic!()
        };
        assert!(set.file == Path::new("x.toml") && !set.ask.json);
        for line in [
            "peregrine fdb --json --mac 02:00:00:00:00:01",
            "peregrine fdb list --json --mac 02:00:00:00:00:01",
        ] {
            let Command::Fdb(FdbArgs { command, list }) = parse(line).unwrap().command else { panic!() };
            let list = match command {
                None => list,
                Some(FdbCommand::List(list)) => list,
                _ => panic!("{line}"),
            };
            assert!(list.ask.json && list.mac.is_some() && list.remote.is_none(), "{line}");
        }
        let Command::Remote(RemoteCommand::Add(one)) =
            parse("peregrine remote add blue 2001:db8::1").unwrap().command
        else {
            panic!()
        };
        assert!(one.network == "blue" && one.address.is_ipv6());
    }

    #[test]
    fn mistakes_have_status_two() {
        for line in [
            "peregrine run",
            "peregrine check",
            "peregrine status --jsn",
            "peregrine stats --json --watch",
            "peregrine worker add",
            "peregrine worker add -1",
            "peregrine worker remove x",
            "peregrine rules",
            "peregrine rules set",
            "peregrine rules list --json --toml",
            "peregrine fdb add --network blue --mac 02:00:00:00:00:01",
            "peregrine fdb flush --mac 02:00",
            "peregrine fdb --json flush",
            "peregrine remote",
            "peregrine remote add blue",
            "peregrine remote add blue ten",
            "peregrine network add blue",
            "peregrine network add blue --vni x",
            "peregrine network remove",
            "peregrine port add p",
            "peregrine endpoint add web --network blue --mac 02:00:00:00:00:01",
            "peregrine endpoint add web --network blue --mac 02 --port p",
            "peregrine endpoint add web --network blue --mac 02:00:00:00:00:01 --port p --memif @x",
            "peregrine endpoint move web",
            "peregrine apply",
            "peregrine export --json --toml",
            "peregrine watch --from x",
            "peregrine completion tcsh",
            "peregrine doctor --fx",
            "peregrine doctor eth0 eth1",
            "peregrine doctor eth0 --all",
            "peregrine doctor -c x.toml --all",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("peregrine --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn objects_are_declared_with_the_keys_of_the_config() {
        for line in [
            "peregrine network list --json",
            "peregrine network add blue --vni 42 --remote 10.0.0.1 --remote 10.0.0.2 --dry-run",
            "peregrine network remove blue red --json",
            "peregrine port list p --network blue",
            "peregrine port add p --memif /run/x.sock --id 3 --role client --ring-size 1024",
            "peregrine endpoint add web --network blue --mac 02:00:00:00:00:01 --port p --address 10.0.0.1",
            "peregrine endpoint set web --network blue --mac 02:00:00:00:00:01 --memif @x --secret-file - --no-announce",
            "peregrine endpoint move web q",
            "peregrine endpoint remove a b c",
            "peregrine apply x.toml --dry-run --if-unchanged",
            "peregrine apply -",
            "peregrine export --toml",
            "peregrine watch --from 7 --json",
            "peregrine schema",
            "peregrine completion zsh",
            "peregrine doctor",
            "peregrine doctor --all --json",
            "peregrine doctor -c x.toml eth0 --fix --json",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion(shell);
            assert!(
                ["endpoint", "dry-run", "completion"].iter().all(|word| script.contains(word)),
                "{shell:?}"
            );
        }
    }

    #[test]
    fn the_network_of_remotes_can_be_told_in_both_ways_but_once() {
        for line in ["peregrine remote list blue", "peregrine remote list --network blue"] {
            let Command::Remote(RemoteCommand::List { network, of, .. }) = parse(line).unwrap().command
            else {
                panic!("{line}")
            };
            assert_eq!(network.or(of).as_deref(), Some("blue"), "{line}");
        }
        assert!(parse("peregrine remote list blue --network green").is_err());
    }

    #[test]
    fn help_is_that_of_the_subcommand() {
        let of = |line: &str| meant(&Cli::command(), line.split_whitespace().map(str::to_owned));
        assert_eq!(of(""), "peregrine");
        assert_eq!(of("fdb add --mac x"), "peregrine fdb add");
        assert_eq!(of("fdb --json flush --netwrk"), "peregrine fdb flush");
        assert_eq!(of("fbd add"), "peregrine");
        assert_eq!(of("status --jsn"), "peregrine status");
    }

    #[test]
    fn rates_are_differences() {
        let stats = |frames: u64| {
            json!({"totals": {"uplink_rx": {"frames": frames, "bytes": frames * 1_000_000}, "dropped": frames / 2},
                "workers": [{"busy": 0.5}]})
        };
        let line = rates(&stats(1000), &stats(3000));
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields, ["2,000", "0", "1,000", "16,000", "0", "50.0", "%"]);
    }
}
