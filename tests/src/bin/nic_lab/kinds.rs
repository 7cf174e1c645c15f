//! The kinds of NIC, and of guest: what QEMU is told, and what is known of their drivers.

/// A kind of NIC, or of guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Intel 82576: native XDP, zero-copy since Linux 6.14, several queues.
    Igb,
    /// Virtio: native XDP, zero-copy since Linux 6.11; one queue here, QEMU's hub has no more.
    Virtio,
    /// VMware: native XDP since Linux 6.6, no zero-copy; several queues.
    Vmxnet3,
    /// Intel 82574: no XDP of its own.
    E1000e,
    /// Not about NICs, which are igb's, but about the machine: processors of two threads, two NUMA nodes.
    Machine,
}

/// What the machine's kernel is told about core 2.
pub const ISOLATED: &str = "isolcpus=managed_irq,domain,2 nohz_full=2 rcu_nocbs=2";

impl Kind {
    /// In the order in which they are begun.
    pub const ALL: [Kind; 5] = [Kind::Igb, Kind::Virtio, Kind::Vmxnet3, Kind::E1000e, Kind::Machine];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Igb => "igb",
            Kind::Virtio => "virtio-net",
            Kind::Vmxnet3 => "vmxnet3",
            Kind::E1000e => "e1000e",
            Kind::Machine => "machine",
        }
    }

    /// QEMU's processors and memory.
    pub fn machine(self) -> &'static [&'static str] {
        if self != Kind::Machine {
            return &["-smp", "2", "-m", "1G"];
        }
        &[
            "-smp",
            "4,sockets=2,cores=1,threads=2",
            "-m",
            "1G",
            "-object",
            "memory-backend-ram,id=memory0,size=512M",
            "-object",
            "memory-backend-ram,id=memory1,size=512M",
            "-numa",
            "node,nodeid=0,cpus=0-1,memdev=memory0",
            "-numa",
            "node,nodeid=1,cpus=2-3,memdev=memory1",
            "-device",
            "pxb-pcie,id=node1,bus_nr=64,numa_node=1,bus=pcie.0",
        ]
    }

    /// The bus that the near NIC's port is on.
    pub fn near_bus(self) -> &'static str {
        if self == Kind::Machine { "node1" } else { "pcie.0" }
    }

    /// What else its kernel is told.
    pub fn boot_words(self) -> &'static str {
        if self == Kind::Machine { ISOLATED } else { "" }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// QEMU's device. Virtio's gets its memory through the kernel's DMA functions (`iommu_platform`): without them it has no zero-copy.
    pub fn device(self) -> &'static str {
        match self {
            Kind::Igb | Kind::Machine => "igb",
            Kind::Virtio => "virtio-net-pci,disable-legacy=on,iommu_platform=on",
            Kind::Vmxnet3 => "vmxnet3",
            Kind::E1000e => "e1000e",
        }
    }

    /// The kernel's name of its driver, as `status` shows it.
    pub fn driver(self) -> &'static str {
        match self {
            Kind::Virtio => "virtio_net",
            Kind::Machine => "igb",
            other => other.name(),
        }
    }

    /// The best mode that its driver has, as the config asks for it.
    pub fn mode(self) -> &'static str {
        match self {
            Kind::Igb | Kind::Virtio | Kind::Machine => "require-zero-copy",
            Kind::Vmxnet3 => "copy",
            Kind::E1000e => "generic",
        }
    }

    /// And as `status` says that it was got.
    pub fn actual_mode(self) -> &'static str {
        self.mode().trim_start_matches("require-")
    }

    /// Bytes of a chunk: with zero-copy igb has no room for packets of 1500 bytes in one of 2048.
    pub fn chunk_size(self) -> u32 {
        if matches!(self, Kind::Igb | Kind::Machine) { 4096 } else { 2048 }
    }

    /// The largest MTU whose packets fit a chunk of 2048 bytes in the best mode.
    pub fn small_mtu(self) -> u32 {
        match self {
            Kind::Igb | Kind::Machine => 998,
            Kind::Virtio => 1766,
            Kind::Vmxnet3 | Kind::E1000e => 1774,
        }
    }

    /// The largest MTU with which its driver takes an XDP program, if it has any.
    pub fn program_mtu(self) -> Option<u32> {
        match self {
            Kind::Igb | Kind::Machine => Some(3046),
            Kind::Virtio => Some(3506),
            Kind::Vmxnet3 => Some(3494),
            Kind::E1000e => None,
        }
    }

    /// Whether it has several queues here.
    pub fn is_multi_queue(self) -> bool {
        matches!(self, Kind::Igb | Kind::Vmxnet3)
    }

    /// Whether the card takes VLAN tags off, and can be told not to.
    pub fn strips_vlans(self) -> bool {
        !matches!(self, Kind::Virtio | Kind::Machine)
    }
}
