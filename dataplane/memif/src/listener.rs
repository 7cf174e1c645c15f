//! The server's listening socket. One socket serves many interface ids; each connection it accepts is one [`Handshake`].

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use crate::addr::SocketAddr;
use crate::server::Handshake;
use crate::sys;

/// Connections that may wait to be accepted: a host's tenants can all start at once.
const BACKLOG: i32 = 1024;

/// What every handshake on a socket must keep to, whichever interface it is for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time from accept to CONNECTED.
    pub handshake_timeout: Duration,
    /// Time that sealing a client's memory may take, of that. It takes microseconds, unless the client keeps its file locked; the rest
    /// is for a busy machine.
    pub seal_timeout: Duration,
    /// How long the step that finds CONNECT waits for that, of that: a seal takes microseconds. With zero it does not wait, and the
    /// caller, who has many clients at once, waits for all of them together ([`sealer::wait`](crate::sealer::wait)).
    pub seal_patience: Duration,
    /// Most regions of one client. VPP with zero-copy brings several, all others bring one or two.
    pub regions_max: u16,
    /// Most rings of one client in each direction; advertised in HELLO.
    pub rings_max: u16,
}

impl Default for Limits {
    /// 5 s, of them 200 ms for sealing (1 ms in one step), 16 regions, 8 rings each way.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            seal_timeout: Duration::from_millis(200),
            seal_patience: Duration::from_millis(1),
            regions_max: 16,
            rings_max: 8,
        }
    }
}

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The name in HELLO, up to 31 bytes.
    pub name: String,
    /// Permission bits of the socket file; set before anyone can connect. `None`: as the umask leaves them.
    pub mode: Option<u32>,
    /// Owner (uid, gid) of the socket file; set before anyone can connect. `None`: this process's.
    pub owner: Option<(u32, u32)>,
    /// Limits of every handshake.
    pub limits: Limits,
}

impl Default for ListenerConfig {
    /// Name `peregrine`, mode 0660, own uid and gid, default limits.
    fn default() -> Self {
        Self { name: "peregrine".to_owned(), mode: Some(0o660), owner: None, limits: Limits::default() }
    }
}

/// A listening memif socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    config: ListenerConfig,
    _file: Option<SocketFile>,
}

/// The socket file that we made: removed on drop, but only by the process that made it, and only if it is still that file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    pid: u32,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.pid == process::id() && identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing can be done about a failure; the next bind finds a stale file and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Listener {
    /// Listens at `addr`. A socket file that a dead process has left is removed first.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if a living process listens there, or the path is something else than a socket; those of the
    /// system calls otherwise.
    pub fn bind(addr: &SocketAddr, config: ListenerConfig) -> io::Result<Self> {
        let raw = addr.to_raw()?;
        let socket = sys::socket()?;
        match sys::bind(socket.as_fd(), &raw) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(addr)?;
                sys::bind(socket.as_fd(), &raw)?;
            }
            result => result?,
        }
        let file = addr.path().map(claim).transpose()?;
        if let Some(path) = addr.path() {
            hand_over(path, &config)?;
        }
        sys::listen(socket.as_fd(), BACKLOG)?;
        Ok(Self { socket, config, _file: file })
    }

    /// Another [`Limits::rings_max`], for the clients that are accepted from now on.
    pub fn set_rings_max(&mut self, rings_max: u16) {
        self.config.limits.rings_max = rings_max;
    }

    /// The next client, if one waits; HELLO goes out at once. Never blocks. With an edge-triggered event loop call it until `None`.
    ///
    /// # Errors
    /// Those of accept4(2), such as too many open files: the client goes on waiting.
    pub fn accept(&self) -> io::Result<Option<Handshake>> {
        let Some(socket) = sys::accept(self.socket.as_fd())? else { return Ok(None) };
        Ok(Some(Handshake::new(socket, self.config.name.clone(), self.config.limits)))
    }
}

/// Gives the socket file its mode and owner. Who may write to its folder can put something else in its place at any moment: so it is the
/// file that is there when it is opened, and only if that is a socket. A link is not followed.
fn hand_over(path: &Path, config: &ListenerConfig) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{}: it was replaced", path.display())));
    }
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Some(mode) = config.mode {
        fs::set_permissions(&opened, fs::Permissions::from_mode(mode))?;
    }
    if let Some((uid, gid)) = config.owner {
        chown(&opened, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn claim(path: &Path) -> io::Result<SocketFile> {
    Ok(SocketFile { path: path.to_owned(), identity: identity(path)?, pid: process::id() })
}

/// Removes a socket file that nobody listens on.
fn remove_stale(addr: &SocketAddr) -> io::Result<()> {
    let in_use = |why: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("{addr}: {why}"));
    let Some(path) = addr.path() else { return Err(in_use("another process listens there")) };
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use("the file exists and is no socket"));
    }
    let probe = sys::socket()?;
    match sys::connect(probe.as_fd(), &addr.to_raw()?) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(in_use("another process listens there")),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
