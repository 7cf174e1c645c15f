//! An endpoint's `memif`: how it is attached, and in which role.
//!
//! The roles have keys of their own. One that belongs to the other role is refused rather than ignored: who gives
//! it expects something of it.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use peregrine_dataplane::plan::{MemifPlan, MemifRole};
use peregrine_memif::SocketAddr;

use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::raw::{Field, Memif};
use crate::values;

/// Permission bits of a path socket where none are given: no other users.
const MODE_DEFAULT: u32 = 0o660;
/// Rings in each direction.
const QUEUE_PAIRS_MAX: u16 = 8;
/// A tenant's memory, in MiB. The default holds whatever one with ordinary buffers brings.
const MEMORY_MAX_MIB: RangeInclusive<u64> = 1..=4096;
const MEMORY_DEFAULT_MIB: u64 = 128;
const RINGS_LOG2: RangeInclusive<u32> = 5..=14;
const RING_SIZE: &str = "a power of two from 32 to 16384";
const RING_SIZE_DEFAULT: u32 = 1024;
const BUFFER_SIZE_DEFAULT: u32 = 2048;
/// VPP and DPDK count the slots of all rings in 16 bits.
const SLOTS_LIMIT: u32 = 1 << 16;
/// Of a frame that carries a packet as long as the MTU: an Ethernet header with a VLAN tag.
const ETHERNET_BYTES: u32 = 18;

/// What those that share a socket may have once, and what they must agree on.
pub struct Sockets<'a> {
    control_socket: Option<&'a Path>,
    /// `None`: this is about one alone.
    together: Option<Together>,
}

