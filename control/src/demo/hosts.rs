//! The demo's two hosts, the wire between them, and which core does what.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};

use super::DemoError;
use crate::lab::Namespace;

/// Where the runs' sockets and configs are, each in a directory of its own. Fixed, so that a run cleans up after one
/// that was killed; and its own, because a program that was just being started at the kill goes on for some seconds
/// looking for the socket that it was told, and must not find the next run's.
const DIRECTORY: &str = "/run/peregrine-demo";

/// A lock that is still taken after this belongs to a demo that runs.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The network of the demo.
pub(super) const VNI: u32 = 42;
/// The far host's VTEP, with its device and link-layer address.
pub(super) const FAR: (&str, &str, &str) = ("192.0.2.2", "far0", "02:00:00:00:0f:02");
/// This host's VTEP, with its device and link-layer address.
pub(super) const NEAR: (&str, &str, &str) = ("192.0.2.1", "near0", "02:00:00:00:0f:01");
/// The overlay address of the far host's kernel: it pings.
pub(super) const FAR_OVERLAY: (&str, &str) = ("10.42.0.2", "02:00:00:00:42:02");
/// The overlay address that the generator uses.
pub(super) const GENERATOR: (&str, &str) = ("10.42.0.9", "02:00:00:00:42:09");
/// The tenant that answers.
pub(super) const ECHO: (&str, &str) = ("10.42.0.1", "02:00:00:00:42:01");
/// The tenant that counts.
pub(super) const SINK: (&str, &str) = ("10.42.0.3", "02:00:00:00:42:03");

/// Which CPU does what: two, however many there are, so that both halves have the same.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Cores {
    /// The generator, and with it the wire: over veth the sender's core does the kernel's work of both ends. Memif
    /// tenants share it.
    pub(super) generator: usize,
    /// Peregrine's worker; in the kernel's half the program with the socket.
    pub(super) worker: usize,
}

impl Cores {
    /// The first cores that we may use.
    pub(super) fn choose() -> Result<Cores, DemoError> {
        let set = sched_getaffinity(None)
            .map_err(|error| DemoError::Here(format!("cannot read the CPU affinity: {error}")))?;
        let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect();
        match usable[..] {
            [generator, worker, ..] => Ok(Cores { generator, worker }),
            _ => Err(DemoError::Here("it needs two cores: one for the traffic, one for the worker".into())),
        }
    }
}

/// The namespaces that a run makes, the kernel's tenant included.
const NAMESPACES: [&str; 3] = ["peregrine-demo-far", "peregrine-demo-near", TENANT];
/// The host of the kernel's tenant.
pub(super) const TENANT: &str = "peregrine-demo-tenant";

/// What of a run is still there after it; empty when all is well.
pub(super) fn left_behind() -> Vec<&'static str> {
    NAMESPACES.into_iter().filter(|name| Path::new("/run/netns").join(name).exists()).collect()
}

/// Both hosts. Dropped, they are gone.
pub(super) struct Hosts {
    pub(super) far: Namespace,
    pub(super) near: Namespace,
    pub(super) directory: PathBuf,
    /// Held while the demo runs; the kernel lets go of it even if we are killed.
    _lock: File,
}

impl Hosts {
    /// Makes them, in place of what a killed run left.
    pub(super) fn create() -> Result<Hosts, DemoError> {
        let lock = lock()?;
        let directory = Path::new(DIRECTORY).join(std::process::id().to_string());
        let _absent = std::fs::remove_dir_all(DIRECTORY);
        std::fs::create_dir_all(&directory)
            .map_err(|error| DemoError::Here(format!("cannot make {DIRECTORY}: {error}")))?;
        let [far, near, tenant] = NAMESPACES.map(Namespace::create);
        let (far, near) = (far?, near?);
        drop(tenant?); // made anew when its turn comes: a killed run may have left it
        far.wire((FAR.1, FAR.2), &near, (NEAR.1, NEAR.2), 1500)?;
        far.ip(&format!("addr add {}/24 dev {}", FAR.0, FAR.1))?;
        near.ip(&format!("addr add {}/24 dev {}", NEAR.0, NEAR.1))?;
        far.ip(&format!(
            "link add vx address {} mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789",
            FAR_OVERLAY.1, FAR.0, NEAR.0
        ))?;
        far.ip(&format!("addr add {}/24 dev vx", FAR_OVERLAY.0))?;
        far.ip("link set vx up")?;
        Ok(Hosts { far, near, directory, _lock: lock })
    }

    /// A file of this run.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _left_for_the_next_run = std::fs::remove_dir_all(DIRECTORY);
    }
}

/// One demo at a time: two would fight for the namespaces' names.
fn lock() -> Result<File, DemoError> {
    let path = Path::new("/run/peregrine-demo.lock");
    let file = File::create(path)
        .map_err(|error| DemoError::Here(format!("cannot make {}: {error}", path.display())))?;
    // A demo that was killed while it started a program leaves the lock to that program until its `exec`.
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(DemoError::Here("another demo is running: wait until it is done".into()))
        }
        Err(TryLockError::Error(error)) => {
            Err(DemoError::Here(format!("cannot lock {}: {error}", path.display())))
        }
    }
}
