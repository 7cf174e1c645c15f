//! Makes the kernel learn path MTUs from the ICMP messages that our outer packets cause. Held by [`Underlay`](super::Underlay); nothing is
//! ever read here.
//!
//! The kernel sees those messages (the XDP program takes UDP only), but it looks for a socket that sent the packet in them, and the
//! packets of an AF_XDP socket have none: `__udp4_lib_err` (net/ipv4/udp.c) and `__udp6_lib_err` then count an error and forget the message.
//! Before that `icmp_socket_deliver` and `icmpv6_notify` give it to raw sockets (`raw_icmp_error`, `raw6_icmp_error`), which need no port, and
//! `raw_err` (net/ipv4/raw.c) calls `ipv4_sk_update_pmtu`, `rawv6_err` (net/ipv6/raw.c) `ip6_sk_update_pmtu`, the latter for sockets with
//! IPV6_RECVERR only. So a raw socket of UDP, bound to our address, is all that is missing: the exceptions appear in the answers to
//! RTM_GETROUTE, and go after `net.ipv4.route.mtu_expires` (`net.ipv6.…`), 600 s. (Linux 6.18; the functions have been like this since 3.x.)
//!
//! A UDP socket bound to the port would do, too, but it would swallow what is not ours and passes to the kernel (fragments, other VNIs), which
//! is to be answered by "port unreachable"; and no kernel vxlan device could use the port. A raw socket is beside all that. Its price is
//! a copy of the buffer's head (`skb_clone`) for each UDP packet that the kernel itself receives for this address; the receive buffer holds
//! one or two, and the others are let go at once.
//!
//! Who can forge it: a raw socket is found by the addresses alone, so no port of the packet in the message is compared, and nothing in it
//! is a secret. One ICMP packet from anywhere that has our address and a remote's in it lowers the path's MTU for 600 s, to
//! `net.ipv4.route.min_pmtu` (552) or 1280 over IPv6. Hence what is below `PATH_MTU_LEAST` (`decide.rs`) is not believed, and shown; above that
//! only a filter before us helps. `net.ipv4.ip_no_pmtu_disc = 1` switches it off for IPv4.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::Ipv6RecvErr};
use rustix::net::sockopt::{set_ip_freebind, set_ipv6_freebind, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with};

use super::decide::PATH_MTU_LEAST;
use super::netlink::Requests;

/// Reading a list may take one part in so many of the time: the kernel walks all its IPv6 routes for it.
const SHARE_OF_TIME: u32 = 50;
/// Asks for the smallest receive buffer that there is.
const BUFFER_BYTES: usize = 1;

/// Keeps the kernel attentive for one local address.
#[derive(Debug)]
pub struct Attention {
    /// The address.
    pub local: IpAddr,
    /// The raw socket, or why there is none: path MTUs are then not learned.
    pub socket: io::Result<OwnedFd>,
}

impl Attention {
    /// For packets from this address. It need not be there yet.
    pub fn to(local: IpAddr) -> Attention {
        Attention { local, socket: open(local) }
    }

    /// Opens the socket, if there was none: the kernel may have been short of memory.
    pub fn retry(&mut self) {
        if self.socket.is_err() {
            self.socket = open(self.local);
        }
    }
}

/// What the kernel learned about paths over several gateways on one device, over IPv6. It notes an exception with the gateway that the
/// packet in the message would have taken (`rt6_multipath_hash`, which heeds the flow label), and answers a question by another; so its list
/// is read. Over IPv4 all of them have it.
///
/// Of a route with `nexthop … nexthop …` (no next-hop objects) Linux lists what its first gateway has only (`fib6_dump_node` skips the siblings):
/// what another has is then seen if the kernel answers by that one, or not at all.
#[derive(Debug)]
pub struct Exceptions {
    /// `None`: the kernel does not give such lists.
    requests: Option<Requests>,
    least: HashMap<(u32, IpAddr), u32>,
    next: Option<Instant>,
}

impl Exceptions {
    /// Nothing is read yet.
    pub fn new() -> Exceptions {
        Exceptions { requests: Requests::open_strict().ok(), least: HashMap::new(), next: None }
    }

    /// Reads the list, unless that took long lately. If there is no answer, what was known stands.
    pub fn read(&mut self, now: Instant) {
        let Some(requests) = self.requests.as_mut().filter(|_| self.next.is_none_or(|next| now >= next))
        else {
            return;
        };
        let began = Instant::now();
        let mut least = HashMap::new();
        let is_read = requests.exceptions(|ifindex, remote, mtu| {
            if mtu >= PATH_MTU_LEAST {
                let known = least.entry((ifindex, remote)).or_insert(mtu);
                *known = mtu.min(*known);
            }
        });
        if is_read.is_ok() {
            self.least = least;
        }
        let pause: Duration = began.elapsed() * SHARE_OF_TIME;
        self.next = Some(now + pause);
    }

    /// The smallest MTU by any gateway on this device, of those that are believed.
    pub fn least(&self, ifindex: u32, remote: IpAddr) -> Option<u32> {
        self.least.get(&(ifindex, remote)).copied()
    }
}

fn open(local: IpAddr) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
    // Before it is bound, which is when packets come.
    set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    if local.is_ipv4() {
        set_ip_freebind(&socket, true)?;
    } else {
        set_ipv6_freebind(&socket, true)?;
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    bind(&socket, &SocketAddr::new(local, 0))?;
    Ok(socket)
}
