//! Ports into containers: a pair made, or found where an earlier daemon left it, and our end opened. Used by the tenants' `veth.rs`.
//!
//! A daemon that ends leaves the pairs where they are: a container keeps its interface, its addresses and its connections until the next one
//! drives it again. Which pairs are a daemon's, and what for, stands in an alias of our end (`ip link` shows it): the control socket's
//! path and a checksum of all that the pair was made by. One whose alias says the same is taken as it is, every other one of ours is removed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peregrine_dataplane::plan::{EndpointPlan, NamespaceRef, NetworkPlan, VethPlan as Wanted};
use peregrine_dataplane::xsk::{PortConfig, Ports, XskPort};

use super::pair::{Link, set_addresses};
use super::pool::{PartPlan, Pool, PoolConfig, PoolCounts, Taken};
use super::remover::Remover;
use super::{ContainerError, Namespace, Pair, VethPlan, make};
use crate::underlay::netlink::Requests;

/// Of what the pool makes: a network's `mtu` is most often smaller.
const POOL_MTU: u16 = 1500;

/// What is about to be removed is waited for so long.
const PATIENCE: Duration = Duration::from_secs(2);

impl Link {
    /// That of an endpoint with a veth on a network.
    pub fn of(endpoint: &EndpointPlan, network: &NetworkPlan) -> Option<Link> {
        let veth = endpoint.port.veth()?;
        let with_bits = |address: &IpAddr| (*address, network.prefix_bits(*address));
        let mut addresses: Vec<(IpAddr, u8)> = endpoint.addresses.iter().map(with_bits).collect();
        addresses.sort_unstable(); // it is the same whoever came first
        Some(Link {
            mac: endpoint.mac,
            mtu: network.mtu,
            addresses,
            gateways: if veth.default_route { network.gateways.clone() } else { Vec::new() },
        })
    }
}

/// Namespaces that are made with what is in them.
struct Pooled {
    /// Where it marks what it has given out.
    directory: PathBuf,
    size: usize,
    /// Started when it is wanted.
    pool: Option<Pool>,
    /// What is given out, by the names of the namespaces: by an earlier daemon, too, until it is known whether somebody wants it.
    given: HashMap<String, Taken>,
}

/// Makes them.
pub struct Maker {
    requests: Requests,
    /// Loaded with the first port.
    ports: Option<Arc<Mutex<Ports>>>,
    remover: Remover,
    pool: Pooled,
    /// The path of the control socket: of two daemons that run it is never the same.
    owner: String,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Maker {
    /// Of the daemon with this control socket.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub fn new(control_socket: &Path, pool_size: usize) -> io::Result<Maker> {
        let owner = control_socket.display().to_string().escape_debug().to_string();
        // The kernel takes 255 bytes; the end of a path tells more than its beginning.
        let owner = owner.char_indices().rev().nth(199).and_then(|(at, _)| owner.get(at..)).unwrap_or(&owner);
        Ok(Maker {
            requests: Requests::open()?,
            ports: None,
            remover: Remover::start()?,
            pool: Pooled {
                directory: beside(control_socket, ".containers"),
                size: pool_size,
                pool: None,
                given: HashMap::new(),
            },
            owner: owner.to_owned(),
        })
    }

    /// Starts the pool if it is to have something, or an earlier daemon's had given something out.
    ///
    /// # Errors
    /// One line.
    pub fn begin(&mut self) -> Result<(), String> {
        if self.pool.size > 0 || self.pool.directory.exists() { self.pool().map(drop) } else { Ok(()) }
    }

    /// What the pool has.
    pub fn pool_counts(&self) -> Option<PoolCounts> {
        self.pool.pool.as_ref().map(Pool::counts)
    }

    fn ports(&mut self) -> Result<Arc<Mutex<Ports>>, String> {
        if let Some(ports) = &self.ports {
            return Ok(Arc::clone(ports));
        }
        let ports = Arc::new(Mutex::new(Ports::load().map_err(|error| error.to_string())?));
        self.ports = Some(Arc::clone(&ports));
        Ok(ports)
    }

    fn pool(&mut self) -> Result<&mut Pool, String> {
        if self.pool.pool.is_none() {
            let config = PoolConfig {
                size: self.pool.size,
                low_water: self.pool.size / 2,
                interface: "eth0".to_owned(),
                mtu: POOL_MTU,
                port: PortConfig::default(),
                alias: self.mark(),
                directory: self.pool.directory.clone(),
            };
            let (pool, given) = Pool::start(&config, self.ports()?).map_err(|error| error.to_string())?;
            self.pool.given = given.into_iter().map(|taken| (taken.namespace.clone(), taken)).collect();
            self.pool.pool = Some(pool);
        }
        self.pool.pool.as_mut().ok_or_else(|| "there is no pool".to_owned())
    }

