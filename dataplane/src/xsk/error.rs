//! What can go wrong when the uplink is opened: each error says what, where and what to do, in one line.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::HEADROOM;
use crate::plan::XdpMode;
use crate::types::QueueId;
use crate::wire::eth::EthHeader;
use crate::wire::outer::OVERHEAD_IPV4;

/// Why the uplink cannot be opened or changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum XskError {
    /// There is no interface with this name.
    NoInterface {
        /// The name asked for.
        interface: String,
    },
    /// It is there but down.
    InterfaceDown {
        /// Its name.
        interface: String,
    },
    /// Not an Ethernet interface.
    NotEthernet {
        /// Its name.
        interface: String,
    },
    /// Our VTEP address is not one of the interface's.
    NoAddress {
        /// Its name.
        interface: String,
        /// The address asked for.
        wanted: IpAddr,
        /// The addresses that it has.
        has: Vec<IpAddr>,
    },
    /// The kernel has no device for this VLAN on the interface.
    NoVlanDevice {
        /// Its name.
        interface: String,
        /// The VLAN's number.
        vlan: u16,
    },
    /// The underlay is a VLAN, and the interface takes the tags off what it receives, by which we know it.
    VlanOffload {
        /// Its name.
        interface: String,
        /// The VLAN's number.
        vlan: u16,
    },
    /// The privileges are missing.
    NotPermitted {
        /// What was refused.
        what: &'static str,
    },
    /// A packet of the interface's MTU does not fit a chunk.
    MtuTooLarge {
        /// Its name.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The chunk size asked for.
        chunk_size: u32,
        /// The largest MTU whose packets fit such a chunk, and one of 4096 bytes.
        holds: (u32, u32),
        /// Zero-copy was required, of this driver, and that is why so little fits.
        zero_copy: Option<String>,
    },
    /// The kernel takes 2048 or 4096 only.
    ChunkSize {
        /// What was asked for.
        got: u32,
    },
    /// Not a power of two, or out of bounds.
    RingSize {
        /// What was asked for.
        got: u32,
    },
    /// More frames for transmission than the completion ring has places.
    TxFrames {
        /// What was asked for.
        got: u32,
        /// The most.
        ring_size: u32,
    },
    /// The interface has fewer queues.
    NoQueue {
        /// Its name.
        interface: String,
        /// The queue asked for.
        queue: QueueId,
        /// How many it has.
        has: u32,
    },
    /// A queue stands in the list twice.
    QueueTwice {
        /// Which.
        queue: QueueId,
    },
    /// Another socket has the queue.
    QueueTaken {
        /// Name of the interface.
        interface: String,
        /// Which queue.
        queue: QueueId,
        /// How long it was tried.
        waited: Duration,
    },
    /// Zero-copy was required and the driver has none.
    NoZeroCopy {
        /// Name of the interface.
        interface: String,
        /// It was required of this one, not only of another whose sockets share memory with its.
        is_asked: bool,
        /// Name of its driver.
        driver: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Packets longer than a chunk are needed, and the kernel or the driver has none.
    NoMultiBuffer {
        /// Name of the interface.
        interface: String,
        /// Name of its driver.
        driver: String,
        /// The mode asked for.
        mode: XdpMode,
        /// Bytes of a chunk.
        chunk_size: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Interfaces that are opened together have chunks or rings of different sizes.
    SizesDiffer {
        /// The first that differs.
        interface: String,
    },
    /// The kernel refused the socket.
    Bind {
        /// Name of the interface.
        interface: String,
        /// Which queue.
        queue: QueueId,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A queue has no second socket, for urgent frames.
    NoEarly {
        /// Name of the interface.
        interface: String,
        /// Which queue.
        queue: QueueId,
        /// The kernel's reason.
        source: io::Error,
    },
    /// More rules for urgent frames than the XDP program has room for.
    EarlyRules {
        /// Of what.
        what: &'static str,
        /// How many were to be set.
        got: usize,
        /// The most.
        most: usize,
    },
    /// No memory for the frames.
    Umem {
        /// How much was asked for.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another XDP program is on the interface; it is never replaced.
    ForeignProgram {
        /// Name of the interface.
        interface: String,
        /// The program's name in the kernel.
        name: String,
        /// The program's number in the kernel.
        id: u32,
    },
    /// The driver or the kernel refused the XDP program.
    ProgramRefused {
        /// Name of the interface.
        interface: String,
        /// Name of its driver.
        driver: String,
        /// The mode asked for.
        mode: XdpMode,
        /// The interface's MTU.
        mtu: u32,
        /// Packets longer than a chunk, which has so many bytes, were asked for.
        multi_buffer: Option<u32>,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Not a power of two, or out of bounds, for a port.
    PortRing {
        /// Name of its interface.
        interface: String,
        /// What was asked for.
        got: u32,
    },
    /// A packet of a port's interface fits no chunk.
    PortMtu {
        /// Its name.
        interface: String,
        /// Its MTU.
        mtu: u32,
    },
    /// The kernel refused a port's XDP program.
    PortRefused {
        /// Name of the interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The XDP program could not be loaded, or one of its maps not be used.
    Program {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another system call failed.
    System {
        /// What was tried.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl fmt::Display for XskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use XskError as E;
        match self {
            E::NoInterface { interface } => {
                write!(f, "there is no interface '{interface}': `ip link` lists those that there are")
            }
            E::InterfaceDown { interface } => {
                write!(f, "interface {interface} is down: bring it up with `ip link set dev {interface} up`")
            }
            E::NotEthernet { interface } => {
                write!(f, "interface {interface} has no Ethernet address: choose an Ethernet interface")
            }
            E::NoAddress { interface, wanted, has } => no_address(f, interface, wanted, has),
            E::NoVlanDevice { interface, vlan } => write!(
                f,
                "{interface} has no device for VLAN {vlan}, which our address must be on: make one (ip link add link {interface} name {interface}.{vlan} type vlan id {vlan})"
            ),
            E::VlanOffload { interface, vlan } => write!(
                f,
                "{interface} takes VLAN tags off what it receives, so nothing would be known as of VLAN {vlan}: switch that off with \
                 `ethtool -K {interface} rxvlan off`"
            ),
            E::NotPermitted { what } => write!(
                f,
                "{what} is not permitted: run as root, or with the capabilities CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and \
                 CAP_PERFMON"
            ),
            E::MtuTooLarge { .. } => mtu_too_large(f, self),
            E::ChunkSize { got } => write!(f, "a chunk of {got} bytes is not possible: use 2048 or 4096"),
            E::RingSize { got } => {
                write!(f, "a ring of {got} descriptors is not possible: use a power of two from 64 to 32768")
            }
            E::TxFrames { got, ring_size } => {
                write!(
                    f,
                    "{got} frames for transmission are not possible: use 1 to {ring_size}, the ring size"
                )
            }
            E::NoQueue { interface, queue, has } => {
                let last = has.saturating_sub(1);
                write!(f, "{interface} has no queue {}: its queues are 0 to {last}", queue.0)
            }
            E::QueueTwice { queue } => write!(f, "queue {} is listed twice: list each queue once", queue.0),
            E::QueueTaken { interface, queue, waited } => write!(
                f,
                "queue {} of {interface} has had another AF_XDP socket on it for {} s: stop the program that holds \
                 it (`ss --xdp -e -p` lists them)",
                queue.0,
                waited.as_secs()
            ),
            E::NoZeroCopy { interface, is_asked, driver, source } => write!(
                f,
                "{interface} (driver {driver}) has no zero-copy ({source}): use mode 'prefer-zero-copy' or 'copy'{}",
                if *is_asked { "" } else { " for the uplink that requires it, all have it or none" }
            ),
            E::NoMultiBuffer { .. } => no_multi_buffer(f, self),
            E::SizesDiffer { interface } => write!(
                f,
                "{interface} has another chunk_size or ring_size than the first uplink: use the same on all, \
                 a worker's sockets share their memory"
            ),
            E::Bind { interface, queue, source } => {
                write!(f, "no AF_XDP socket on queue {} of {interface}: {source}", queue.0)
            }
            E::NoEarly { interface, queue, source } => write!(
                f,
                "queue {} of {interface} got no second AF_XDP socket for urgent frames ({source}): use \
                 early = \"if-possible\" or early = false",
                queue.0
            ),
            E::EarlyRules { what, got, most } => {
                write!(f, "{got} {what} with rules for urgent frames: the XDP program has room for {most}")
            }
            E::Umem { bytes, source } => write!(
                f,
                "no {} MiB of memory for frames ({source}): free memory, raise the limit on locked memory \
                 (`ulimit -l`), or use smaller rings",
                bytes.div_ceil(1 << 20)
            ),
            E::ForeignProgram { interface, name, id } => write!(
                f,
                "{interface} already has an XDP program '{name}' (id {id}): detach it with \
                 `ip link set dev {interface} xdp off`, or choose another interface"
            ),
            E::ProgramRefused { .. } => program_refused(f, self),
            E::PortRing { interface, got } => write!(
                f,
                "port {interface}: rings of {got} descriptors are not possible: use a power of two from 64 to 4096"
            ),
            E::PortMtu { interface, mtu } => write!(
                f,
                "port {interface} has an MTU of {mtu}: a port takes {} at most, and a veth some 300 less: use a smaller one at both ends",
                super::largest_mtu(4096)
            ),
            E::PortRefused { interface, mtu, source } => port_refused(f, interface, *mtu, source),
            E::Program { what, source } => write!(f, "{what}: {}", causes(source.as_ref())),
            E::System { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

/// An error and what caused it, in one line: the verifier's log stays out of it, and what an error has said of its
/// cause already is not said again.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        let part = part.lines().next().unwrap_or_default();
        if !text.contains(part) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(part);
        }
        next = error.source();
    }
    text
}

fn no_address(f: &mut fmt::Formatter<'_>, interface: &str, wanted: &IpAddr, has: &[IpAddr]) -> fmt::Result {
    write!(f, "{wanted} is not an address of {interface}")?;
    match has {
        [] => f.write_str(", which has none")?,
        [first, rest @ ..] => {
            write!(f, ", which has {first}")?;
            rest.iter().try_for_each(|address| write!(f, ", {address}"))?;
        }
    }
    let prefix = if wanted.is_ipv4() { 24 } else { 64 };
    write!(
        f,
        ": use one of its addresses, or add this one with `ip address add {wanted}/{prefix} dev {interface}`"
    )
}

fn mtu_too_large(f: &mut fmt::Formatter<'_>, error: &XskError) -> fmt::Result {
    let XskError::MtuTooLarge { interface, mtu, chunk_size, holds: (most, most_of_4096), zero_copy } = error
    else {
        return Ok(());
    };
    let larger = if *chunk_size < 4096 && mtu <= most_of_4096 { "chunks of 4096 bytes, " } else { "" };
    if let Some(driver) = zero_copy {
        return write!(
            f,
            "{interface} has an MTU of {mtu}, but with zero-copy a chunk of {chunk_size} bytes holds {most} (driver {driver}): use {larger}\
             `ip link set dev {interface} mtu {most}`, or mode 'copy'"
        );
    }
    write!(f, "{interface} has an MTU of {mtu}, but a chunk of {chunk_size} bytes holds {most}: ")?;
    if !larger.is_empty() {
        return write!(f, "use {larger}or `ip link set dev {interface} mtu {most}`");
    }
    // Then it does not fit behind any outer headers.
    let more = (*chunk_size as usize).saturating_sub(HEADROOM + EthHeader::LEN + OVERHEAD_IPV4) + 1;
    write!(
        f,
        "use `ip link set dev {interface} mtu {most}`, or set some networks[n].mtu to {more} or more, with which packets may lie in \
         several chunks (Linux 6.6.10)"
    )
}

fn no_multi_buffer(f: &mut fmt::Formatter<'_>, error: &XskError) -> fmt::Result {
    let XskError::NoMultiBuffer { interface, driver, mode, chunk_size, source } = error else {
        return Ok(());
    };
    let mtu = inner_mtu(*chunk_size);
    if *mode == XdpMode::RequireZeroCopy {
        write!(
            f,
            "{interface} (driver {driver}) has no zero-copy, or none for packets of several chunks ({source}), which a network's \
             MTU needs: use mode 'prefer-zero-copy' or 'copy', or lower networks[n].mtu to {mtu} or less"
        )
    } else {
        write!(
            f,
            "the kernel takes no packets of several chunks on {interface} (driver {driver}, mode '{}': {source}), which a \
             network's MTU needs: use Linux 6.6.10 or newer, or lower networks[n].mtu to {mtu} or less",
            mode.name()
        )
    }
}

/// The longest inner packet that needs no more than a chunk, whatever the outer headers are.
fn inner_mtu(chunk_size: u32) -> u32 {
    super::largest_mtu(chunk_size).saturating_sub(74)
}

fn port_refused(f: &mut fmt::Formatter<'_>, interface: &str, mtu: u32, source: &io::Error) -> fmt::Result {
    write!(f, "port {interface} (MTU {mtu}) refused the XDP program: {source}; ")?;
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            write!(f, "it has another one: detach that with `ip link set dev {interface} xdp off`")
        }
        Some(libc::ERANGE) => f.write_str("use a smaller MTU at both ends of the veth, 3400 or less"),
        _ => f.write_str("use an end of a veth, both ends of which have the same MTU"),
    }
}

fn program_refused(f: &mut fmt::Formatter<'_>, error: &XskError) -> fmt::Result {
    let XskError::ProgramRefused { interface, driver, mode, mtu, multi_buffer, source } = error else {
        return Ok(());
    };
    write!(
        f,
        "{interface} (driver {driver}, MTU {mtu}) refused the XDP program in mode '{}': {source}; ",
        mode.name()
    )?;
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            f.write_str("another program was attached at the same moment: detach it")
        }
        _ if let Some(chunk_size) = multi_buffer => write!(
            f,
            "it may have no packets of several chunks, which a network's MTU needs: lower networks[n].mtu to {} or less{}",
            inner_mtu(*chunk_size),
            if *mode == XdpMode::Generic { "" } else { ", or use mode 'generic'" }
        ),
        _ if *mode == XdpMode::Generic => f.write_str("choose another interface"),
        Some(libc::EOPNOTSUPP) => f.write_str("its driver has no native XDP: use mode 'generic'"),
        _ => write!(
            f,
            "try a smaller MTU (on both ends of a veth), fewer queues (`ethtool -L {interface}`), large receive \
             offload off (`ethtool -K {interface} lro off`), or mode 'generic'"
        ),
    }
}

impl std::error::Error for XskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            XskError::NoZeroCopy { source, .. }
            | XskError::NoMultiBuffer { source, .. }
            | XskError::Bind { source, .. }
            | XskError::NoEarly { source, .. }
            | XskError::Umem { source, .. }
            | XskError::ProgramRefused { source, .. }
            | XskError::PortRefused { source, .. }
            | XskError::System { source, .. } => Some(source),
            XskError::Program { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_program_is_named_with_the_command_that_detaches_it() {
        let error = XskError::ForeignProgram { interface: "eth0".into(), name: "firewall".into(), id: 12 };
        assert_eq!(
            error.to_string(),
            "eth0 already has an XDP program 'firewall' (id 12): detach it with `ip link set dev eth0 xdp off`, \
             or choose another interface"
        );
    }

    #[test]
    fn a_wrong_address_is_answered_with_the_right_ones() {
        let error = |has: &[IpAddr]| XskError::NoAddress {
            interface: "eth0".into(),
            wanted: [10, 0, 0, 1].into(),
            has: has.to_vec(),
        };
        assert!(error(&[]).to_string().starts_with("10.0.0.1 is not an address of eth0, which has none: "));
        let two = error(&[[10, 0, 0, 2].into(), [10, 0, 0, 3].into()]).to_string();
        assert!(two.contains("which has 10.0.0.2, 10.0.0.3: use one"), "{two}");
    }

    #[test]
    fn an_mtu_that_larger_chunks_would_hold_says_so() {
        let error = |mtu, chunk_size| {
            let holds = (super::super::largest_mtu(chunk_size), super::super::largest_mtu(4096));
            let interface = "eth0".into();
            XskError::MtuTooLarge { interface, mtu, chunk_size, holds, zero_copy: None }.to_string()
        };
        assert!(error(3000, 2048).contains("use chunks of 4096 bytes"), "{}", error(3000, 2048));
        let text = error(9000, 2048);
        assert!(
            text.contains("use `ip link set dev eth0 mtu 1774`, or set some networks[n].mtu to 1729 or more"),
            "{text}"
        );
    }

    #[test]
    fn packets_longer_than_a_chunk_that_are_refused_say_what_to_do() {
        let error = |mode, chunk_size| {
            let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            XskError::NoMultiBuffer {
                interface: "eth0".into(),
                driver: "ena".into(),
                mode,
                chunk_size,
                source,
            }
            .to_string()
        };
        let text = error(XdpMode::RequireZeroCopy, 2048);
        assert!(
            text.contains("use mode 'prefer-zero-copy' or 'copy', or lower networks[n].mtu to 1700"),
            "{text}"
        );
        let text = error(XdpMode::Copy, 4096);
        assert!(
            text.contains("use Linux 6.6.10 or newer, or lower networks[n].mtu to 3748 or less"),
            "{text}"
        );
    }

    #[test]
    fn every_text_is_one_line() {
        let refused_of = |mode, errno, multi_buffer| XskError::ProgramRefused {
            interface: "eth0".into(),
            driver: "ena".into(),
            mode,
            multi_buffer,
            mtu: 9001,
            source: io::Error::from_raw_os_error(errno),
        };
        let refused = |mode, errno| refused_of(mode, errno, None);
        let multi = refused_of(XdpMode::Copy, libc::EINVAL, Some(2048));
        assert!(
            multi.to_string().ends_with("lower networks[n].mtu to 1700 or less, or use mode 'generic'"),
            "{multi}"
        );
        for error in [
            refused(XdpMode::Copy, libc::EOPNOTSUPP),
            refused(XdpMode::PreferZeroCopy, libc::EINVAL),
            refused(XdpMode::Generic, libc::EINVAL),
            refused_of(XdpMode::Generic, libc::EINVAL, Some(4096)),
            multi,
            XskError::QueueTaken {
                interface: "eth0".into(),
                queue: QueueId(3),
                waited: Duration::from_secs(5),
            },
            XskError::Program { what: "load", source: Box::from("a\nb") },
            XskError::VlanOffload { interface: "eth0".into(), vlan: 5 },
            XskError::NoEarly {
                interface: "eth0".into(),
                queue: QueueId(3),
                source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            },
        ] {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }
}
