//! `peregrine network`, `port` and `endpoint`: what is declared, shown and changed while packets flow.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use peregrine_dataplane::types::MacAddr;
use serde_json::{Value, json};

use super::{Ask, print};
use crate::client::{CHANGE_TIMEOUT, Client};
use crate::error::Error;
use crate::model::types::{
    ChangeRequest, EndpointTable, ListRequest, MemifTable, Move, NetworkTable, NumberOrText, PortTable, Step,
    VethTable,
};
use crate::render::objects as render;

/// What happens to networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Show the networks: the config's, and those that were added.
    List(List),
    /// Add a network.
    Add(Box<Network>),
    /// Remove networks: all of them, or none if there is an endpoint on one of them. Those of the config stay.
    #[command(visible_alias = "del")]
    Remove(Names),
}

/// What happens to ports.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Show the ports: those that were added, and those that endpoints have of their own.
    List(List),
    /// Add a port: its socket is there before an endpoint is put on it.
    Add(Box<Port>),
    /// Remove ports: all of them, or none if one of them carries an endpoint.
    #[command(visible_alias = "del")]
    Remove(Names),
}

/// What happens to endpoints.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Show the endpoints: the config's, and those that were added.
    List(List),
    /// Add an endpoint, on a port or with a memif or a veth of its own.
    Add(Box<Endpoint>),
    /// Give an endpoint other keys: what is not given has its default afterwards. Its tenant stays connected unless its network or port is another one.
    Set(Box<Endpoint>),
    /// Put an endpoint on another port, with everything else as it is.
    Move {
        /// The endpoint.
        #[arg(value_name = "ENDPOINT")]
        name: String,
        /// The port.
        #[arg(value_name = "PORT")]
        port: String,
        /// How.
        #[command(flatten)]
        how: How,
    },
    /// Remove endpoints: all of them, or none. Their tenants are disconnected.
    #[command(visible_alias = "del")]
    Remove(Names),
}

