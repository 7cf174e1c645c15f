//! The daemon and the tenants, as the programs that a user runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use peregrine_control::client::Client;
use peregrine_control::lab::{LabError, Process};
use peregrine_memif::{ClientConfig, Interface, SocketAddr};
use rustix::process::Signal;
use serde_json::Value;

use crate::{FAR, NEAR, Net, PATIENCE, VNI, cores, program, until};

/// A tenant's endpoint on the network of the tests.
#[derive(Clone, Copy, Debug)]
pub struct Tenant {
    /// The endpoint's name.
    pub name: &'static str,
    /// The network's name: `blue` is the one of the tests.
    pub network: &'static str,
    /// The interface id on the memif socket.
    pub id: u32,
    /// Its address on the overlay.
    pub ip: &'static str,
    /// Its link-layer address.
    pub mac: &'static str,
}

impl Tenant {
    /// Two on the network of the tests: most tests need no more.
    pub const WEB: Tenant =
        Tenant { name: "web", network: "blue", id: 0, ip: "10.42.0.1", mac: "02:00:00:00:42:01" };
    /// The other one.
    pub const DB: Tenant =
        Tenant { name: "db", network: "blue", id: 1, ip: "10.42.0.3", mac: "02:00:00:00:42:03" };

    /// The endpoint in the config, with this in its `memif` table. It is not announced: tests count what tenants send.
    pub fn endpoint(&self, memif: &str) -> String {
        let Tenant { name, network, mac, ip, .. } = self;
        format!(
            "\n[[endpoints]]\nname = \"{name}\"\nnetwork = \"{network}\"\nmac = \"{mac}\"\naddresses = [\"{ip}\"]\n\
             announce = false\nmemif = {{ {memif} }}\n"
        )
    }

    /// `peregrine-pktgen echo` at this endpoint, connected.
    ///
    /// # Panics
    /// If it does not connect.
    pub fn echo(&self, net: &Net) -> Process {
        let mut command = Command::new(program("peregrine-pktgen"));
        command.args(["echo", "--json", "--memif"]).arg(net.file("memif.sock"));
        command.args(["--id", &self.id.to_string(), "--mac", self.mac, "--ip", self.ip]);
        command.args(["--core", &cores().1.to_string()]);
        let mut echo = Process::start(&mut command).unwrap_or_else(|error| panic!("{error}"));
        echo.wait_for_line("ready", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        self.wait_until_served(net);
        echo
    }

    /// This test itself as the tenant.
    ///
    /// # Panics
    /// If it cannot connect.
    pub fn connect(&self, net: &Net) -> Interface {
        self.connect_with(net, ClientConfig::default())
    }

    /// The same with more than the defaults.
    ///
    /// # Panics
    /// If it cannot connect.
    pub fn connect_with(&self, net: &Net, config: ClientConfig) -> Interface {
        let config = ClientConfig { id: self.id, name: "test".into(), ..config };
        let address = SocketAddr::Path(net.file("memif.sock"));
        let interface = peregrine_memif::Client::connect_blocking(&address, config, PATIENCE)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self.wait_until_served(net);
        interface
    }

    /// The handshake is over a moment before the daemon gives the rings to its worker.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn wait_until_served(&self, net: &Net) {
        until("the tenant to be served", || {
            let stats =
                Client::connect(&net.file("control.sock")).and_then(|mut client| client.call("stats"));
            let stats = stats.unwrap_or_else(|error| panic!("{}: {error}", self.name));
            let mut endpoints = stats["endpoints"].as_array().into_iter().flatten();
            endpoints.any(|endpoint| endpoint["name"] == self.name && endpoint["connected"] == true)
        });
    }
}

/// `peregrine run` on the near host. Killed when dropped; after a panic its counters are printed.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    control: PathBuf,
    /// From the start of the program to its `ready`.
    pub start_time: Duration,
}

/// How a daemon ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub said: String,
}

impl Daemon {
    /// A config with the network of the tests, these remotes and tenants. More TOML goes behind it.
    pub fn config(net: &Net, remotes: &[&str], tenants: &[Tenant]) -> String {
        let mut text = format!(
            "control_socket = \"{}\"\n\n[[workers]]\ncore = {}\n\n\
             [uplink]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\n\n\
             [[networks]]\nname = \"blue\"\nvni = {VNI}\nmtu = 1450\nremotes = {remotes:?}\n",
            net.file("control.sock").display(),
            cores().0,
            NEAR.1,
            NEAR.0,
        );
        for tenant in tenants {
            let socket = net.file("memif.sock");
            text += &tenant.endpoint(&format!("socket = \"{}\", id = {}", socket.display(), tenant.id));
        }
        text
    }

    /// The same config with workers that sleep while there is nothing to do.
    ///
    /// # Panics
    /// If they do already.
    pub fn sleepy(config: &str) -> String {
        assert!(!config.contains("idle = "), "{config}");
        let adaptive = |line: &str| {
            let is_core = line.starts_with("core = ");
            format!("{line}\n{}", if is_core { "idle = \"adaptive\"\n" } else { "" })
        };
        config.lines().map(adaptive).collect()
    }

    /// The same config with a second worker, and the steps of every flow spread over both.
    ///
    /// # Panics
    /// If there is only one core.
    pub fn spread(config: &str) -> String {
        let (worker, other) = cores();
        assert_ne!(worker, other, "two workers need two cores");
        let first = format!("[[workers]]\ncore = {worker}\n");
        assert!(config.contains(&first), "{config}");
        format!(
            "placement = \"static\"\n{}",
            config.replace(&first, &format!("{first}[[workers]]\ncore = {other}\n"))
        )
    }