#[derive(Default)]
struct Together {
    ids: Claims<(SocketAddr, u32)>,
    /// By socket and key: what the first endpoint on the socket says.
    first: HashMap<(SocketAddr, &'static str), Said>,
}

/// A key of the first endpoint on a socket.
struct Said {
    path: String,
    shown: String,
    value: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Server,
    Client,
}

impl Role {
    fn of(name: &str) -> Option<Role> {
        match name {
            "server" => Some(Role::Server),
            "client" => Some(Role::Client),
            _ => None,
        }
    }
}

impl<'a> Sockets<'a> {
    /// Nobody has one but the daemon itself.
    pub fn new(control_socket: Option<&'a Path>) -> Sockets<'a> {
        Sockets { control_socket, together: Some(Together::default()) }
    }

    /// For one alone: whom it shares a socket with is not looked at.
    pub fn of_one(control_socket: Option<&'a Path>) -> Sockets<'a> {
        Sockets { control_socket, together: None }
    }

    /// A socket is made once, so all who share it must want the same; `false`, and reported, if this one does not.
    fn agree(
        &mut self,
        at: &At<'_>,
        key: &'static str,
        socket: &SocketAddr,
        shown: impl Display,
        value: Option<u32>,
    ) -> bool {
        let Some(together) = &mut self.together else { return true };
        let said = || Said { path: at.key(key).path(), shown: shown.to_string(), value };
        let Some(first) = together.first.get(&(socket.clone(), key)) else {
            together.first.insert((socket.clone(), key), said());
            return true;
        };
        if first.value == value {
            return true;
        }
        let said = said();
        at.report().add(ConfigError::Disagree {
            of: "one socket",
            key: said.path,
            got: said.shown,
            other: first.path.clone(),
            other_got: first.shown.clone(),
        });
        false
    }
}

/// Checks an endpoint's `memif`; `network` is the MTU of its network with the path of that key, where it is known.
pub fn memif(
    at: &At<'_>,
    raw: &Memif,
    network: Option<(u16, String)>,
    sockets: &mut Sockets<'_>,
) -> Option<MemifPlan> {
    let (socket, id) = place(at, raw, sockets);
    let secret = secret(&at.key("secret"), &raw.secret);
    let role = at.key("role").text(&raw.role, Some(Role::Server), "\"server\" or \"client\"", Role::of);
    let queue_pairs = at.key("queue_pairs").number(&raw.queue_pairs, 1..=QUEUE_PAIRS_MAX, Some(1));
    let chains = at.key("chains").switch(&raw.chains, false);
    let agreed = role.zip(socket.as_ref()).is_none_or(|(role, socket)| {
        let shown = raw.role.given_or("\"server\"");
        sockets.agree(at, "role", socket, shown, Some(role as u32))
    });
    let plan = match role? {
        Role::Server => {
            let theirs = [
                ("ring_size", raw.ring_size.given()),
                ("buffer_size", raw.buffer_size.given()),
                ("tenant_uid", raw.tenant_uid.given()),
            ];
            left_out(at, &theirs, "it is for role = \"client\", and the role here is \"server\"");
            server(at, raw, socket.as_ref().filter(|_| agreed), sockets)
        }
        Role::Client => {
            let theirs = [
                ("mode", raw.mode.given()),
                ("owner", raw.owner.given()),
                ("group", raw.group.given()),
                ("allow_unsealed", raw.allow_unsealed.given()),
                ("memory_max", raw.memory_max.given()),
            ];
            left_out(at, &theirs, "it is for role = \"server\", and the role here is \"client\"");
            client(at, raw, queue_pairs, chains, network)
        }
    };
    Some(MemifPlan {
        socket: socket?,
        id: id?,
        secret: secret?,
        queue_pairs: queue_pairs?,
        chains: chains?,
        role: plan?,
    })
}

/// The socket and the id on it: together nobody else's.
fn place(at: &At<'_>, raw: &Memif, sockets: &mut Sockets<'_>) -> (Option<SocketAddr>, Option<u32>) {
    let socket = at.key("socket").text(&raw.socket, None, values::SOCKET, values::memif_socket);
    let id = at.key("id").number(&raw.id, 0..=u32::MAX, Some(0));
    let path = socket.as_ref().and_then(SocketAddr::path);
    if path.is_some() && path == sockets.control_socket {
        let (key, got) = (at.key("socket").path(), raw.socket.to_string());
        at.report().add(ConfigError::Taken { key, got, by: "control_socket".to_owned() });
    }
    if let (Some(socket), Some(id), Some(together)) = (&socket, id, &mut sockets.together) {
        let got = format_args!("{} on {}", raw.id.given_or("0"), raw.socket);
        together.ids.claim((socket.clone(), id), &at.key("id"), got);
    }
    (socket, id)
}

/// Reports those of the keys that are there.
fn left_out(at: &At<'_>, keys: &[(&str, Option<&dyn Display>)], why: &str) {
    for (key, given) in keys {
        if let Some(shown) = given {
            at.key(key).invalid(shown, format!("left out: {why}"));
        }
    }
}

/// `socket` is `None` where it has a mistake: then what all on it must agree on is not compared.
fn server(
    at: &At<'_>,
    raw: &Memif,
    socket: Option<&SocketAddr>,
    sockets: &mut Sockets<'_>,
) -> Option<MemifRole> {
    let mode = at.key("mode").optional(&raw.mode, MODE_DEFAULT, values::MODE, |text| values::mode(text));
    let id = |key, field| at.key(key).optional(field, None, values::OWNER, |id| values::owner(*id).map(Some));
    let (owner, group) = (id("owner", &raw.owner), id("group", &raw.group));
    let allow_unsealed = at.key("allow_unsealed").switch(&raw.allow_unsealed, false);
    let memory = at.key("memory_max").number(&raw.memory_max, MEMORY_MAX_MIB, Some(MEMORY_DEFAULT_MIB));
    let path = socket.and_then(SocketAddr::path);
    match socket {
        Some(socket) if path.is_some() => {
            if let Some(mode) = mode {
                sockets.agree(at, "mode", socket, raw.mode.given_or("\"0660\""), Some(mode));
            }
            for (key, field, value) in [("owner", &raw.owner, owner), ("group", &raw.group, group)] {
                if let Some(value) = value {
                    sockets.agree(at, key, socket, field.given_or("the daemon's"), value);
                }
            }
        }
        Some(_) => {
            left_out(at, &[("mode", raw.mode.given())], "an abstract socket has no permission bits");
            left_out(at, &[("owner", raw.owner.given())], "an abstract socket has no owner");
            left_out(at, &[("group", raw.group.given())], "an abstract socket has no group");
        }
        None => {}
    }
    Some(MemifRole::Server {
        mode: mode.filter(|_| path.is_some()),
        owner: owner?,
        group: group?,
        allow_unsealed: allow_unsealed?,
        memory_bytes_max: memory? << 20,
    })
}

fn client(
    at: &At<'_>,
    raw: &Memif,
    queue_pairs: Option<u16>,
    chains: Option<bool>,
    network: Option<(u16, String)>,
) -> Option<MemifRole> {
    let ring_size = at.key("ring_size").optional(&raw.ring_size, RING_SIZE_DEFAULT, RING_SIZE, |size| {
        u32::try_from(*size)
            .ok()
            .filter(|size| size.is_power_of_two() && RINGS_LOG2.contains(&size.trailing_zeros()))
    });
    let buffer_bytes =
        at.key("buffer_size").number(&raw.buffer_size, 2048..=16384, Some(BUFFER_SIZE_DEFAULT));
    if let (Some(size), Some(pairs)) = (ring_size, queue_pairs)
        && slots(pairs, size) >= SLOTS_LIMIT
        && let Some(most) =
            RINGS_LOG2.rev().map(|log2| 1 << log2).find(|most| slots(pairs, *most) < SLOTS_LIMIT)
    {
        let rule = format!(
            "at most {most} with queue_pairs = {pairs}: 2 × queue_pairs × ring_size must stay below 65536"
        );
        at.key("ring_size").invalid(raw.ring_size.given_or("1024"), rule);
    }
    if let (Some(bytes), Some(false), Some((mtu, path))) = (buffer_bytes, chains, network)
        && bytes < buffer_least(mtu)
    {
        let least = buffer_least(mtu);
        let rule =
            format!("at least {least}, or chains = true: {path} + {ETHERNET_BYTES} bytes must fit a buffer");
        at.key("buffer_size").invalid(raw.buffer_size.given_or("2048"), rule);
    }
    let uid = at.key("tenant_uid");
    let tenant_uid = uid.optional(&raw.tenant_uid, None, values::OWNER, |id| values::owner(*id).map(Some))?;
    let ring_log2 = ring_size?.trailing_zeros() as u8;
    Some(MemifRole::Client { ring_log2, buffer_bytes: buffer_bytes?, tenant_uid })
}

/// A packet of this MTU with its Ethernet header.
fn buffer_least(mtu: u16) -> u32 {
    u32::from(mtu) + ETHERNET_BYTES
}

/// Why a network with this MTU cannot be reached by it, if its buffers are too small.
pub(super) fn too_small(memif: &MemifPlan, mtu: u16) -> Option<String> {
    let MemifRole::Client { buffer_bytes, .. } = memif.role else { return None };
    let least = buffer_least(mtu);
    (!memif.chains && buffer_bytes < least).then(|| {
        format!("its buffer_size of {buffer_bytes} must be at least {least} for the network's mtu of {mtu}, or chains = true")
    })
}

/// In all rings, both ways.
fn slots(queue_pairs: u16, ring_size: u32) -> u32 {
    2 * u32::from(queue_pairs) * ring_size
}

/// Never shows what was given.
fn secret(at: &At<'_>, field: &Field<crate::raw::Secret>) -> Option<Vec<u8>> {
    if matches!(field, Field::Absent) {
        return Some(Vec::new());
    }
    let secret = field.value().and_then(|text| values::secret(text.0.as_deref()?));
    if secret.is_none() {
        at.invalid("(not shown)", values::SECRET);
    }
    secret
}
