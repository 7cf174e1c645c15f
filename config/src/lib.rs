//! Peregrine's configuration: a TOML file in, a checked [`Plan`] out, or all mistakes at once.
//!
//! [`load`] and [`parse`] are called by `peregrine run` and `peregrine check`. Nothing here asks the machine: that
//! the interface, the address or the core exist is seen at start. A plan that comes out keeps every limit below,
//! and its indexes are in range. A mistake is one line with the key path, the value and what would be right:
//!
//! ```text
//! peregrine.toml: networks[1].vni = 16777216: must be a number from 1 to 16777215
//! peregrine.toml: endpoints[0].adresses: unknown key: did you mean `addresses`?
//! ```
//!
//! What is not TOML at all is told alone, with line and column. Secrets are never shown.
//!
//! # The format
//!
//! `examples/` holds files to start from; `full.toml` has every key. Keys without a default are required.
//!
//! | key | what, unit | default | limits |
//! |---|---|---|---|
//! | `control_socket` | path | `"/run/peregrine/control.sock"` | absolute, 107 bytes, no `..` |
//! | `control_group` | group (gid) that owns that socket and may change what runs, besides root and the daemon's user | none | 0 to 4294967294 |
//! | `state` | file in which networks, ports and endpoints that were declared at the control socket are kept; beside it `FILE.journal`, what was changed since it was written, and `FILE.last`, as it was before | none: they are gone with the process | absolute, 4000 bytes, no `..` |
//! | `placement` | how flows and their steps are spread over several workers | `"balanced"` | `"balanced"`, `"run-to-completion"`, `"static"`, `"static-hashed"` |
//! | `balance_threshold` | percent of a worker's cycles above which `"balanced"` relieves it | 85 | 50 to 99 |
//! | `idle_after` | for so long a worker with `idle = "adaptive"` looks for work in vain at full speed; after twice that it sleeps | "50us" | "1us" to "1s" |
//! | `urgent_quota` | bursts of more urgent classes that a worker takes in a row while one of the others waits | 16 | 1 to 1024 |
//! | `default_class` | class of packets that no rule and no network gives another | `"normal"` | one of the classes; required if none of them is `"normal"` |
//! | `trusted_remotes` | VTEPs whose outer DSCP rules may ask for | none | remotes of networks, unique |
//! | **`[[classes]]`** | the priority classes, the most urgent first; or `classes`, a list of names and such tables | `["urgent", "normal"]` | 1 to 4 |
//! | `name` | | | as a network's, unique |
//! | `order` | how its packets go before those of the classes behind it: through all stages at once, first at each stage, or not | `"sync"` | `"sync"`, `"batch"`, `"fifo"`; not of the last class |
//! | `share` | percent of each worker's time that it gets at least, while it has packets there | 0 | 0 to 100; at most 100 over all classes |
//! | `dscp` | DSCP of the outer header of what is sent | 0 | 0 to 63 |
//! | **`[[workers]]`** | a pinned thread each | | 1 to 31, one for each core |
//! | `core` | CPU number | | 0 to 1023, each once |
//! | `nice` | priority against other programs on that CPU | the process's | -20 (highest) to 19 |
//! | `idle` | while there is nothing to do: look for work all the time (`"busy"`), or sleep (`"adaptive"`) | `"busy"` | those two |
//! | **`[uplink]`** | the interface towards the underlay; several: `[[uplink]]` | | 1 to 4 |
//! | `interface` | name | | 1 to 15 bytes, no space, `/`, `:`; unique |
//! | `vlan` | IEEE 802.1Q tag of the underlay's frames, which the card must leave in them (`ethtool -K IF rxvlan off txvlan off`); `local` is then on the kernel's VLAN device above the interface | untagged | 1 to 4094 |
//! | `queues` | receive queues | `"all"` | `"all"` or a list of different numbers from 0 to 4095 |
//! | `mode` | how AF_XDP is bound | `"prefer-zero-copy"` | `"require-zero-copy"`, `"prefer-zero-copy"`, `"copy"`, `"generic"`; the first not beside the last two |
//! | `local` | our VTEP address, or a list of them | | 1 to 8, IPv4 or IPv6 unicast, unique |
//! | `port` | UDP port of VXLAN, of networks without one of their own | 4789 | 1 to 65535, not one of `source_ports` |
//! | `ttl` | outer TTL, hops | 64 | 1 to 255 |
//! | `source_ports` | UDP source ports, first and last | `[49152, 65535]` | 1 to 65535, in order |
//! | `udp_checksum` | whether what is sent has an outer UDP checksum; `"auto"`: over IPv6 only | `"auto"` | `"auto"`, `true`, `false` |
//! | `accept_zero_checksum` | take frames over IPv6 that have none | `true` | |
//! | `chunk_size` | UMEM chunk, bytes | 2048 | 2048 or 4096, the same for all uplinks |
//! | `ring_size` | descriptors in each ring | 2048 | a power of two from 64 to 32768, the same for all uplinks |
//! | `early` | rings of their own for urgent frames, from the driver on | `false` | `true`, `false`, `"if-possible"` |
//! | `fix` | settings of the interface that break or slow AF_XDP (`peregrine doctor` tells them) are set right at the start and put back at the end | `false` | |
//! | **`[capacity]`** | room for networks and endpoints that come while it runs | | |
//! | `networks` | how many there may be at the same time | 256 | 1 to 4096 |
//! | `endpoints` | how many there may be at the same time; some 1.5 KB for each in each worker | 4096 | 1 to 65534 |
//! | `addresses` | learned addresses of networks that come: the sum of their `fdb_limit`s; some 50 bytes for each | 65536 | 1 to 16777216 |
//! | **`[pools]`** | what is made ready before it is asked for; when half is left, or nothing was taken for a second, more is made | | |
//! | `containers` | network namespaces with an interface, for `create_namespace`; each takes some 2.2 MB | 0 | 0 to 4096 |
//! | `memif_regions` | memory for tenants that we connect to, with the default `ring_size`, `buffer_size` and `queue_pairs`; 4.1 MiB each | 0: none | 0 to 4096 |
//! | **`[[networks]]`** | an overlay network | | 1 to 4096 |
//! | `name` | | | 1 to 63 of `A-Z a-z 0-9 _ . -`, unique |
//! | `vni` | VXLAN network identifier | | 1 to 16777215, unique |
//! | `mtu` | largest inner IP packet, bytes | 1450 | 576 to 9000. What does not fit a chunk with its outer headers (above 1728 over IPv4 in chunks of 2048) needs a driver with multi-buffer XDP: seen at start |
//! | `port` | its own UDP port | the uplink's | 1 to 65535, none of the uplinks' `source_ports` |
//! | `local` | VTEP address that its frames are sent from | the first of the remote's IP version, of the uplink that the remote is reached over | one of the uplinks' `local` |
//! | `remotes` | VTEPs that broadcast goes to | `[]` | at most 1024, unicast, unique, no `local`, each of an IP version that we have a `local` of; 65535 different ones over all networks |
//! | `any_remote` | other VTEPs may send to it, too, and get what goes to addresses behind them | `false` | |
//! | `reserved_bits` | frames whose VXLAN header has reserved bits set | `"ignore"` | `"ignore"`, `"refuse"` |
//! | `inner_vlan` | inner frames with a VLAN tag, both ways | `"drop"` | `"drop"`, `"strip"`, `"carry"` |
//! | `dscp` | DSCP of the outer header: that of the packet's class, the inner one, or always the same | `"class"` | `"class"`, `"copy"`, 0 to 63 |
//! | `suppression` | answer tenants' ARP requests and neighbour solicitations for known addresses | `true` | |
//! | `gateways` | addresses that "packet too big" is told from; a router whose addresses are known must have one of them: its station is answered for and announced as a router | the packet's destination | at most one of each IP version |
//! | `subnets` | prefixes of its stations' addresses: the length of those that containers get; one address where none holds it | `[]` | at most 16, each once |
//! | `clamp_mss` | lower the MSS that TCP connections announce to what `mtu` holds | `false` | |
//! | `learning` | learn MAC addresses behind remotes | `true` | |
//! | `ageing` | life of a learned address | `"300s"` | `"1s"` to `"24h"`, in `s`, `m` or `h` |
//! | `fdb_limit` | learned addresses | 4096 | 1 to 1000000; 16777216 over all networks |
//! | `move_limit` | moves of a learned address between remotes that are both known or both discovered in 10 s, after which it is held where it is; 0: none | 5 | 0 to 255 |
//! | `move_hold` | for so long | `"30s"` | as `ageing` |
//! | `static_macs` | tables of `mac`, `remote` and, if wanted, `addresses`, which are answered for: never one that moves between stations (VRRP) | `[]` | at most 65536; `mac` of a station, unique in the network; `remote` one of `remotes`; at most 64 `addresses`, each once, none of an endpoint of the network; one that several have is answered for nobody |
//! | `class` | class of its packets that no rule names | `default_class` | one of the classes |
//! | **`[[endpoints]]`** | a tenant's address | | at most 65534 |
//! | `name` | | | as a network's, unique |
//! | `network` | a network's name | | |
//! | `mac` | Ethernet address | | of a station, unique in the network |
//! | `addresses` | IP addresses, v4 or v6, which are announced and, while it is connected, answered for; never one that moves between stations (VRRP) | `[]` | at most 64, unicast, unique in the network |
//! | `anti_spoofing` | drop other source MACs | `true` | |
//! | `storm_limit` | frames a second that may be flooded | none | 1 to 1000000 |
//! | `announce` | announce its addresses when it connects | `true` | |
//! | `hairpin` | frames from one endpoint of a port to another go back to it | `false` | |
//! | **`memif`** | table: how it is attached | | |
//! | `socket` | path, or `"@name"` for abstract | | absolute, 107 bytes, no `..`; not `control_socket` |
//! | `id` | interface id on the socket | 0 | 0 to 4294967295, unique on the socket |
//! | `secret` | what the client must know | none | 1 to 24 bytes |
//! | `role` | which side we are: as server we listen and map the tenant's memory, as client we connect and bring it | `"server"` | `"server"`, `"client"`; the same for all on one socket |
//! | `queue_pairs` | rings in each direction: as server the most we take, as client what we offer | 1 | 1 to 8 |
//! | `chains` | packets in several buffers, at most 16; the peer must know them, too | `false` | |
//! | `mode` | server: permission bits of a path socket | `"0660"` | `"0000"` to `"0777"`, the same for all on one socket |
//! | `owner` | server: owner of a path socket, uid | the daemon's | 0 to 4294967294, the same for all on one socket |
//! | `group` | server: group of a path socket, gid | the daemon's | 0 to 4294967294, the same for all on one socket |
//! | `allow_unsealed` | server: accept memory that the tenant could truncate | `false` | |
//! | `memory_max` | server: most memory of the tenant, MiB | 128 | 1 to 4096 |
//! | `ring_size` | client: slots of each ring | 1024 | a power of two from 32 to 16384; 2 × `queue_pairs` × `ring_size` below 65536 |
//! | `buffer_size` | client: bytes of each buffer | 2048 | 2048 to 16384; without `chains` at least the network's `mtu` + 18 |
//! | `tenant_uid` | client: user that the listening process must have, uid | any | 0 to 4294967294 |
//! | **`veth`** | table, instead of `memif`: an interface in a container's network namespace, which we make | | the network's `mtu` at most 3400 |
//! | `namespace` | the name that `ip netns` knows, or a path; looked for again and again while it is not there | | a name is 1 to 63 of `A-Z a-z 0-9 _ . -`; a path is absolute |
//! | `pid` | instead of `namespace`: that of a process; not made again when it is gone | | 1 to 2147483647 |
//! | `create_namespace` | the namespace is made, and goes with the endpoint | `false` | `true` only with a name |
//! | `interface` | its name there | `"eth0"` | 1 to 15 bytes, no space, `/`, `:`; unique in the namespace |
//! | `default_route` | default routes by the network's `gateways` | `true` | |
//! | `ring_size` | packets that may wait each way; not with `create_namespace` | 256 | a power of two from 64 to 4096 |
//! | **`[[rules]]`** | which packets belong to a class: the first that matches decides, and matches if all that it names is so | | at most 1024 |
//! | `class` | where they belong | | one of the classes |
//! | `network` | they are on it | any | a network's name |
//! | `endpoint` | its tenant sends or receives them | any | an endpoint's name; `network` then its network or left out |
//! | `dscp` | DSCP of the inner IP header | any | 0 to 63, a range `"40-47"`, or a list of both |
//! | `protocol` | inner IP protocol; in IPv6 the next header: an extension header hides the protocol | any | `"tcp"`, `"udp"`, `"icmp"`, `"icmpv6"`, `"sctp"` or 0 to 255 |
//! | `source_port` | port of the sender; fragments have none | any | 0 to 65535 or a range `"5000-5999"`; not with a protocol without ports |
//! | `destination_port` | port of the receiver | any | as `source_port` |
//! | `port` | either port | any | as `source_port` |
//! | `source` | inner IP address of the sender | any | an address or a prefix, IPv4 or IPv6; one version in a rule |
//! | `destination` | inner IP address of the receiver | any | as `source` |
//! | `address` | either address | any | as `source` |
//! | `outer_dscp` | DSCP of the outer header, from one of `trusted_remotes` | any | as `dscp` |
//!
//! What is not a mistake and hardly meant, such as a rule that no packet can reach because an earlier one matches all that it does, is in
//! [`warnings`].
//!
//! # Rules alone
//!
//! The rules of a daemon that runs can be replaced: [`rules_file`] reads a file with nothing but `[[rules]]`, [`rules()`] checks them against
//! the plan that runs, [`written`] and [`rules_toml`] show them as they are written in a file.
//!
//! # One object alone
//!
//! Networks, ports and endpoints can be declared while a daemon runs: [`Checker`] checks each by itself, with the path at which it stands in
//! a request or in the state file. What may be had once over all of them is for its caller, who knows them all.
//!
//! # The way of a file
//!
//! text → `syntax` (TOML or not) → `raw` (keys and types, nothing refused) → `check` (every key read at its `at::At`, every mistake
//! reported) → [`Plan`].

