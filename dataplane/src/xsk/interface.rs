//! Facts about the interface, and the checks that need nothing but them.
//!
//! Called by [`open`](super::open), by the daemon to show and to split up the queues, and by the generator. All
//! of it looks at the network namespace of the calling thread.

use std::io;
use std::net::IpAddr;

use crate::plan::{Queues, XdpMode};
use crate::sys;
use crate::types::{MacAddr, QueueId};

use super::{HEADROOM, XskConfig, XskError};

/// Ethernet header and one VLAN tag: what a frame has beyond the MTU.
const LINK_HEADER: u32 = 14 + 4;

/// An Ethernet interface as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its driver, as ethtool names it; empty if the driver does not tell.
    pub driver: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU: the largest IP packet.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its IP addresses, or those of its VLAN device.
    pub addresses: Vec<IpAddr>,
    /// The kernel's device for the VLAN whose addresses these are.
    pub vlan_device: Option<String>,
    /// The MTU of that device.
    pub vlan_mtu: Option<u32>,
    /// How many receive queues it has.
    pub queue_count: u32,
}

/// Looks at an interface. It may be down.
pub fn interface(name: &str) -> Result<Interface, XskError> {
    let system = |what: &str| {
        let what = format!("reading the {what} of {name}");
        move |source| XskError::System { what, source }
    };
    let found = sys::interface_addresses(name).map_err(system("addresses"))?;
    let found = found
        .filter(|found| found.index > 0)
        .ok_or_else(|| XskError::NoInterface { interface: name.into() })?;
    Ok(Interface {
        name: name.into(),
        index: found.index,
        driver: sys::interface_driver(name).unwrap_or_default(),
        mac: found.mac.ok_or_else(|| XskError::NotEthernet { interface: name.into() })?,
        mtu: sys::interface_mtu(name).map_err(system("MTU"))?,
        up: found.up,
        addresses: found.addresses,
        vlan_device: None,
        vlan_mtu: None,
        queue_count: queue_count(name),
    })
}

/// Why nothing can be sent on an interface that was there, with this number, and up; `None`: it can. Cheap enough to be asked
/// now and then by a thread that sends.
pub fn unusable(name: &str, index: u32) -> Option<String> {
    match sys::interface_state(name) {
        Ok((now, _)) if now != index => Some(format!("interface {name} is another one now")),
        Ok((_, false)) => Some(format!("interface {name} is down")),
        Ok((_, true)) => None,
        Err(why) => Some(format!("interface {name} is gone ({why})")),
    }
}

/// How many receive queues the interface has. What neither its driver nor sysfs tells is one.
fn queue_count(name: &str) -> u32 {
    let told = sys::interface_channels(name).ok().filter(|count| *count > 0);
    told.or_else(|| listed_queues(name).ok()).unwrap_or(1).max(1)
}

fn listed_queues(name: &str) -> io::Result<u32> {
    let entries = std::fs::read_dir(format!("/sys/class/net/{name}/queues"))?;
    let rx = entries.filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"rx-"))
    });
    Ok(u32::try_from(rx.count()).unwrap_or(u32::MAX))
}

impl Interface {
    /// The same with the addresses that it has in this VLAN: those of the kernel's VLAN device above it. The program sees a tag only
    /// where it is in the packet.
    pub(super) fn with_vlan(self, vlan: Option<u16>) -> Result<Interface, XskError> {
        let Some(vlan) = vlan else { return Ok(self) };
        let system = |source| XskError::System {
            what: format!("looking for the device of VLAN {vlan} on {}", self.name),
            source,
        };
        let takes_tags = sys::interface_takes_tags(&self.name).map_err(|source| XskError::System {
            what: format!("asking whether {} takes VLAN tags off", self.name),
            source,
        });
        if takes_tags? {
            return Err(XskError::VlanOffload { interface: self.name.clone(), vlan });
        }
        let device = sys::vlan_device(&self.name, vlan).map_err(system)?;
        let found = device.as_ref().map(|device| sys::interface_addresses(device)).transpose();
        let (Some(found), Some(device)) = (found.map_err(system)?.flatten(), device) else {
            return Err(XskError::NoVlanDevice { interface: self.name.clone(), vlan });
        };
        let vlan_mtu = Some(sys::interface_mtu(&device).map_err(system)?);
        Ok(Interface { addresses: found.addresses, vlan_device: Some(device), vlan_mtu, ..self })
    }