    /// The name of our end, if it is known; in a namespace that others made it is the same for the same place. [`is_device`] knows them.
    pub fn device(&self, wanted: &Wanted) -> Option<String> {
        match &wanted.namespace {
            NamespaceRef::Name(name) if wanted.create => Some(self.pool.given.get(name)?.pair.port.clone()),
            _ => Some(self.device_of(wanted)),
        }
    }

    fn device_of(&self, wanted: &Wanted) -> String {
        let place = format!("{}\0{}\0{}", self.owner, place(&wanted.namespace), wanted.interface);
        let (first, second) =
            (crc32fast::hash(place.as_bytes()), crc32fast::hash(format!("2{place}").as_bytes()));
        format!("pg{first:08x}{:05x}", second >> 12)
    }

    fn alias(&self, wanted: &Wanted, link: &Link) -> String {
        format!("{}{:08x}", self.mark(), crc32fast::hash(made_by(wanted, link).as_bytes()))
    }

    fn mark(&self) -> String {
        format!("peregrine {} ", self.owner)
    }

    /// The pair and the open port. One that is there is taken as it is; where `may_make` is false no other is made: the process whose
    /// namespace was meant may be another one by now.
    ///
    /// # Errors
    /// One line. Then no pair is there.
    pub fn open(&mut self, wanted: &Wanted, link: &Link, may_make: bool) -> Result<(Pair, XskPort), String> {
        if let (Some(name), true) = (name_of(&wanted.namespace), wanted.create) {
            return self.take(name, wanted, link);
        }
        let namespace = Namespace::open(&wanted.namespace).map_err(|error| error.to_string())?;
        let (device, alias) = (self.device_of(wanted), self.alias(wanted, link));
        if is_ours(&namespace).map_err(|error| format!("looking at {}: {error}", wanted.namespace))? {
            return Err(format!("{} is the daemon's own: give a container's", wanted.namespace));
        }
        let found = self.find(&device, &alias, wanted, &namespace)?;
        let was_there = found.is_some();
        let pair = match found {
            Some(pair) => pair,
            None if !may_make => {
                return Err(format!(
                    "the veth that was in the {} is gone, and the process may be another one by now: declare the port again",
                    wanted.namespace
                ));
            }
            None => self.make(&device, &alias, wanted, link, &namespace)?,
        };
        match self.open_port(&pair, wanted) {
            Ok(port) => Ok((pair, port)),
            Err(why) => {
                // One that a container has already stays: it is tried again.
                if !was_there {
                    self.remover.remove(pair);
                }
                Err(why)
            }
        }
    }

    fn open_port(&mut self, pair: &Pair, wanted: &Wanted) -> Result<XskPort, String> {
        let ports = self.ports()?;
        let mut ports = ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.open(&pair.port, &PortConfig { ring_size: wanted.ring_size }).map_err(|error| error.to_string())
    }

    /// A namespace with all that is in it: one that was given out for the same, or another one.
    fn take(&mut self, name: &str, wanted: &Wanted, link: &Link) -> Result<(Pair, XskPort), String> {
        let alias = self.alias(wanted, link);
        self.pool()?;
        if let Some(taken) = self.pool.given.get(name).cloned() {
            let there = self.requests.alias_of(&taken.pair.port);
            let there = there.map_err(|error| format!("looking for {}: {error}", taken.pair.port))?;
            let is_there = there.is_some_and(|(ifindex, _)| ifindex == taken.pair.ifindex);
            if is_there && taken.mark == alias {
                let port = self.pool()?.adopt(&taken).map_err(|error| error.to_string())?;
                return Ok((taken.pair, port));
            }
            self.pool.given.remove(name);
            self.pool()?.give_back(taken);
        }
        let plan = PartPlan {
            namespace: name.to_owned(),
            interface: (wanted.interface != "eth0").then(|| wanted.interface.clone()),
            mark: alias,
            link: link.clone(),
        };
        let (taken, port) = self.pool()?.take(&plan).map_err(|error| error.to_string())?;
        let pair = taken.pair.clone();
        self.pool.given.insert(name.to_owned(), taken);
        Ok((pair, port))
    }