mod at;
mod check;
mod error;
mod nearest;
mod raw;
mod rules;
mod syntax;
mod values;
mod warning;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use peregrine_dataplane::plan::Plan;

pub use crate::check::{Carrier, Checker, DeclaredEndpoint, DeclaredPort, Networks, unfit as port_unfit};
pub use crate::error::{ConfigError, ConfigErrors};
pub use crate::rules::{RuleTable, RulesFile, Written, rules, rules_file, rules_toml, written};
pub use crate::values::vtep_rule_of as vtep_rule;
pub use crate::warning::{Warning, rule_warnings, warnings};

/// Where the daemon listens for `peregrine status` and the like, unless the file says otherwise.
pub const CONTROL_SOCKET: &str = "/run/peregrine/control.sock";

/// Longer files are refused unread. All limits used up at once would be longer still; nobody has that.
pub const FILE_BYTES_MAX: usize = 32 << 20;

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Plan, ConfigErrors> {
    let origin = path.display().to_string();
    parse(&read(path, &origin)?, &origin)
}

/// The text of a file that is not too long.
fn read(path: &Path, origin: &str) -> Result<String, ConfigErrors> {
    let mut bytes = Vec::new();
    // One byte more than the limit, so that `parse` sees it passed.
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    if let Err(source) = read {
        return Err(ConfigErrors::one(origin, ConfigError::Read { source }));
    }
    if bytes.len() > FILE_BYTES_MAX {
        return Err(ConfigErrors::one(origin, ConfigError::TooLong { limit_bytes: FILE_BYTES_MAX }));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (line, column) = syntax::position(error.as_bytes(), error.utf8_error().valid_up_to());
        ConfigErrors::one(origin, ConfigError::NotText { line, column })
    })
}

/// Checks a text; `origin` is what errors call it, such as a file's name.
pub fn parse(text: &str, origin: &str) -> Result<Plan, ConfigErrors> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ConfigErrors::one(origin, ConfigError::TooLong { limit_bytes: FILE_BYTES_MAX }));
    }
    let file: raw::File = syntax::read(text).map_err(|error| ConfigErrors::one(origin, error))?;
    let report = at::Report::default();
    match check::file(&file, &report) {
        Some(plan) => Ok(plan),
        None => Err(report.into_errors(origin)),
    }
}