    /// The largest IP packet that goes out: in a VLAN the MTU of its device, which may be smaller.
    pub fn packet_mtu(&self) -> u32 {
        self.vlan_mtu.map_or(self.mtu, |mtu| mtu.min(self.mtu))
    }

    /// The queues meant by `queues`: those that it has, or the list if it has them all.
    pub fn queues(&self, queues: &Queues) -> Result<Vec<QueueId>, XskError> {
        let list = match queues {
            Queues::All => (0..self.queue_count).map(QueueId).collect(),
            Queues::List(list) => list.clone(),
        };
        self.check_queues(list.iter().copied())?;
        Ok(list)
    }

    fn check_queues(&self, queues: impl Iterator<Item = QueueId>) -> Result<(), XskError> {
        let mut seen = Vec::new();
        for queue in queues {
            if queue.0 >= self.queue_count {
                return Err(XskError::NoQueue { interface: self.name.clone(), queue, has: self.queue_count });
            }
            if seen.contains(&queue) {
                return Err(XskError::QueueTwice { queue });
            }
            seen.push(queue);
        }
        Ok(())
    }

    /// Everything about `config` that can be wrong before the kernel is asked.
    pub(super) fn check(
        &self,
        config: &XskConfig,
        queues: impl Iterator<Item = QueueId>,
    ) -> Result<(), XskError> {
        let XskConfig { chunk_size, ring_size, tx_frames, .. } = *config;
        if chunk_size != 2048 && chunk_size != 4096 {
            return Err(XskError::ChunkSize { got: chunk_size });
        }
        if !ring_size.is_power_of_two() || !(64..=32768).contains(&ring_size) {
            return Err(XskError::RingSize { got: ring_size });
        }
        if tx_frames == 0 || tx_frames > ring_size {
            return Err(XskError::TxFrames { got: tx_frames, ring_size });
        }
        if !self.up {
            return Err(XskError::InterfaceDown { interface: self.name.clone() });
        }
        let zero_copy = (config.mode == XdpMode::RequireZeroCopy).then(|| self.driver.clone());
        let most = |chunk_size| match &zero_copy {
            Some(driver) => largest_zero_copy_mtu(driver, chunk_size),
            None => largest_mtu(chunk_size),
        };
        if self.mtu > most(chunk_size) && !config.multi_buffer {
            let (interface, mtu) = (self.name.clone(), self.mtu);
            let holds = (most(chunk_size), most(4096));
            return Err(XskError::MtuTooLarge { interface, mtu, chunk_size, holds, zero_copy });
        }
        let locals = config.steering.as_ref().map_or(&[][..], |steering| &steering.locals);
        if let Some(&wanted) = locals.iter().find(|local| !self.addresses.contains(local)) {
            let interface = self.vlan_device.as_ref().unwrap_or(&self.name).clone();
            return Err(XskError::NoAddress { interface, wanted, has: self.addresses.clone() });
        }
        self.check_queues(queues)
    }
}

/// The largest MTU whose frames fit a chunk behind the headroom.
pub(super) const fn largest_mtu(chunk_size: u32) -> u32 {
    chunk_size.saturating_sub(HEADROOM as u32 + LINK_HEADER)
}