    /// One that an earlier daemon left, or this one before; another one of ours is removed.
    fn find(
        &mut self,
        device: &str,
        alias: &str,
        wanted: &Wanted,
        namespace: &Namespace,
    ) -> Result<Option<Pair>, String> {
        let failed = |error: io::Error| format!("looking for {device}: {error}");
        let Some((ifindex, found)) = self.requests.alias_of(device).map_err(failed)? else { return Ok(None) };
        if !self.remover.wait_for(ifindex, PATIENCE) {
            return Err(format!("{device} is still being removed"));
        }
        let Some((ifindex, _)) = self.requests.alias_of(device).map_err(failed)? else { return Ok(None) };
        if !found.starts_with(&self.mark()) {
            return Err(ContainerError::NameTaken { name: device.to_owned(), namespace: None }.to_string());
        }
        let pair = Pair { port: device.to_owned(), ifindex };
        let far = namespace.inside(|| Requests::open().and_then(|mut its| its.below_of(&wanted.interface)));
        let far = far.map_err(|error| error.to_string())?.map_err(failed)?;
        if found == alias && far == Some(ifindex) {
            return Ok(Some(pair));
        }
        pair.remove(&mut self.requests).map_err(|error| error.to_string())?;
        Ok(None)
    }

    fn make(
        &mut self,
        device: &str,
        alias: &str,
        wanted: &Wanted,
        link: &Link,
        namespace: &Namespace,
    ) -> Result<Pair, String> {
        let plan =
            VethPlan { port: device.to_owned(), interface: wanted.interface.clone(), link: link.clone() };
        let pair = make(&mut self.requests, &plan, namespace).map_err(|error| error.to_string())?;
        match self.requests.set_alias(pair.ifindex, alias) {
            Ok(()) => Ok(pair),
            Err(error) => {
                self.remover.remove(pair);
                Err(format!("marking {device} as ours: {error}"))
            }
        }
    }

    /// A pair's far end gets other addresses; all else stays as it is.
    ///
    /// # Errors
    /// One line. Then it has those that it had.
    pub fn refit(&mut self, wanted: &Wanted, pair: &Pair, before: &Link, after: &Link) -> Result<(), String> {
        let namespace = Namespace::open(&wanted.namespace).map_err(|error| error.to_string())?;
        let change = |from: &Link, to: &Link| {
            let done = namespace.inside(|| set_addresses(&wanted.interface, from, to));
            done.and_then(|result| result).map_err(|error| error.to_string())
        };
        if let Err(why) = change(before, after) {
            let _best_effort = change(after, before);
            return Err(why);
        }
        self.mark_as(wanted, pair, self.alias(wanted, after)).inspect_err(|_| {
            let _best_effort = change(after, before);
        })
    }

    /// What is made by something else from now on.
    fn mark_as(&mut self, wanted: &Wanted, pair: &Pair, alias: String) -> Result<(), String> {
        let name = name_of(&wanted.namespace).filter(|_| wanted.create);
        let (given, pool) = (name.and_then(|name| self.pool.given.get_mut(name)), &self.pool.pool);
        let (Some(taken), Some(pool)) = (given, pool) else {
            let marked = self.requests.set_alias(pair.ifindex, &alias);
            return marked.map_err(|error| format!("marking {}: {error}", pair.port));
        };
        let marked = Taken { mark: alias, ..taken.clone() };
        pool.mark_anew(&marked).map_err(|error| error.to_string())?;
        *taken = marked;
        Ok(())
    }

    /// Takes a pair away, soon; with its namespace, if that was made with it.
    pub fn remove(&mut self, wanted: &Wanted, pair: Pair) {
        match self.given_back(wanted, &pair) {
            Some(taken) => self.pool.pool.iter().for_each(|pool| pool.give_back(taken.clone())),
            None => self.remover.remove(pair),
        }
    }

    /// What was given out with this pair, which is not given out any more.
    fn given_back(&mut self, wanted: &Wanted, pair: &Pair) -> Option<Taken> {
        let name = name_of(&wanted.namespace).filter(|_| wanted.create)?;
        let is_it = self.pool.given.get(name).is_some_and(|taken| taken.pair == *pair);
        if is_it { self.pool.given.remove(name) } else { None }
    }

    /// A pair is gone without us. A namespace that was made with it goes after it.
    pub fn forget(&mut self, wanted: &Wanted, pair: &Pair) {
        if let Some(taken) = self.given_back(wanted, pair)
            && let Some(pool) = &self.pool.pool
        {
            pool.let_go(taken);
        }
    }

