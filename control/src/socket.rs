//! Unix socket files: made with their directory and mode, replaced when their daemon is dead, removed when ours
//! ends. Called by [`api`](crate::api) and [`tenants`](crate::tenants).

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;

/// Mode of a socket directory that we make: anyone may reach a socket whose own mode lets them.
const DIRECTORY_MODE: u32 = 0o755;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket file that is ours; dropping it removes the file, unless somebody has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Takes responsibility for the file that is at `path` now.
    pub fn adopt(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), identity: identity(path) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// What stands at a socket's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket file of a process that is gone.
    Stale,
    /// A socket that somebody listens on.
    Alive,
    /// Something that is not a socket.
    NotASocket,
}

/// Looks at `path`; connects to a socket to see whether anybody is there.
pub fn occupant(path: &Path) -> io::Result<Occupant> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(e) => return Err(e),
        Ok(found) if !found.file_type().is_socket() => return Ok(Occupant::NotASocket),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Ok(Occupant::Alive),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(Occupant::Stale),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Occupant::Nobody),
        // A listener of another type (EPROTOTYPE), or one whose queue is full: somebody is there.
        Err(_) => Ok(Occupant::Alive),
    }
}

/// Makes the directory of `path` if it is missing. Only the last step: a missing `/run` is a mistake.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) else { return Ok(()) };
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        // The umask may have taken bits away.
        Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => Err(e),
    }
    .map_err(|source| Error::Directory { path: directory.to_owned(), source })
}

/// Makes room for a socket at `path`: the directory is there, and no dead daemon's file is in the way.
pub fn prepare(path: &Path) -> Result<(), Error> {
    make_directory(path)?;
    let failed = |source| Error::Socket { path: path.to_owned(), source };
    match occupant(path).map_err(failed)? {
        Occupant::Nobody => Ok(()),
        Occupant::Stale => std::fs::remove_file(path).map_err(failed),
        Occupant::Alive => Err(Error::SocketTaken { path: path.to_owned() }),
        Occupant::NotASocket => Err(Error::NotASocket { path: path.to_owned() }),
    }
}

/// Makes a listener with exactly `mode`, of this group or of ours. Both are set before it listens: nobody can connect with others.
pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<(UnixListener, SocketFile), Error> {
    let _lock = lock_directory(path);
    prepare(path)?;
    let failed = |source| Error::Socket { path: path.to_owned(), source };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.map_err(|e| failed(e.into()))?;
    net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
    let file = SocketFile::adopt(path);
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group).map_err(failed)?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    net::listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
    Ok((UnixListener::from(socket), file))
}

/// Two daemons that start at once must not both find the file stale and the second remove the first's new one. A
/// lock that cannot be had is no reason not to start: the uplink admits only one of them anyway.
fn lock_directory(path: &Path) -> Option<File> {
    make_directory(path).ok()?;
    let directory = File::open(path.parent()?).ok()?;
    directory.try_lock().ok()?;
    Some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("x.sock");
        let (listener, file) = bind(&path, 0o660, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
        assert_eq!(occupant(&path).unwrap(), Occupant::Alive);
        assert!(matches!(bind(&path, 0o660, None), Err(Error::SocketTaken { .. })));
        drop((listener, file));
        assert_eq!(occupant(&path).unwrap(), Occupant::Nobody);
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(occupant(&path).unwrap(), Occupant::Stale);
        let _bound = bind(&path, 0o600, None).unwrap();
        assert_eq!(occupant(&path).unwrap(), Occupant::Alive);
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(bind(&path, 0o600, None), Err(Error::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_file_that_somebody_else_put_there_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let (_listener, file) = bind(&path, 0o600, None).unwrap();
        std::fs::rename(&path, dir.path().join("aside")).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_whose_parent_is_missing_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&dir.path().join("a/b/x.sock"), 0o600, None).unwrap_err();
        assert!(matches!(&error, Error::Directory { path, .. } if path.ends_with("a/b")), "{error}");
    }
}
