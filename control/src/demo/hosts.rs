//! The two hosts of `peregrine demo` and of `peregrine-perf kernel`, the wire between them, the overlay of each kind on
//! the near one, and which core does what.

use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity};

use super::place::Place;
use super::{DemoError, containers};
use crate::lab::{LabError, Namespace, run};

/// The network of the demo.
pub const VNI: u32 = 42;
/// The far host's VTEP, with its device and link-layer address.
pub const FAR: (&str, &str, &str) = ("192.0.2.2", "far0", "02:00:00:00:0f:02");
/// This host's VTEP, with its device and link-layer address.
pub const NEAR: (&str, &str, &str) = ("192.0.2.1", "near0", "02:00:00:00:0f:01");
/// The overlay address of the far host's kernel: it pings.
pub const FAR_OVERLAY: (&str, &str) = ("10.42.0.2", "02:00:00:00:42:02");
/// The overlay address that the generator uses.
pub const GENERATOR: (&str, &str) = ("10.42.0.9", "02:00:00:00:42:09");
/// The tenant that answers.
pub const ECHO: (&str, &str) = ("10.42.0.1", "02:00:00:00:42:01");
/// The tenant that counts.
pub const SINK: (&str, &str) = ("10.42.0.3", "02:00:00:00:42:03");

/// Which CPU does what: two, however many there are, so that both halves have the same.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Cores {
    /// The generator, and with it the wire: over veth the sender's core does the kernel's work of both ends. Memif
    /// tenants share it.
    pub generator: usize,
    /// Peregrine's worker; in the kernel's half the program with the socket.
    pub worker: usize,
}

impl Cores {
    /// The first cores that we may use.
    ///
    /// # Errors
    /// If there is only one.
    pub fn choose() -> Result<Cores, DemoError> {
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
pub const TENANT: &str = "peregrine-demo-tenant";

/// What of a run, of whichever scenario, is still there after it; empty when all is well.
pub fn left_behind() -> Vec<&'static str> {
    let all = NAMESPACES.into_iter().chain(containers::namespaces());
    all.filter(|name| Path::new("/run/netns").join(name).exists()).collect()
}

/// Both hosts. Dropped, they are gone.
#[derive(Debug)]
pub struct Hosts {
    /// Where packets come from.
    pub far: Namespace,
    /// Where the tenants are.
    pub near: Namespace,
    place: Place,
}

impl Hosts {
    /// Makes them, in place of what a killed run left.
    ///
    /// # Errors
    /// Another run that still goes on; what `ip` refuses.
    pub fn create() -> Result<Hosts, DemoError> {
        let place = Place::take()?;
        let [far, near, _of_the_second_half] = NAMESPACES;
        let (far, near) = (Namespace::create(far)?, Namespace::create(near)?);
        far.wire((FAR.1, FAR.2), &near, (NEAR.1, NEAR.2), 1500)?;
        far.ip(&format!("addr add {}/24 dev {}", FAR.0, FAR.1))?;
        near.ip(&format!("addr add {}/24 dev {}", NEAR.0, NEAR.1))?;
        far.ip(&format!(
            "link add vx address {} mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789",
            FAR_OVERLAY.1, FAR.0, NEAR.0
        ))?;
        far.ip(&format!("addr add {}/24 dev vx", FAR_OVERLAY.0))?;
        far.ip("link set vx up")?;
        Ok(Hosts { far, near, place })
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }

    /// The same, with something in it.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf, DemoError> {
        self.place.write(name, content)
    }

    /// The config of Peregrine on the near host: one tenant that answers (memif id 0), one that counts (id 1).
    pub fn peregrine_config(&self, cores: Cores) -> String {
        let memif = self.file("memif.sock");
        let endpoint = |name: &str, id: u32, (ip, mac): (&str, &str)| {
            format!(
                "\n[[endpoints]]\nname = \"{name}\"\nnetwork = \"demo\"\nmac = \"{mac}\"\naddresses = [\"{ip}\"]\n\
                 memif = {{ socket = \"{}\", id = {id} }}\n",
                memif.display()
            )
        };
        format!(
            "control_socket = \"{}\"\n\n[[workers]]\ncore = {}\nnice = -20\n\n\
             [uplink]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\nring_size = 8192\n\n\
             [[networks]]\nname = \"demo\"\nvni = {VNI}\nmtu = 1450\nremotes = [\"{}\"]\n{}{}",
            self.file("control.sock").display(),
            cores.worker,
            NEAR.1,
            NEAR.0,
            FAR.0,
            endpoint("echo", 0, ECHO),
            endpoint("sink", 1, SINK),
        )
    }

    /// The kernel's overlay on the near host: vxlan, bridge and veth, and behind them the namespace of its tenant.
    ///
    /// # Errors
    /// Those of `ip`.
    pub fn kernel_overlay(&self) -> Result<Namespace, LabError> {
        let tenant = Namespace::create(TENANT)?;
        let near = &self.near;
        near.wire(("tap0", "02:00:00:00:0f:03"), &tenant, ("eth0", ECHO.1), 1450)?;
        near.ip(&format!(
            "link add vx mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789",
            NEAR.0, FAR.0
        ))?;
        near.ip("link add br0 mtu 1450 type bridge")?;
        for device in ["vx", "tap0"] {
            near.ip(&format!("link set {device} master br0 up"))?;
        }
        near.ip("link set br0 up")?;
        tenant.ip(&format!("addr add {}/24 dev eth0", ECHO.0))?;
        // The generator answers no ARP.
        tenant.ip(&format!("neigh add {} lladdr {} dev eth0 nud permanent", GENERATOR.0, GENERATOR.1))?;
        Ok(tenant)
    }

    /// Receive Packet Steering: the near host's kernel takes what comes off the wire on this core, or where it came
    /// (`None`).
    ///
    /// # Errors
    /// A kernel that has none.
    pub fn steer_receiving(&self, core: Option<usize>) -> Result<(), LabError> {
        // A bitmap in hexadecimal, in words of 32 bits, the highest first.
        let words = core.map_or(1, |core| core / 32 + 1);
        let word = |at: usize| core.filter(|core| core / 32 == at).map_or(0, |core| 1u32 << (core % 32));
        let mask: Vec<String> = (0..words).rev().map(|at| format!("{:x}", word(at))).collect();
        let file = format!("/sys/class/net/{}/queues/rx-0/rps_cpus", NEAR.1);
        run(self.near.command("sh").args(["-c", &format!("echo {} > {file}", mask.join(","))])).map(drop)
    }
}
