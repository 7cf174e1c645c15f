//! What is known of drivers beforehand: which XDP they have since when, and what it asks of the interface. From the kernel's sources (each
//! row says where); what the kernel itself tells of a driver (`netdev.rs`) goes before it.

/// A driver's known limits. Figures are for pages of 4096 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// As ethtool names it.
    pub name: &'static str,
    /// Since when programs run in the driver; `None`: they do not.
    pub native: Option<Release>,
    /// Since when it has AF_XDP without copying; `None`: it has not.
    pub zero_copy: Option<Release>,
    /// The largest MTU with a program for packets in one fragment; `None`: what a page holds, or the chunk is less.
    pub mtu_max: Option<u32>,
    /// What LRO, or GRO by the card, does to programs.
    pub merging: Merging,
    /// What it asks of its channels.
    pub channels: Demand,
    /// What else is to be known, a half-sentence.
    pub note: &'static str,
}

/// A kernel's first two numbers.
pub type Release = (u32, u32);

/// What becomes of a program where the card merges packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merging {
    /// It sees packets that never were on the wire.
    Disturbs,
    /// The driver does not take it.
    Refuses,
    /// The driver switches it off by itself for a program; where that is not possible, it does not take it.
    Yields,
}

/// What a driver asks of its channels before it takes a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Demand {
    /// Nothing.
    None,
    /// At most half of them are used: the other half sends what programs send.
    Half,
}

/// The driver of this name, if something is known of it.
pub fn known(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

const PLAIN: Driver = Driver {
    name: "",
    native: None,
    zero_copy: None,
    mtu_max: None,
    merging: Merging::Disturbs,
    channels: Demand::None,
    note: "",
};

const DRIVERS: &[Driver] = &[
    // drivers/net/ethernet/mellanox/mlx5/core/en_main.c (mlx5e_xdp_allowed: no LRO), en/xdp.c (mlx5e_xdp_max_mtu: page - headroom 256 -
    // skb_shared_info 320 - Ethernet, tag and checksum 22), en/xsk/ (zero-copy; since 6.1 in the rings that other packets use, with queues as numbered here)
    Driver {
        name: "mlx5_core",
        native: Some((4, 9)),
        zero_copy: Some((6, 1)),
        mtu_max: Some(3498),
        merging: Merging::Refuses,
        note: "a chunk must not be larger than a page",
        ..PLAIN
    },
    // drivers/net/ethernet/intel/ice/ice_main.c (ice_max_xdp_frame_size: 3072, less 26 of headers), ice_xsk.c
    Driver { name: "ice", native: Some((5, 5)), zero_copy: Some((5, 5)), mtu_max: Some(3046), ..PLAIN },
    // drivers/net/ethernet/intel/i40e/i40e_main.c (i40e_xdp_setup: 3072, less 26), i40e_xsk.c
    Driver { name: "i40e", native: Some((4, 13)), zero_copy: Some((4, 20)), mtu_max: Some(3046), ..PLAIN },
    // drivers/net/ethernet/intel/ixgbe/ixgbe_main.c (ixgbe_xdp_setup: 3072, less 22; not with LRO or SR-IOV; 128 CPUs at most), ixgbe_xsk.c
    Driver {
        name: "ixgbe",
        native: Some((4, 12)),
        zero_copy: Some((4, 20)),
        mtu_max: Some(3050),
        merging: Merging::Refuses,
        note: "no XDP while virtual functions are on, or with more than 128 CPUs",
        ..PLAIN
    },
    // drivers/net/ethernet/intel/igb/igb_main.c (igb_xdp_setup: 3072, less 26), igb_xsk.c
    Driver { name: "igb", native: Some((5, 10)), zero_copy: Some((6, 14)), mtu_max: Some(3046), ..PLAIN },
    // drivers/net/ethernet/intel/igc/igc_xdp.c (igc_xdp_set_prog: ETH_DATA_LEN)
    Driver { name: "igc", native: Some((5, 13)), zero_copy: Some((5, 14)), mtu_max: Some(1500), ..PLAIN },
    // drivers/net/ethernet/amazon/ena/ena_xdp.c (ena_xdp_allowed: ENA_XDP_MAX_MTU, and queues for what is sent)
    Driver {
        name: "ena",
        native: Some((5, 6)),
        mtu_max: Some(3498),
        channels: Demand::Half,
        note: "zero-copy is in Amazon's own driver only",
        ..PLAIN
    },
    // drivers/net/virtio_net.c (virtnet_xdp_set: page - headroom and skb_shared_info 576 - Ethernet 14; without
    // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS no GRO-HW)
    Driver {
        name: "virtio_net",
        native: Some((4, 10)),
        zero_copy: Some((6, 13)),
        mtu_max: Some(3506),
        merging: Merging::Yields,
        note: "zero-copy only where the hypervisor gives it VIRTIO_F_ACCESS_PLATFORM",
        ..PLAIN
    },
    // drivers/net/veth.c (veth_xdp_set: the other end's MTU, and its tx queues)
    Driver {
        name: "veth",
        native: Some((4, 19)),
        mtu_max: Some(3506),
        note: "the other end may have no more tx queues than this one rx queues",
        ..PLAIN
    },
    // drivers/net/ethernet/intel/e1000e/netdev.c: no ndo_bpf
    Driver { name: "e1000e", ..PLAIN },
    // drivers/net/vmxnet3/vmxnet3_xdp.c (VMXNET3_XDP_MAX_MTU: page - headroom 256 - skb_shared_info 320 - headers 26; takes LRO off by itself)
    // What it forgets was seen in the NIC lab with Linux 7.2, with a program of nobody's that drops everything.
    Driver {
        name: "vmxnet3",
        native: Some((6, 6)),
        mtu_max: Some(3494),
        merging: Merging::Yields,
        note: "after the interface was down, or its MTU changed, it runs no program any more, though one is attached: start the daemon again then",
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_stands_there_once_and_has_no_zero_copy_before_it_has_programs() {
        for (at, driver) in DRIVERS.iter().enumerate() {
            assert!(DRIVERS.iter().skip(at + 1).all(|other| other.name != driver.name), "{}", driver.name);
            assert!(
                driver.zero_copy.is_none_or(|zero_copy| Some(zero_copy) >= driver.native),
                "{}",
                driver.name
            );
        }
        assert!(known("ice").is_some() && known("none").is_none());
    }
}