/// Which are shown.
#[derive(Debug, Args)]
pub struct List {
    /// Only this one.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Only what is on this network.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// How something is changed.
#[derive(Debug, Args)]
pub struct How {
    /// Say whether it could be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// Objects, by name.
#[derive(Debug, Args)]
pub struct Names {
    /// Their names.
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// A network. Keys that are not here can be given with `peregrine apply`.
#[derive(Debug, Args)]
pub struct Network {
    /// Its name.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Its number on the wire, 1 to 16777215.
    #[arg(long, value_name = "NUMBER")]
    pub vni: u32,
    /// The largest inner IP packet, in bytes.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// A VTEP that may send to it and that broadcast goes to; as often as there are some.
    #[arg(long = "remote", value_name = "IP")]
    pub remotes: Vec<IpAddr>,
    /// Any other VTEP may send to it, too.
    #[arg(long)]
    pub any_remote: bool,
    /// Its own UDP port.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The VTEP address from which its frames are sent.
    #[arg(long, value_name = "IP")]
    pub local: Option<IpAddr>,
    /// Whose address "packet too big" is told from, and by whom containers have their default route; at most one of each IP version.
    #[arg(long = "gateway", value_name = "IP")]
    pub gateways: Vec<IpAddr>,
    /// Learn no addresses.
    #[arg(long)]
    pub no_learning: bool,
    /// Flood ARP requests and neighbour solicitations, whatever is known.
    #[arg(long)]
    pub no_suppression: bool,
    /// Lower the MSS that TCP connections announce to what the MTU holds.
    #[arg(long)]
    pub clamp_mss: bool,
    /// Learned addresses are forgotten after this long, such as "300s".
    #[arg(long, value_name = "TIME")]
    pub ageing: Option<String>,
    /// At most so many learned addresses.
    #[arg(long, value_name = "NUMBER")]
    pub fdb_limit: Option<u32>,
    /// Inner VLAN tags: drop, strip or carry.
    #[arg(long, value_name = "WORD")]
    pub inner_vlan: Option<String>,
    /// Reserved bits that are set: ignore or refuse.
    #[arg(long, value_name = "WORD")]
    pub reserved_bits: Option<String>,
    /// DSCP of the outer header: 0 to 63, or copy; without it that of the packet's class.
    #[arg(long, value_name = "NUMBER")]
    pub dscp: Option<String>,
    /// The class of packets that no rule names.
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// A prefix of its stations' addresses, such as 10.42.0.0/16: of which length those are that containers get; as often as it has some.
    #[arg(long = "subnet", value_name = "PREFIX")]
    pub subnets: Vec<String>,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// A port.
#[derive(Debug, Args)]
pub struct Port {
    /// Its name.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The memif socket: a path, or a name in the abstract namespace after an `@`.
    #[arg(long = "memif", value_name = "SOCKET", required_unless_present = "namespace")]
    pub memif_socket: Option<String>,
    /// The rest of its memif.
    #[command(flatten)]
    pub memif: Memif,
    /// Instead of memif: a veth.
    #[command(flatten)]
    pub veth: Veth,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// An endpoint.
#[derive(Debug, Args)]
pub struct Endpoint {
    /// Its name.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The network it is on.
    #[arg(long, value_name = "NETWORK")]
    pub network: String,
    /// Its Ethernet address.
    #[arg(long, value_name = "ADDRESS")]
    pub mac: MacAddr,
    /// An IP address of it; as often as it has some.
    #[arg(long = "address", value_name = "IP")]
    pub addresses: Vec<IpAddr>,
    /// The port that carries it.
    #[arg(long, value_name = "PORT", required_unless_present_any = ["memif_socket", "namespace"])]
    pub port: Option<String>,
    /// Instead of a port: a memif socket of its own, a path or a name in the abstract namespace after an `@`.
    #[arg(long = "memif", value_name = "SOCKET", conflicts_with = "port")]
    pub memif_socket: Option<String>,
    /// The rest of its memif.
    #[command(flatten)]
    pub memif: Memif,
    /// Instead of a port: a veth of its own.
    #[command(flatten)]
    pub veth: Veth,
    /// Let it send from other source addresses.
    #[arg(long)]
    pub no_anti_spoofing: bool,
    /// Frames a second of its that may be flooded.
    #[arg(long, value_name = "FRAMES")]
    pub storm_limit: Option<u32>,
    /// Do not announce its addresses when it connects.
    #[arg(long)]
    pub no_announce: bool,
    /// Frames from one endpoint of its port to another go back to it, as with a bridge's hairpin mode.
    #[arg(long)]
    pub hairpin: bool,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// What a memif has beside its socket.
#[derive(Debug, Default, PartialEq, Args)]
pub struct Memif {
    /// The interface id on the socket (0).
    #[arg(long, value_name = "NUMBER", requires = "memif_socket")]
    pub id: Option<u32>,
    /// A file with what the client must know, or - for standard input: not on the command line, which anybody can read.
    #[arg(long, value_name = "FILE", requires = "memif_socket")]
    pub secret_file: Option<PathBuf>,
    /// server: the tenant connects; client: it listens, and we connect.
    #[arg(long, value_name = "ROLE", requires = "memif_socket")]
    pub role: Option<String>,
    /// Rings in each direction, 1 to 8.
    #[arg(long, value_name = "NUMBER", requires = "memif_socket")]
    pub queue_pairs: Option<u16>,
    /// Take and send packets in several buffers.
    #[arg(long, requires = "memif_socket")]
    pub chains: bool,
    /// As server: permission bits of the socket file, such as 0660.
    #[arg(long, value_name = "BITS", requires = "memif_socket")]
    pub mode: Option<String>,
    /// As server: owner (uid) of the socket file.
    #[arg(long, value_name = "UID", requires = "memif_socket")]
    pub owner: Option<u32>,
    /// As server: group (gid) of the socket file.
    #[arg(long, value_name = "GID", requires = "memif_socket")]
    pub group: Option<u32>,
    /// As server: accept memory that the tenant could take away.
    #[arg(long, requires = "memif_socket")]
    pub allow_unsealed: bool,
    /// As server: most memory of the tenant, in MiB, 1 to 4096.
    #[arg(long, value_name = "MIB", requires = "memif_socket")]
    pub memory_max: Option<u64>,
    /// As client: slots of each ring, a power of two.
    #[arg(long, value_name = "SLOTS", requires = "memif_socket")]
    pub ring_size: Option<u32>,
    /// As client: bytes of each buffer.
    #[arg(long, value_name = "BYTES", requires = "memif_socket")]
    pub buffer_size: Option<u32>,
    /// As client: the user (uid) that the tenant's process must have.
    #[arg(long, value_name = "UID", requires = "memif_socket")]
    pub tenant_uid: Option<u32>,
}

/// A veth pair into a container's network namespace.
#[derive(Debug, Default, PartialEq, Args)]
pub struct Veth {
    /// A network namespace, into which a veth is made: the name that `ip netns` knows, a path, or pid:NUMBER for that of a process.
    #[arg(long, value_name = "NAMESPACE", conflicts_with_all = ["memif_socket"])]
    pub namespace: Option<String>,
    /// Make the namespace, and remove it with the port.
    #[arg(long, requires = "namespace")]
    pub create_namespace: bool,
    /// The name of the container's end (eth0).
    #[arg(long, value_name = "NAME", requires = "namespace")]
    pub interface: Option<String>,
    /// Set no default routes by the network's gateways.
    #[arg(long, requires = "namespace")]
    pub no_default_route: bool,
    /// Packets that may wait each way, a power of two from 64 to 4096 (256).
    #[arg(long, value_name = "PACKETS", requires = "namespace")]
    pub veth_ring_size: Option<u32>,
}

impl Veth {
    fn table(&self) -> Option<VethTable> {
        let namespace = self.namespace.as_ref()?;
        let pid = namespace.strip_prefix("pid:").and_then(|pid| pid.parse().ok());
        Some(VethTable {
            namespace: pid.is_none().then(|| namespace.clone()),
            pid,
            create_namespace: self.create_namespace.then_some(true),
            interface: self.interface.clone(),
            default_route: self.no_default_route.then_some(false),
            ring_size: self.veth_ring_size,
        })
    }
}

/// The longest secret, and a line feed.
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// Does what `peregrine network` says.
///
/// # Errors
/// What the daemon says.
pub fn network(command: &NetworkCommand) -> Result<(), Error> {
    match command {
        NetworkCommand::List(which) => which.show("network", render::networks),
        NetworkCommand::Add(network) => {
            let done = format!("network {} is there", network.name);
            change(vec![Step::AddNetwork(network.table())], &network.how, &done)
        }
        NetworkCommand::Remove(which) => which.remove("network", Step::RemoveNetwork),
    }
}

/// Does what `peregrine port` says.
///
/// # Errors
/// What the daemon says; or a file that cannot be read.
pub fn port(command: &PortCommand) -> Result<(), Error> {
    match command {
        PortCommand::List(which) => which.show("port", render::ports),
        PortCommand::Add(port) => {
            let memif = port.memif_socket.as_ref().map(|socket| port.memif.table(socket)).transpose()?;
            let table = PortTable { name: port.name.clone(), memif, veth: port.veth.table() };
            change(vec![Step::AddPort(table)], &port.how, &format!("port {} is there", port.name))
        }
        PortCommand::Remove(which) => which.remove("port", Step::RemovePort),
    }
}

/// Does what `peregrine endpoint` says.
///
/// # Errors
/// What the daemon says; or a file that cannot be read.
pub fn endpoint(command: &EndpointCommand) -> Result<(), Error> {
    match command {
        EndpointCommand::List(which) => which.show("endpoint", render::endpoints),
        EndpointCommand::Add(endpoint) => {
            let done = format!("endpoint {} is on network {}", endpoint.name, endpoint.network);
            change(vec![Step::AddEndpoint(endpoint.table()?)], &endpoint.how, &done)
        }
        EndpointCommand::Set(endpoint) => {
            let done = format!("endpoint {} is as it was said", endpoint.name);
            change(vec![Step::SetEndpoint(endpoint.table()?)], &endpoint.how, &done)
        }
        EndpointCommand::Move { name, port, how } => {
            let step = Step::MoveEndpoint(Move { name: name.clone(), port: port.clone() });
            change(vec![step], how, &format!("endpoint {name} is on port {port}"))
        }
        EndpointCommand::Remove(which) => which.remove("endpoint", Step::RemoveEndpoint),
    }
}

/// All steps or none; tells what was done.
fn change(changes: Vec<Step>, how: &How, done: &str) -> Result<(), Error> {
    let request = ChangeRequest { changes, dry_run: how.dry_run, generation: None };
    let mut client = Client::connect(&how.ask.socket)?;
    let answer = client.call_within("change", &json!(request), CHANGE_TIMEOUT).map_err(by_key)?;
    print(&match (how.ask.json, how.dry_run) {
        (true, _) => format!("{answer}\n"),
        (false, true) => "it can be done: nothing was changed\n".to_owned(),
        (false, false) => format!("{done}\n"),
    })
}

/// The path of a mistake in a request, without what was not written by whoever reads it: `changes[0].add_endpoint.mac` is `mac`.
fn by_key(error: Error) -> Error {
    let short = |line: String| match line.split_once('.') {
        Some((step, rest)) if step.starts_with("changes[") => {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            rest.trim_start_matches(is_name).trim_start_matches(['.', ' ', '=', ':']).to_owned()
        }
        _ => line,
    };
    match error {
        Error::Refused { lines, is_invalid } => {
            Error::Refused { lines: lines.into_iter().map(short).collect(), is_invalid }
        }
        other => other,
    }
}

impl List {
    /// All pages as one.
    fn show(&self, kind: &str, human: impl FnOnce(&Value) -> String) -> Result<(), Error> {
        let method = format!("{kind}.list");
        let mut request = ListRequest { name: self.name.clone(), network: self.network.clone(), after: None };
        let mut client = Client::connect(&self.ask.socket)?;
        let mut listed: Vec<Value> = Vec::new();
        let mut answer = loop {
            let mut answer = client.call_with(&method, &json!(request))?;
            listed.append(answer[format!("{kind}s")].as_array_mut().unwrap_or(&mut Vec::new()));
            match answer.as_object_mut().and_then(|answer| answer.remove("next")) {
                Some(Value::String(next)) => request.after = Some(next),
                _ => break answer,
            }
        };
        answer["total"] = listed.len().into();
        answer[format!("{kind}s")] = listed.into();
        print(&if self.ask.json { format!("{answer}\n") } else { human(&answer) })
    }
}

impl Names {
    fn remove(&self, kind: &str, step: fn(String) -> Step) -> Result<(), Error> {
        let done: Vec<String> = self.names.iter().map(|name| format!("{kind} {name} is gone")).collect();
        change(self.names.iter().cloned().map(step).collect(), &self.how, &done.join("\n"))
    }
}

impl Network {
    fn table(&self) -> NetworkTable {
        let dscp = self.dscp.as_ref().map(|text| match text.parse() {
            Ok(number) => NumberOrText::Number(number),
            Err(_) => NumberOrText::Text(text.clone()),
        });
        NetworkTable {
            name: self.name.clone(),
            vni: self.vni,
            mtu: self.mtu,
            port: self.port,
            local: self.local,
            remotes: self.remotes.clone(),
            any_remote: self.any_remote.then_some(true),
            reserved_bits: self.reserved_bits.clone(),
            inner_vlan: self.inner_vlan.clone(),
            dscp,
            suppression: self.no_suppression.then_some(false),
            gateways: self.gateways.clone(),
            clamp_mss: self.clamp_mss.then_some(true),
            learning: self.no_learning.then_some(false),
            ageing: self.ageing.clone(),
            fdb_limit: self.fdb_limit,
            class: self.class.clone(),
            subnets: self.subnets.clone(),
            ..NetworkTable::default()
        }
    }
}

impl Endpoint {
    fn table(&self) -> Result<EndpointTable, Error> {
        if self.memif_socket.is_none() && self.memif != Memif::default() {
            // Where two arguments exclude each other, clap takes what requires one of them for satisfied.
            let text = "--id and the like go with --memif: a port has its own".to_owned();
            return Err(Error::Refused { lines: vec![text], is_invalid: true });
        }
        Ok(EndpointTable {
            name: self.name.clone(),
            network: self.network.clone(),
            mac: self.mac.to_string(),
            addresses: self.addresses.clone(),
            anti_spoofing: self.no_anti_spoofing.then_some(false),
            storm_limit: self.storm_limit,
            announce: self.no_announce.then_some(false),
            hairpin: self.hairpin.then_some(true),
            port: self.port.clone(),
            memif: self.memif_socket.as_ref().map(|socket| self.memif.table(socket)).transpose()?,
            veth: self.veth.table(),
        })
    }
}

impl Memif {
    fn table(&self, socket: &str) -> Result<MemifTable, Error> {
        Ok(MemifTable {
            socket: socket.to_owned(),
            id: self.id,
            secret: self.secret_file.as_deref().map(secret).transpose()?,
            role: self.role.clone(),
            queue_pairs: self.queue_pairs,
            chains: self.chains.then_some(true),
            mode: self.mode.clone(),
            owner: self.owner,
            group: self.group,
            allow_unsealed: self.allow_unsealed.then_some(true),
            memory_max: self.memory_max,
            ring_size: self.ring_size,
            buffer_size: self.buffer_size,
            tenant_uid: self.tenant_uid,
        })
    }
}

/// The first line of a file.
fn secret(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { path: path.to_owned(), reason: source };
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map_err(|e| failed(e.to_string()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_by_its_key() {
        for (line, want) in [
            ("changes[0].add_endpoint.mac = \"x\": bad", "mac = \"x\": bad"),
            ("changes[3].add_port.memif.id = 7: taken", "memif.id = 7: taken"),
            ("changes[0].remove_network = \"a\": endpoint b is on it", "\"a\": endpoint b is on it"),
            ("changes[0].add_endpoint: it has neither port nor memif", "it has neither port nor memif"),
            ("the state has generation 7 by now", "the state has generation 7 by now"),
        ] {
            let error = by_key(Error::Refused { lines: vec![line.into()], is_invalid: false });
            assert_eq!(error.to_string(), want);
        }
    }
}
