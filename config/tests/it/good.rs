//! A good file for the tests to spoil: a line of it is replaced, and exactly one error comes, word by word.

use peregrine_config::parse;

/// Two networks, five endpoints, and every key at least once.
pub const GOOD: &str = r#"
[[workers]]
core = 1

[uplink]
interface = "eth0"
queues = "all"
mode = "copy"
local = "192.0.2.1"
port = 4789
ttl = 64
source_ports = [49152, 65535]
chunk_size = 2048
ring_size = 2048
early = false

[[networks]]
name = "blue"
vni = 42
mtu = 1450
remotes = ["192.0.2.2", "192.0.2.3"]
learning = true
ageing = "300s"
fdb_limit = 4096
static_macs = [{ mac = "02:00:00:00:00:99", remote = "192.0.2.2" }]

[[networks]]
name = "green"
vni = 43

[[endpoints]]
name = "web"
network = "blue"
mac = "02:00:00:00:00:01"
addresses = ["10.42.0.1", "fd00::1"]
anti_spoofing = true
memif = { socket = "/run/peregrine/memif.sock", id = 0, mode = "0660", secret = "s", allow_unsealed = true }

[[endpoints]]
name = "database"
network = "blue"
mac = "02:00:00:00:00:02"
addresses = ["10.42.0.2"]
memif = { socket = "/run/peregrine/memif.sock", id = 1, mode = "0660" }

[[endpoints]]
name = "cache"
network = "green"
mac = "02:00:00:00:00:03"
memif = { socket = "@green" }

[[endpoints]]
name = "store"
network = "blue"
mac = "02:00:00:00:00:04"

[endpoints.memif]
socket = "/run/tenants/store.sock"
role = "client"
queue_pairs = 2
ring_size = 512
buffer_size = 4096

[[endpoints]]
name = "log"
network = "blue"
mac = "02:00:00:00:00:05"

[endpoints.memif]
socket = "/run/log.sock"
role = "server"
queue_pairs = 8
chains = true
mode = "0600"
owner = 1000
group = 0
allow_unsealed = false
memory_max = 256
"#;

/// The good file with `line`, which stands in it once, replaced.
pub fn replaced(line: &str, instead: &str) -> String {
    assert_eq!(GOOD.matches(line).count(), 1, "`{line}` must stand in the good file once");
    GOOD.replacen(line, instead, 1)
}

/// `(line of the good file, what stands there instead, the error)`
pub type Case = (&'static str, &'static str, &'static str);

/// What the address of a VTEP must be.
pub const VTEP: &str = "must be a VTEP's IP address, such as \"192.0.2.1\" or \"2001:db8::1\" (not multicast, broadcast, loopback or unspecified)";

/// Each case is refused with its error and the rule that all share.
pub fn refused(cases: &[Case], rule: &str) {
    for (line, instead, want) in cases {
        let errors = match parse(&replaced(line, instead), "t") {
            Ok(plan) => panic!("`{instead}` is accepted: {plan:?}"),
            Err(errors) => errors.to_string(),
        };
        assert_eq!(errors, format!("t: {want}{rule}"), "`{instead}`");
    }
}
