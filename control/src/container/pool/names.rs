//! The names of namespaces, as `ip netns` keeps them, and marks of all that are ours: whatever ends the daemon, the next one finds them.
//!
//! A mark is a file in the pool's own directory, called as our end of the pair, which says the numbers of the namespace and of that end, and, once it is taken, what
//! for. It is there from when a part is made until it is gone, and open until it is taken, so that there is one write then; who has which name is seen from the
//! names. The directory is locked as long as its owner lives, so two daemons never take each other's away.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use peregrine_dataplane::plan::NamespaceRef;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::container::ContainerError;
use crate::container::maker::is_of_the_pool;
use crate::container::namespace::{NAMED, NSFS_MAGIC, Namespace};
use crate::container::pair::{Pair, refused};
use crate::container::pool::Taken;

/// What a name may have in bytes, as a file's.
const NAME_MAX: usize = 255;

/// The names, and this pool's marks.
#[derive(Debug)]
pub(super) struct Names {
    marks: PathBuf,
    _locked: OwnedFd,
    /// Who gives a name or takes one away: to look whose it is and to do it are two things.
    changing: Mutex<()>,
}

/// Where a namespace of this name is.
fn place(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Whether a namespace can be called that.
pub(super) fn check(name: &str) -> Result<(), ContainerError> {
    let is_good = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_good) && !matches!(name, "." | "..") {
        Ok(())
    } else {
        Err(ContainerError::BadNamespaceName { name: name.into() })
    }
}

impl Names {
    /// Locks the directory of marks, which is made if need be, and sees to it that names can be given.
    pub(super) fn open(marks: &Path) -> Result<Names, ContainerError> {
        let at = |error: io::Error| refused(error, || format!("opening {}", marks.display()));
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(marks).map_err(at)?;
        let kept = std::fs::symlink_metadata(marks).map_err(at)?;
        if !kept.is_dir() || kept.uid() != rustix::process::geteuid().as_raw() || kept.mode() & 0o022 != 0 {
            return Err(at(io::Error::other("it must be a directory of ours that nobody else may write to")));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(marks, flags, Mode::empty()).map_err(|error| at(error.into()))?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                return Err(ContainerError::PoolTaken { directory: marks.to_path_buf() });
            }
            locked => locked.map_err(|error| at(error.into()))?,
        }
        prepare().map_err(|error| refused(error, || format!("preparing {NAMED} for names of namespaces")))?;
        Ok(Names { marks: marks.to_path_buf(), _locked: directory, changing: Mutex::new(()) })
    }

    /// Whether something has this name.
    pub(super) fn is_taken(name: &str) -> bool {
        rustix::fs::lstat(place(name)).is_ok()
    }

    /// Marks a part as ours.
    pub(super) fn mark(&self, inode: u64, pair: &Pair) -> Result<File, ContainerError> {
        self.unmark(pair); // one of somebody dead who was called so
        write_new(&self.marks.join(&pair.port), &format!("{inode} {} ", pair.ifindex))
    }

    /// It is for something else now: the mark is replaced as a whole.
    pub(super) fn mark_anew(&self, Taken { inode, pair, mark, .. }: &Taken) -> Result<(), ContainerError> {
        let (place, new) = (self.marks.join(&pair.port), self.marks.join("new"));
        let _or_not_there = rustix::fs::unlink(&new);
        write_new(&new, &format!("{inode} {} {mark}", pair.ifindex))?;
        let what = || format!("writing the mark {}", place.display());
        rustix::fs::rename(&new, &place).map_err(|error| refused(error.into(), what))
    }

    /// It is gone.
    pub(super) fn unmark(&self, pair: &Pair) {
        let _or_not_there = rustix::fs::unlink(self.marks.join(&pair.port));
    }

    /// What is marked: the number of a namespace, a pair, and what for. What is no mark is left alone.
    pub(super) fn marked(&self) -> Result<Vec<(u64, Pair, String)>, ContainerError> {
        let at = |error: io::Error| refused(error, || format!("reading {}", self.marks.display()));
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.marks).map_err(at)? {
            let entry = entry.map_err(at)?;
            if let (Ok(text), Ok(port)) =
                (std::fs::read_to_string(entry.path()), entry.file_name().into_string())
            {
                all.extend(parse(&text, port));
            }
        }
        Ok(all)
    }

    /// Gives a namespace its name: a file that it is bound to, as `ip netns` does it.
    pub(super) fn give(&self, name: &str, namespace: &Namespace) -> Result<(), ContainerError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = place(name);
        let which = || format!("giving a namespace the name {name} ({})", path.display());
        match make(&path) {
            Err(Errno::EXIST) => return Err(ContainerError::NamespaceTaken { name: name.into() }),
            made => made.map_err(|error| refused(error.into(), which))?,
        }
        let from = format!("/proc/self/fd/{}", namespace.raw_fd());
        rustix::mount::mount_bind(from, &path).map_err(|error| {
            let _left = rustix::fs::unlink(&path);
            refused(error.into(), which)
        })
    }

    /// Takes the name away, if it is still that of this namespace, which must be there: the numbers of others that are gone come again.
    pub(super) fn remove(&self, name: &str, inode: u64) -> Result<(), ContainerError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = place(name);
        let failed = |error: Errno| refused(error.into(), || format!("removing {}", path.display()));
        match self::inode(&path) {
            Ok(Some(there)) if there == inode => {
                rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                    .map_err(failed)?;
                rustix::fs::unlink(&path).map_err(failed)
            }
            _ => Ok(()), // somebody else's by now, or nobody's
        }
    }
}

