//! What can go wrong at start and in the command line. Each is one line that says what, where and what to do; the
//! exit status tells bad arguments or config (2) from a run that failed (1).

use std::fmt;
use std::io;
use std::path::PathBuf;

use peregrine_config::ConfigErrors;
use peregrine_dataplane::engine::StartError;
use peregrine_dataplane::types::CoreId;

use crate::demo::DemoError;

/// Why a command ended without doing what it was asked to.
#[derive(Debug)]
pub enum Error {
    /// The config has mistakes.
    Config(ConfigErrors),
    /// The process lacks rights.
    Capabilities {
        /// The ones that are missing.
        missing: Vec<&'static str>,
    },
    /// A worker's core is not ours to use.
    Core {
        /// The worker, from 0.
        worker: usize,
        /// Its core.
        core: CoreId,
        /// The cores that this process may use, such as `0-3,8`.
        allowed: String,
    },
    /// A daemon already answers on the control socket.
    AlreadyRunning {
        /// The control socket.
        path: PathBuf,
    },
    /// Somebody listens on a socket that we want.
    SocketTaken {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket is where a socket should be.
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A socket could not be made.
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket's directory could not be made.
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state file cannot be used.
    State {
        /// Which.
        path: PathBuf,
        /// Where in it, and why.
        why: String,
        /// What to do.
        way_out: String,
    },
    /// A memif socket could not be opened, or cannot be as the plan has it.
    Memif {
        /// Which.
        socket: String,
        /// Why.
        reason: String,
    },
    /// A container cannot have its interface.
    Container {
        /// The interface's name.
        interface: String,
        /// Where it is.
        namespace: String,
        /// Why.
        reason: String,
    },
    /// The engine did not start.
    Engine(StartError),
    /// A worker ended by itself.
    WorkerDied {
        /// The CPU that it ran on.
        core: CoreId,
    },
    /// A part of the kernel's interface that the control thread needs failed.
    System {
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No daemon answers.
    NoDaemon {
        /// The socket that was tried.
        path: PathBuf,
    },
    /// The daemon's socket exists and we may not use it.
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon is there, but its answer is not what it should be.
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The daemon found mistakes in what it was given.
    Mistakes {
        /// One line each.
        lines: Vec<String>,
    },
    /// The daemon refused a change, or found mistakes in it.
    Refused {
        /// One line each.
        lines: Vec<String>,
        /// They are mistakes in what was asked for, whatever is there.
        is_invalid: bool,
    },
    /// A file that was named is not what it should be.
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `peregrine doctor` found what will not work.
    Unfit,
    /// The demo ended without its figures.
    Demo(DemoError),
    /// Standard output could not be written.
    Output(io::Error),
}

impl Error {
    /// The exit status that goes with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_)
            | Error::Mistakes { .. }
            | Error::Refused { is_invalid: true, .. }
            | Error::File { .. } => 2,
            _ => 1,
        }
    }
}

impl From<DemoError> for Error {
    fn from(error: DemoError) -> Error {
        Error::Demo(error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Socket { source, .. } | Error::Directory { source, .. } | Error::System { source, .. } => {
                Some(source)
            }
            Error::Engine(source) => Some(source),
            Error::Output(source) => Some(source),
            Error::Config(source) => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(errors) => errors.fmt(f),
            Error::Capabilities { missing } => {
                write!(
                    f,
                    "not enough rights ({} missing): run it as root, such as with sudo",
                    missing.join(", ")
                )
            }
            Error::Core { worker, core, allowed } => write!(
                f,
                "workers[{worker}].core = {}: this process may use cores {allowed}: choose one of them, or widen its affinity (taskset, cpuset)",
                core.0
            ),
            Error::AlreadyRunning { path } => write!(
                f,
                "a daemon already answers at {}: stop it first, or give this one its own control_socket",
                path.display()
            ),
            Error::SocketTaken { path } => write!(
                f,
                "another process listens on {}: stop it, or choose another path in the config",
                path.display()
            ),
            Error::NotASocket { path } => {
                write!(
                    f,
                    "{} exists and is not a socket: move it away, or choose another path",
                    path.display()
                )
            }
            Error::Socket { path, source } => {
                write!(f, "cannot make the socket {}: {source}", path.display())
            }
            Error::Directory { path, source } => {
                write!(f, "cannot make the directory {} for a socket: {source}", path.display())
            }
            Error::State { path, why, way_out } => {
                write!(f, "the state file {}: {why}: {way_out}", path.display())
            }
            Error::Memif { socket, reason } => write!(f, "the memif socket {socket}: {reason}"),
            Error::Container { interface, namespace, reason } => {
                write!(f, "interface {interface} in {namespace}: {reason}")
            }
            Error::Engine(source) => source.fmt(f),
            Error::WorkerDied { core } => write!(
                f,
                "the worker on core {} ended by itself, which is a bug: start the daemon again, and report what it printed",
                core.0
            ),
            Error::System { doing, source } => write!(f, "cannot {doing}: {source}"),
            Error::NoDaemon { path } => write!(
                f,
                "no daemon answers at {}: start it with `peregrine run -c FILE`, or give --socket",
                path.display()
            ),
            Error::NotAllowed { path } => {
                write!(f, "no permission to use {}: run this as root, such as with sudo", path.display())
            }
            Error::Answer { path, reason } => write!(f, "the daemon at {}: {reason}", path.display()),
            Error::Mistakes { lines } | Error::Refused { lines, .. } => f.write_str(&lines.join("\n")),
            Error::File { path, reason } => write!(f, "{}: {reason}", path.display()),
            Error::Unfit => f.write_str("some checks failed"),
            Error::Demo(source) => source.fmt(f),
            Error::Output(source) => write!(f, "cannot write to standard output: {source}"),
        }
    }
}
