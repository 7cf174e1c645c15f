//! Hosts on one machine: network namespaces, the wires between them and the programs in them, made with iproute2.
//! `peregrine demo` and the project's tests build their networks with it.
//!
//! Everything goes away again: a [`Namespace`] ends the programs in it and removes itself (and with it its devices)
//! when it is dropped; what a run that was killed left behind is removed by the next one that asks for the same name.
//! The programs themselves die with the thread that started them (setpriv, PR_SET_PDEATHSIG), and a Ctrl-C in the
//! terminal reaches only us (process groups of their own), so that clean-up is not disturbed.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Why a part of the lab could not be made, or a program in it failed. One line.
#[derive(Debug)]
pub enum LabError {
    /// A program could not be started.
    Start {
        /// Its command line.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    Failed {
        /// Its command line.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to standard error.
        said: String,
    },
    /// A program did not do in time what was waited for.
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// The last lines that the program wrote to standard error.
        said: String,
    },
    /// Somebody pressed Ctrl-C.
    Interrupted,
    /// A program answered what we do not understand.
    Answer {
        /// Its command line.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after =
            |said: &str| if said.is_empty() { String::new() } else { format!(": {}", one_line(said)) };
        match self {
            LabError::Start { what, source } => write!(f, "cannot start `{what}`: {source}"),
            LabError::Failed { what, status, said } => write!(f, "`{what}` failed ({status}){}", after(said)),
            LabError::Late { what, waited, said } => {
                write!(f, "{what}: nothing after {waited:?}{}", after(said))
            }
            LabError::Interrupted => f.write_str("interrupted"),
            LabError::Answer { what, why } => {
                write!(f, "`{what}` answered something else than expected: {why}")
            }
        }
    }
}

impl std::error::Error for LabError {}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

fn words(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    all.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// [`LabError::Start`] or [`LabError::Failed`].
pub fn run(command: &mut Command) -> Result<String, LabError> {
    run_even_if(0, command)
}

/// The same, for a program whose exit status `also` is no failure.
///
/// # Errors
/// [`LabError::Start`] or [`LabError::Failed`].
pub fn run_even_if(also: i32, command: &mut Command) -> Result<String, LabError> {
    let what = words(command);
    let output = command.stdin(Stdio::null()).process_group(0).output();
    let Output { status, stdout, stderr } =
        output.map_err(|source| LabError::Start { what: what.clone(), source })?;
    if status.success() || status.code() == Some(also) {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(LabError::Failed { what, status, said: String::from_utf8_lossy(&stderr).into_owned() })
}

/// A host of the lab.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with its loopback device up. One of this name that a run before left behind is removed first,
    /// with the programs that still run in it.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn create(name: &str) -> Result<Namespace, LabError> {
        let namespace = Namespace { name: name.to_string() };
        if Path::new("/run/netns").join(name).exists() {
            namespace.remove();
        }
        run(Command::new("ip").args(["netns", "add", name]))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// One that somebody else makes, or has made: it is removed with this, if it is there then.
    pub fn adopt(name: &str) -> Namespace {
        Namespace { name: name.to_string() }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip …` in it; the arguments are separated by blanks.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// A program that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// A wire from here to another host: a pair of veth devices, up, with these names, Ethernet addresses and MTU.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn wire(
        &self,
        ours: (&str, &str),
        other: &Namespace,
        theirs: (&str, &str),
        mtu: u16,
    ) -> Result<(), LabError> {
        let (far, (a, a_mac), (b, b_mac)) = (&other.name, ours, theirs);
        self.ip(&format!(
            "link add {a} address {a_mac} mtu {mtu} type veth peer name {b} address {b_mac} mtu {mtu} netns {far}"
        ))?;
        self.ip(&format!("link set {a} up"))?;
        other.ip(&format!("link set {b} up"))?;
        Ok(())
    }

    /// Ends what runs in it and removes it. Nothing is left to be told if that fails: the next `create` tries again.
    fn remove(&self) {
        if let Ok(pids) = run(Command::new("ip").args(["netns", "pids", &self.name])) {
            for pid in pids.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
        let _absent = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The same program, but killed by the kernel when we die, however we die: more exactly, when the thread that starts it
/// ends. Its standard streams are the caller's to set.
pub fn tethered(command: &Command) -> Command {
    let mut tethered = Command::new("setpriv");
    tethered.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tethered.env(name, value),
            None => tethered.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        tethered.current_dir(directory);
    }
    tethered.process_group(0);
    tethered
}

/// A program that runs in the background; it is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    /// Reads beside everything else: a full pipe would stop the program.
    stdout: Option<JoinHandle<io::Result<String>>>,
    stderr: Receiver<String>,
    said: Vec<String>,
}

impl Process {
    /// Starts it. Its standard output is kept for [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`LabError::Start`].
    pub fn start(command: &mut Command) -> Result<Process, LabError> {
        let what = words(command);
        let mut command = tethered(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|source| LabError::Start { what: what.clone(), source })?;
        let stdout = child.stdout.take().map(|stream| std::thread::spawn(move || io::read_to_string(stream)));
        let (sender, stderr) = channel();
        if let Some(stream) = child.stderr.take() {
            // The thread ends with the program's standard error.
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Process { what, child, stdout, stderr, said: Vec::new() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error, as far as it was waited for.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    /// Waits until it writes a line that begins with `start` to standard error.
    ///
    /// # Errors
    /// [`LabError::Late`], or [`LabError::Failed`] if it ends before.
    pub fn wait_for_line(&mut self, start: &str, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.starts_with(start);
                    self.said.push(line);
                    if found {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(LabError::Late {
                        what: format!("`{}`", self.what),
                        waited: timeout,
                        said: self.said.join("\n"),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_err(|source| self.start_error(source))?;
                    return Err(LabError::Failed {
                        what: self.what.clone(),
                        status,
                        said: self.said.join("\n"),
                    });
                }
            }
        }
    }

    /// Waits until it ends, or `stop` says so, and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Failed`], [`LabError::Late`] after `timeout`, [`LabError::Interrupted`].
    pub fn finish(mut self, timeout: Duration, stop: &dyn Fn() -> bool) -> Result<String, LabError> {
        let status = self.wait(timeout, stop)?;
        self.said.extend(self.stderr.iter());
        let read = self.stdout.take().and_then(|reader| reader.join().ok()).transpose();
        if !status.success() {
            return Err(LabError::Failed { what: self.what.clone(), status, said: self.said.join("\n") });
        }
        Ok(read.map_err(|source| self.start_error(source))?.unwrap_or_default())
    }

    /// Asks it to end (SIGTERM) and returns its standard output.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn stop(self, timeout: Duration) -> Result<String, LabError> {
        self.signal(Signal::TERM);
        self.finish(timeout, &|| false)
    }

    /// Sends it a signal; one that has ended does not mind.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process(pid, signal);
        }
    }

    fn wait(&mut self, timeout: Duration, stop: &dyn Fn() -> bool) -> Result<ExitStatus, LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|source| self.start_error(source))? {
                return Ok(status);
            }
            if stop() {
                return Err(LabError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(LabError::Late {
                    what: format!("`{}`", self.what),
                    waited: timeout,
                    said: self.said.join("\n"),
                });
            }
            // A child's end has no file descriptor that std lets us wait for: look some times a second.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn start_error(&self, source: io::Error) -> LabError {
        LabError::Start { what: self.what.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}