/// The same with zero-copy: Linux wants room for a second VLAN tag and the frame's checksum as well (xp_assign_dev in
/// net/xdp/xsk_buff_pool.c, from 7.0 and the stable kernels of April 2026 on). And igb and igc tell the card of buffers in steps of 1024
/// bytes, rounded down (SRRCTL.BSIZEPKT in igb_main.c and igc_main.c), and take what lies in the next buffer for another frame.
pub(super) fn largest_zero_copy_mtu(driver: &str, chunk_size: u32) -> u32 {
    const SECOND_TAG_AND_CHECKSUM: u32 = 4 + 4;
    let room = chunk_size.saturating_sub(HEADROOM as u32);
    let buffer = if matches!(driver, "igb" | "igc") { room / 1024 * 1024 } else { room };
    buffer.saturating_sub(LINK_HEADER + SECOND_TAG_AND_CHECKSUM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xsk::Steering;

    fn eth0() -> Interface {
        Interface {
            name: "eth0".into(),
            index: 2,
            driver: "ice".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            addresses: vec![[10, 0, 0, 1].into()],
            vlan_device: None,
            vlan_mtu: None,
            queue_count: 4,
        }
    }

    fn config() -> XskConfig {
        let steering = Steering::new([10, 0, 0, 1].into(), 4789, &[]);
        XskConfig { steering: Some(steering), ..XskConfig::new("eth0", XdpMode::Copy) }
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert!(eth0().check(&config(), (0..4).map(QueueId)).is_ok());
    }

    #[test]
    fn each_bad_number_is_refused() {
        type Change = fn(&mut Interface, &mut XskConfig);
        let cases: [(Change, &str); 10] = [
            (|_, c| c.chunk_size = 3000, "chunk of 3000"),
            (|_, c| c.ring_size = 1000, "ring of 1000"),
            (|_, c| c.ring_size = 32, "ring of 32"),
            (|_, c| c.tx_frames = 0, "0 frames"),
            (|_, c| c.tx_frames = c.ring_size + 1, "frames for transmission"),
            (|i, _| i.up = false, "eth0 is down"),
            (|i, _| i.mtu = 1775, "MTU of 1775"),
            (|i, _| i.addresses.clear(), "not an address of eth0, which has none"),
            (
                |_, c| {
                    c.steering.as_mut().unwrap().locals.push([10, 0, 0, 9].into());
                },
                "10.0.0.9 is not an address of eth0",
            ),
            (|i, _| i.queue_count = 3, "no queue 3: its queues are 0 to 2"),
        ];
        for (change, text) in cases {
            let (mut interface, mut config) = (eth0(), config());
            change(&mut interface, &mut config);
            let error = interface.check(&config, (0..4).map(QueueId)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn an_mtu_that_just_fits_is_accepted() {
        let interface = Interface { mtu: 1774, ..eth0() };
        assert!(interface.check(&config(), [].into_iter()).is_ok());
        let interface = Interface { mtu: 9050, ..eth0() };
        let multi = XskConfig { multi_buffer: true, ..config() };
        assert!(interface.check(&multi, [].into_iter()).is_ok());
    }

    #[test]
    fn with_zero_copy_a_chunk_holds_less() {
        let asked = |driver: &str, mtu, chunk_size| {
            let interface = Interface { mtu, driver: driver.into(), ..eth0() };
            let config = XskConfig { mode: XdpMode::RequireZeroCopy, chunk_size, ..config() };
            interface.check(&config, [].into_iter())
        };
        for (driver, chunk_size, most) in
            [("ice", 2048, 1766), ("ice", 4096, 3814), ("igb", 2048, 998), ("igc", 4096, 3046)]
        {
            assert!(asked(driver, most, chunk_size).is_ok(), "{driver}");
            assert!(asked(driver, most + 1, chunk_size).is_err(), "{driver}");
        }
        assert_eq!(
            asked("igb", 1500, 2048).unwrap_err().to_string(),
            "eth0 has an MTU of 1500, but with zero-copy a chunk of 2048 bytes holds 998 (driver igb): use chunks of 4096 bytes, \
             `ip link set dev eth0 mtu 998`, or mode 'copy'"
        );
    }

    #[test]
    fn a_vlan_device_may_have_the_smaller_mtu_and_never_the_larger_one() {
        for (vlan_mtu, packet_mtu) in
            [(None, 9000), (Some(1500), 1500), (Some(9000), 9000), (Some(9500), 9000)]
        {
            assert_eq!(Interface { mtu: 9000, vlan_mtu, ..eth0() }.packet_mtu(), packet_mtu, "{vlan_mtu:?}");
        }
    }

    #[test]
    fn queues_are_all_or_the_list_and_never_twice() {
        assert_eq!(eth0().queues(&Queues::All).unwrap(), [0, 1, 2, 3].map(QueueId));
        assert_eq!(eth0().queues(&Queues::List(vec![QueueId(2)])).unwrap(), [QueueId(2)]);
        let twice = eth0().queues(&Queues::List(vec![QueueId(2), QueueId(2)])).unwrap_err().to_string();
        assert_eq!(twice, "queue 2 is listed twice: list each queue once");
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = interface("nosuch0").unwrap_err().to_string();
        assert!(error.contains("no interface 'nosuch0'"), "{error}");
    }
}
