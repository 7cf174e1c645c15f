//! Network namespaces that others made: found by name, path or process, and entered by threads that live as long as one piece of work.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use peregrine_dataplane::plan::NamespaceRef;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::ContainerError;

/// The file system of namespaces (linux/magic.h).
pub(super) const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Where `ip netns` keeps those with names.
pub(super) const NAMED: &str = "/run/netns";

fn path_of(which: &NamespaceRef) -> Option<PathBuf> {
    match which {
        NamespaceRef::Name(name) => {
            let is_name = !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0']);
            is_name.then(|| Path::new(NAMED).join(name))
        }
        NamespaceRef::Path(path) => Some(path.clone()),
        NamespaceRef::Pid(pid) => Some(PathBuf::from(format!("/proc/{pid}/ns/net"))),
    }
}

pub(super) fn how_to_list(which: &NamespaceRef) -> &'static str {
    match which {
        NamespaceRef::Name(_) => "`ip netns list` lists those that there are",
        NamespaceRef::Path(_) => {
            "give the path of one, such as /run/netns/NAME or /proc/PID/ns/net (`lsns -t net` lists them)"
        }
        NamespaceRef::Pid(_) => "`lsns -t net` lists those that there are, with a process of each",
    }
}

/// A namespace that is open: it lives as long as this, even if all processes in it end and its name is removed.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    which: NamespaceRef,
}

impl Namespace {
    /// Opens it. Nothing but a namespace is opened: the path may be anybody's.
    ///
    /// # Errors
    /// [`ContainerError`]: there is none, or what is there is something else.
    pub fn open(which: &NamespaceRef) -> Result<Namespace, ContainerError> {
        let none = |error: Errno| match error {
            Errno::ACCESS | Errno::PERM => ContainerError::NotPermitted { what: format!("opening {which}") },
            _ => ContainerError::NoNamespace { namespace: which.clone(), source: error.into() },
        };
        let path = path_of(which).ok_or_else(|| none(Errno::NOENT))?;
        // Only looked at so far: to open some files does something, or waits.
        let place = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(none)?;
        let kind = rustix::fs::fstatfs(&place).map_err(none)?.f_type;
        if kind as u64 != NSFS_MAGIC {
            return Err(ContainerError::NotANamespace { namespace: which.clone() });
        }
        let same = format!("/proc/self/fd/{}", place.as_raw_fd());
        let fd = rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(none)?;
        Ok(Namespace { fd, which: which.clone() })
    }

    /// Which it is.
    pub fn which(&self) -> &NamespaceRef {
        &self.which
    }

    /// The number that its name's file has, too. Others get it when it is gone.
    pub(super) fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_ino)
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Does a piece of work in a thread that has moved into it. Sockets that are opened there stay there.
    ///
    /// # Errors
    /// [`ContainerError`] if the thread could not move. Then nothing was done.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, ContainerError> {
        let enter_and_work = || {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let done: Result<T, io::Error> = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("namespace".into());
            let thread = thread.spawn_scoped(scope, enter_and_work)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        done.map_err(|source| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INVAL) => ContainerError::NotANamespace { namespace: self.which.clone() }, // of another kind
            Some(Errno::PERM) => ContainerError::NotPermitted { what: format!("entering {}", self.which) },
            _ => ContainerError::Refused { what: format!("entering {}", self.which), source },
        })
    }
}
