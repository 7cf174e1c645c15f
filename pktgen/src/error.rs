//! What can go wrong: each error says what, where and what to do, in one line.

use std::fmt;
use std::io;

use peregrine_dataplane::xsk::XskError;
use peregrine_memif::{HandshakeError, SocketAddr};

/// Why a command could not run, or ended early.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The arguments contradict each other or what the machine has. Exit status 2; all others 1.
    Arguments(String),
    /// The AF_XDP socket.
    Xsk(XskError),
    /// There is no memif server.
    NobodyListens {
        /// Where it was looked for.
        socket: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No connection to the memif server.
    Memif {
        /// Where it was looked for.
        socket: SocketAddr,
        /// Why not.
        source: HandshakeError,
    },
    /// The peer went away in the middle of a run.
    PeerGone {
        /// Who, and what it said.
        what: String,
    },
    /// The run went well, and was not what was wanted of it (`--max-loss`, `--min-received`).
    Unmet(String),
    /// A capture file cannot be sent.
    Replay {
        /// Which, and why.
        what: String,
    },
    /// A system call failed.
    System {
        /// What was tried.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: a system call that failed while doing `what`.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |source| Error::System { what, source: source.into() }
    }

    /// The process' exit status for it.
    pub fn exit_status(&self) -> u8 {
        if matches!(self, Error::Arguments(_)) { 2 } else { 1 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Arguments(what) | Error::Unmet(what) | Error::Replay { what } => f.write_str(what),
            Error::Xsk(source) => source.fmt(f),
            Error::NobodyListens { socket, source } => write!(
                f,
                "no memif connection to {socket}: nothing listens there ({source}): start its server first (sink and echo wait for \
                 it with --reconnect)"
            ),
            Error::Memif { socket, source } => write!(
                f,
                "no memif connection to {socket}: {source}: check that its server runs and has this --id and --secret"
            ),
            Error::PeerGone { what } => write!(f, "{what}: the report holds what was measured until then"),
            Error::System { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Xsk(source) => Some(source),
            Error::Memif { source, .. } => Some(source),
            Error::System { source, .. } | Error::NobodyListens { source, .. } => Some(source),
            Error::Arguments(_) | Error::Unmet(_) | Error::PeerGone { .. } | Error::Replay { .. } => None,
        }
    }
}

impl From<XskError> for Error {
    fn from(source: XskError) -> Error {
        Error::Xsk(source)
    }
}
