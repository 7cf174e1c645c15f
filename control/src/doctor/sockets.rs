//! Which queues have AF_XDP sockets, and whose: netlink's socket diagnosis, and the processes' descriptors.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr};

use super::facts::Known;

/// From linux/netlink.h, linux/sock_diag.h and linux/xdp_diag.h.
const NETLINK_SOCK_DIAG: isize = 4;
const NLMSG_HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_XDP: u8 = 44;
const XDP_SHOW_INFO: u32 = 1;
const XDP_DIAG_MSG_BYTES: usize = 16;
const XDP_DIAG_INFO: u16 = 1;
/// Datagrams of an answer; each holds many sockets.
const DATAGRAMS_MAX: usize = 1024;

/// An AF_XDP socket that is bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The interface's number.
    pub ifindex: u32,
    /// The queue.
    pub queue: u32,
    /// The socket's number in the kernel.
    pub inode: u32,
}

/// All that are bound, in this thread's network namespace.
///
/// # Errors
/// The kernel does not tell.
pub fn bound() -> io::Result<Vec<Bound>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    let mut bytes = Vec::from(36u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // number, and our port
    // `struct xdp_diag_req`: family, protocol, a gap, the inode, what to show, a cookie of two words.
    bytes.extend([AF_XDP, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(XDP_SHOW_INFO.to_ne_bytes());
    bytes.extend([0; 8]);
    socket.send(&bytes, 0)?;
    let mut all = Vec::new();
    for _ in 0..DATAGRAMS_MAX {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, &mut all)? {
            return Ok(all);
        }
    }
    Err(garbled())
}

/// Takes the sockets out of a datagram; whether it was the last.
fn read(mut datagram: &[u8], all: &mut Vec<Bound>) -> io::Result<bool> {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let (length, payload) = (message.length() as usize, message.payload());
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = payload.first_chunk().map_or(-1, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => all.extend(one(payload)),
        }
        if length < NLMSG_HEADER_BYTES {
            break;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct xdp_diag_msg` (family, type, a gap, the inode, a cookie) and its attributes. A socket that is bound to nothing has no number of
/// an interface.
fn one(payload: &[u8]) -> Option<Bound> {
    let (header, attributes) = payload.split_at_checked(XDP_DIAG_MSG_BYTES)?;
    let inode = u32::from_ne_bytes(*header.get(4..)?.first_chunk()?);
    let info = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == XDP_DIAG_INFO)?;
    let value = info.value();
    let ifindex = u32::from_ne_bytes(*value.first_chunk()?);
    let queue = u32::from_ne_bytes(*value.get(4..)?.first_chunk()?);
    (ifindex > 0).then_some(Bound { ifindex, queue, inode })
}

/// All that are bound, and who has them: asked for once, however many interfaces are looked at. Whose they are is looked for when somebody
/// first wants to know, because it means to read all descriptors of all processes.
#[derive(Debug, Default)]
pub struct Sockets {
    bound: OnceCell<Known<Vec<Bound>>>,
    owners: OnceCell<BTreeMap<u32, String>>,
}

impl Sockets {
    /// The queues of an interface that have sockets, and the process that has each, such as `dpdk-testpmd (4242)`, where that can be seen.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn on(&self, ifindex: u32) -> Known<Vec<(u32, String)>> {
        let not_told = |why| format!("the kernel does not tell of AF_XDP sockets ({why})");
        let all = self.bound.get_or_init(|| bound().map_err(not_told)).as_ref().map_err(String::clone)?;
        let here = all.iter().filter(|bound| bound.ifindex == ifindex);
        let by_queue: BTreeMap<u32, u32> = here.map(|bound| (bound.queue, bound.inode)).collect();
        let owner = |inode| {
            let owners = self.owners.get_or_init(|| owners(&all.iter().map(|bound| bound.inode).collect()));
            owners.get(&inode).cloned().unwrap_or_else(|| "a process that cannot be seen".into())
        };
        Ok(by_queue.into_iter().map(|(queue, inode)| (queue, owner(inode))).collect())
    }
}

/// The first process that has each of these sockets.
fn owners(inodes: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let targets = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        for inode in targets.filter_map(|target| socket_inode(target.to_str()?)) {
            if inodes.contains(&inode) && !found.contains_key(&inode) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.insert(inode, format!("{} ({pid})", name.trim()));
            }
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

/// `socket:[4711]` as 4711.
fn socket_inode(target: &str) -> Option<u32> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was not understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_socket_is_found() {
        let sockets = [(); 2].map(|()| std::os::unix::net::UnixDatagram::unbound().unwrap());
        let inode =
            |socket: &std::os::unix::net::UnixDatagram| rustix::fs::fstat(socket).unwrap().st_ino as u32;
        let [first, second] = sockets.each_ref().map(inode);
        let found = owners(&BTreeSet::from([first, second]));
        let ours = format!("({})", std::process::id());
        assert!(found.len() == 2 && found.values().all(|owner| owner.ends_with(&ours)), "{found:?}");
        assert_eq!((socket_inode("socket:[4711]"), socket_inode("pipe:[4711]")), (Some(4711), None));
        let told = Sockets::default();
        let bound = vec![
            Bound { ifindex: 5, queue: 0, inode: first },
            Bound { ifindex: 5, queue: 1, inode: 0 },
            Bound { ifindex: 6, queue: 0, inode: second },
        ];
        told.bound.set(Ok(bound)).unwrap();
        let on = told.on(5).unwrap();
        assert!(on[0].1.ends_with(&ours) && on[1] == (1, "a process that cannot be seen".into()), "{on:?}");
    }

    #[test]
    fn an_answer_is_read_and_a_cut_one_is_not() {
        let mut message = vec![AF_XDP, 3, 0, 0];
        message.extend(77u32.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([12, 0, 1, 0]);
        message.extend(5u32.to_ne_bytes());
        message.extend(2u32.to_ne_bytes());
        assert_eq!(one(&message), Some(Bound { ifindex: 5, queue: 2, inode: 77 }));
        for end in 0..message.len() {
            assert_eq!(one(message.get(..end).unwrap()), None);
        }
        let mut datagram = Vec::from((16 + message.len() as u32).to_ne_bytes());
        datagram.extend([20, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        datagram.extend(&message);
        let mut all = Vec::new();
        assert!(!read(&datagram, &mut all).unwrap() && all.len() == 1);
        let done = [16, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(read(&[&datagram[..], &done].concat(), &mut all).unwrap() && all.len() == 2);
    }
}