fn write_new(path: &Path, text: &str) -> Result<File, ContainerError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file));
    written.map_err(|error| refused(error, || format!("writing the mark {}", path.display())))
}

/// The number of the namespace that is bound there; none if something else is.
fn inode(path: &Path) -> io::Result<Option<u64>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let is_namespace = rustix::fs::fstatfs(&file)?.f_type as u64 == NSFS_MAGIC;
    Ok(is_namespace.then_some(rustix::fs::fstat(&file)?.st_ino))
}

/// An empty file, where there is nothing.
fn make(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::RGRP | Mode::ROTH).map(drop)
}

/// All names that namespaces have, by their numbers.
pub(super) fn all() -> Result<BTreeMap<u64, String>, ContainerError> {
    let at = |error: io::Error| refused(error, || format!("reading {NAMED}"));
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(NAMED).map_err(at)? {
        let entry = entry.map_err(at)?;
        if let (Ok(Some(inode)), Ok(name)) = (inode(&entry.path()), entry.file_name().into_string()) {
            all.insert(inode, name);
        }
    }
    Ok(all)
}

fn parse(text: &str, port: String) -> Option<(u64, Pair, String)> {
    if !is_of_the_pool(&port) {
        return None;
    }
    let (inode, rest) = text.split_once(' ')?;
    let (ifindex, mark) = rest.split_once(' ')?;
    Some((inode.parse().ok()?, Pair { port, ifindex: ifindex.parse().ok()? }, mark.to_owned()))
}

/// What `ip netns` does first: names that are given here are seen in the other mount namespaces that share this one's.
fn prepare() -> io::Result<()> {
    std::fs::create_dir_all(NAMED)?;
    let share = || {
        let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        rustix::mount::mount_change(NAMED, flags)
    };
    match share() {
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NAMED, NAMED)?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

/// As messages say it.
pub(super) fn which(name: &str) -> NamespaceRef {
    NamespaceRef::Name(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_it_is_and_what_is_none_says_nothing() {
        let pair = Pair { port: "pp1-2".into(), ifindex: 17 };
        for mark in ["", "peregrine /run/s 0123"] {
            let read = parse(&format!("4026532 17 {mark}"), "pp1-2".into());
            assert_eq!(read, Some((4_026_532, pair.clone(), mark.to_owned())));
        }
        for text in ["", "1", "1 ", " 1", "1 2", "x 2 ", "1 -2 ", " 1 2 ", "/some/where"] {
            assert_eq!(parse(text, "pp1-2".into()), None, "{text}");
        }
        assert_eq!(parse("4026532 17 ", "eth0".into()), None);
    }

    #[test]
    fn a_name_is_one_file_of_its_directory() {
        for name in ["a", "cni-1234", "x.y_z", &"n".repeat(255)] {
            check(name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "/a", "a b", "a\n", "a\0", "ü", &"n".repeat(256)] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.starts_with("no network namespace can be called '"), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