    /// With the far host as only remote.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start(net: &Net, tenants: &[Tenant]) -> Daemon {
        Daemon::start_with(net, &Daemon::config(net, &[FAR.0], tenants))
    }

    /// With this config.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_with(net: &Net, config: &str) -> Daemon {
        // Any test can be run with workers that sleep.
        let is_asked = std::env::var("PEREGRINE_TEST_IDLE").is_ok_and(|idle| idle == "adaptive");
        let sleepy = (is_asked && !config.contains("idle = ")).then(|| Daemon::sleepy(config));
        let config = sleepy.as_deref().unwrap_or(config);
        let began = Instant::now();
        let mut process = Daemon::spawn(net, config);
        process.wait_for_line("ready", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        Daemon { process: Some(process), control: net.file("control.sock"), start_time: began.elapsed() }
    }

    /// A start that fails: how it ended.
    ///
    /// # Panics
    /// If it starts, or does not end.
    pub fn refused(net: &Net, config: &str) -> Ended {
        let output = Daemon::command(net, config).output().expect("peregrine");
        assert!(!output.status.success(), "it started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ended { code: output.status.code(), said }
    }

    fn spawn(net: &Net, config: &str) -> Process {
        Process::start(&mut Daemon::command(net, config)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The command that runs it; the config is written to a file.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn command(net: &Net, config: &str) -> Command {
        let file = net.file("peregrine.toml");
        std::fs::write(&file, config).expect("a config file");
        let mut command = net.near.command(program("peregrine"));
        command.args(["run", "-c"]).arg(file);
        command
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::id)
    }

    /// Whether the process is still there.
    pub fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Asks through the control socket.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn ask(&self, method: &str) -> Value {
        let answer = Client::connect(&self.control).and_then(|mut client| client.call(method));
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// `stats`.
    #[track_caller]
    pub fn stats(&self) -> Value {
        self.ask("stats")
    }

    /// `status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.ask("status")
    }

    /// How often frames were dropped for a reason.
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        self.stats()["drops"][reason].as_u64().unwrap_or(0)
    }

    /// The counters when nothing moves any more: two looks that agree, and every frame accounted for, in each class as well.
    ///
    /// # Panics
    /// If frames are unaccounted for.
    #[track_caller]
    pub fn at_rest(&self) -> Value {
        let mut last = self.stats();
        until("rest, with every frame accounted for", || {
            let now = self.stats();
            let same = now["totals"] == last["totals"];
            last = now;
            let classes = last["classes"].as_array();
            let are_conserved = classes.is_some_and(|all| all.iter().all(|class| class["in_flight"] == 0));
            same && last["totals"]["conserved"] == true && are_conserved
        });
        let dropped: u64 = last["drops"].as_object().into_iter().flatten().filter_map(|d| d.1.as_u64()).sum();
        assert_eq!(last["totals"]["dropped"].as_u64(), Some(dropped), "each drop has a reason");
        last
    }

    /// Waits until the way to every remote is known to the engine.
    #[track_caller]
    pub fn wait_for_next_hops(&self) {
        until("next hops", || {
            let stats = self.stats();
            let remotes = stats["remotes"].as_array();
            remotes.is_some_and(|all| all.iter().all(|remote| remote["resolved"] == true))
        });
    }

    /// Waits until a tenant is connected, or is no longer.
    #[track_caller]
    pub fn wait_for_tenant(&self, index: usize, connected: bool) {
        until("the tenant to come or go", || self.status()["endpoints"][index]["connected"] == connected);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it was killed before.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("a process").signal(signal);
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.process = None;
    }

    /// Stops it (SIGTERM); everything that it wrote to standard error.
    ///
    /// # Panics
    /// If it does not end well.
    #[track_caller]
    pub fn stop(mut self) -> String {
        let mut process = self.process.take().expect("a process");
        process.signal(Signal::TERM);
        process.wait_for_line("stopped", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        let said = process.said().join("\n");
        process.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
        said
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn end(mut self, time: Duration) -> Ended {
        match self.process.take().expect("a process").finish(time, &|| false) {
            Ok(_) => Ended { code: Some(0), said: String::new() },
            Err(LabError::Failed { status, said, .. }) => Ended { code: status.code(), said },
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.process.is_none() {
            return;
        }
        for method in ["status", "stats"] {
            match Client::connect(&self.control).and_then(|mut client| client.call(method)) {
                Ok(answer) => eprintln!("{method}: {answer:#}"),
                Err(error) => eprintln!("{method}: {error}"),
            }
        }
    }
}

/// A counter of frames in the totals of `stats`.
///
/// # Panics
/// If there is none of that name.
#[track_caller]
pub fn totals(stats: &Value, name: &str) -> u64 {
    let value = &stats["totals"][name];
    value["frames"].as_u64().or(value.as_u64()).unwrap_or_else(|| panic!("no total {name}"))
}

impl Daemon {
    /// A figure in kB of the process's `/proc/PID/status`.
    ///
    /// # Panics
    /// If it is not there.
    pub fn memory_kb(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let figure = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        figure.unwrap_or_else(|| panic!("no {key} in {text}"))
    }

    /// Its open descriptors, and its mappings of tenants' memory.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn open_things(&self) -> (usize, usize) {
        let process = Path::new("/proc").join(self.id().to_string());
        let descriptors = std::fs::read_dir(process.join("fd")).expect("a process").count();
        let maps = std::fs::read_to_string(process.join("maps")).expect("a process");
        (descriptors, maps.lines().filter(|line| line.contains("memfd:")).count())
    }
}