    /// The numbers of all interfaces that there are.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn interfaces(&mut self) -> io::Result<HashSet<u32>> {
        self.requests.ifindexes()
    }

    /// Takes all pairs of this daemon away that are for none of these: what was not declared any more when it started.
    ///
    /// # Errors
    /// The kernel does not list its interfaces.
    pub fn remove_others<'w>(&mut self, wanted: impl Iterator<Item = &'w Wanted>) -> io::Result<usize> {
        let (created, others): (Vec<&Wanted>, Vec<&Wanted>) = wanted.partition(|wanted| wanted.create);
        let names: HashSet<&str> = created.iter().filter_map(|wanted| name_of(&wanted.namespace)).collect();
        let mut count = 0;
        for (_, taken) in self.pool.given.extract_if(|name, _| !names.contains(name.as_str())) {
            self.pool.pool.iter().for_each(|pool| pool.give_back(taken.clone()));
            count += 1;
        }
        let devices: HashSet<String> = others.iter().map(|wanted| self.device_of(wanted)).collect();
        let mark = self.mark();
        let is_other = |name: &str, alias: &str| {
            alias.starts_with(&mark) && is_of_a_given_namespace(name) && !devices.contains(name)
        };
        let all = self.requests.aliases()?;
        let others = all.into_iter().filter(|(_, name, alias)| is_other(name, alias));
        for (ifindex, port, _) in others {
            self.remover.remove(Pair { port, ifindex });
            count += 1;
        }
        Ok(count)
    }
}

/// All that a pair is made by. Another daemon, a newer one too, writes the same of the same, or takes the pair for another one and makes it anew.
fn made_by(wanted: &Wanted, link: &Link) -> String {
    let Wanted { namespace, create, interface, default_route, ring_size } = wanted;
    let Link { mac, mtu, addresses, gateways } = link;
    let addresses: Vec<String> =
        addresses.iter().map(|(address, bits)| format!("{address}/{bits}")).collect();
    let gateways: Vec<String> = gateways.iter().map(IpAddr::to_string).collect();
    let (addresses, gateways) = (addresses.join(" "), gateways.join(" "));
    let place = place(namespace);
    format!(
        "1\0{place}\0{create}\0{interface}\0{default_route}\0{ring_size}\0{mac}\0{mtu}\0{addresses}\0{gateways}"
    )
}

/// A namespace, as what is made for it is known by.
fn place(namespace: &NamespaceRef) -> String {
    match namespace {
        NamespaceRef::Name(name) => format!("name {name}"),
        NamespaceRef::Path(path) => format!("path {}", path.display()),
        NamespaceRef::Pid(pid) => format!("pid {pid}"),
    }
}

fn name_of(namespace: &NamespaceRef) -> Option<&str> {
    match namespace {
        NamespaceRef::Name(name) => Some(name),
        _ => None,
    }
}

/// Whether this is the name of our end of a container's veth.
pub fn is_device(name: &str) -> bool {
    is_of_a_given_namespace(name) || is_of_the_pool(name)
}

/// Two letters, the process's number, a hyphen and another number.
pub(super) fn is_of_the_pool(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let numbers = name.strip_prefix("pp").and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Two letters and thirteen hexadecimal digits.
fn is_of_a_given_namespace(name: &str) -> bool {
    let digits = name.strip_prefix("pg").filter(|digits| digits.len() == 13);
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a namespace is given by what may be another's by now: a process.
pub fn is_fleeting(namespace: &NamespaceRef) -> bool {
    match namespace {
        NamespaceRef::Pid(_) => true,
        NamespaceRef::Path(path) => path.starts_with("/proc"),
        NamespaceRef::Name(_) => false,
    }
}

/// Whether it is the one that we are in.
fn is_ours(namespace: &Namespace) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino() == namespace.inode()?)
}

/// A path with this at its end.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pair_is_made_by_reads_the_same_in_every_version() {
        let wanted =
            Wanted { interface: "net1".into(), ..Wanted::new(NamespaceRef::Path("/run/netns/web".into())) };
        let link = Link {
            mac: peregrine_dataplane::types::MacAddr([2, 0, 0, 0, 0, 7]),
            mtu: 1450,
            addresses: vec![([10, 42, 0, 7].into(), 24), ("fd42::7".parse().unwrap(), 64)],
            gateways: vec![[10, 42, 0, 1].into()],
        };
        let text = "1|path /run/netns/web|false|net1|true|256|02:00:00:00:00:07|1450|10.42.0.7/24 fd42::7/64|10.42.0.1";
        assert_eq!(
            made_by(&wanted, &link).replace('\0', "|"),
            text,
            "pairs of daemons before would be made anew"
        );
    }
}
