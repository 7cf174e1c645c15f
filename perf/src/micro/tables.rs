//! Micro-benches of what a frame is looked up in: the FDB by its size, and the tables. Used by `micro`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use peregrine_dataplane::fdb::{AgeingHand, Fdb, Learned, Limits};
use peregrine_dataplane::plan::NetworkPlan;
use peregrine_dataplane::tables::Tables;
use peregrine_dataplane::types::{MacAddr, RemoteId, Vni};

use super::{Case, MILLION, Maker, PACKETS, case, maker};
use crate::rig::{NETWORK, SECRET, plan};

/// Networks, and remotes, in the tables.
const MANY: u32 = 1000;
/// Learned by this remote in this second.
const REMOTE: RemoteId = RemoteId(0);
const NOW_S: u32 = 7;

pub fn cases() -> Vec<Maker> {
    let mut cases = Vec::new();
    for (size, entries) in [("1k", 1000), ("100k", 100_000)] {
        let kinds: [(&str, FdbCase); 4] = [
            ("lookup-hit", lookup_hit),
            ("lookup-miss", lookup_miss),
            ("learn-known", learn_known),
            ("learn-new", learn_new),
        ];
        for (kind, make) in kinds {
            cases.push(maker(format!("fdb/{kind}/{size}"), move |name| make(name, Addresses::new(entries)?)));
        }
    }
    for (kind, make) in [
        ("lookup-hit", lookup_hit as FdbCase),
        ("lookup-hit-prefetched", lookup_prefetched),
        ("lookup-miss", lookup_miss),
        ("learn-known", learn_known),
        ("learn-new", learn_new),
        ("learn-new-beside-reader", learn_new_beside_reader),
        ("age-step", age_step),
    ] {
        cases
            .push(maker(format!("fdb/{kind}/{MILLION}"), move |name| make(name, Addresses::new(1_000_000)?)));
    }
    cases.push(maker("tables/network-by-vni/1k", |name| Ok(network_by_vni(name))));
    cases.push(maker("tables/remote-by-address/1k", |name| Ok(remote_by_address(name))));
    cases
}

type FdbCase = fn(&str, Addresses) -> Result<Case, String>;

/// A filled FDB and the addresses of the next round.
struct Addresses {
    fdb: Arc<Fdb>,
    entries: u64,
    /// Counts up with every address that was asked for.
    next: u64,
    chosen: [MacAddr; PACKETS],
}

impl Addresses {
    fn new(entries: u64) -> Result<Addresses, String> {
        // Room for what `learn_new` adds.
        let fdb = Fdb::with_secret(entries as usize + PACKETS, 1, SECRET);
        for number in 0..entries {
            if fdb.learn(NETWORK, known(number), REMOTE, NOW_S, u32::MAX) != Learned::New {
                return Err(format!(
                    "address {number} of {entries} found no room in the forwarding database"
                ));
            }
        }
        Ok(Addresses { fdb: Arc::new(fdb), entries, next: 0, chosen: [MacAddr([0; 6]); PACKETS] })
    }

    /// Addresses spread over all that are known.
    fn choose_known(&mut self) {
        for chosen in &mut self.chosen {
            self.next = self.next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *chosen = known(self.next % self.entries);
        }
    }

    /// Addresses that are not there.
    fn choose_unknown(&mut self) {
        for chosen in &mut self.chosen {
            self.next += 1;
            *chosen = unknown(self.next);
        }
    }

    #[inline]
    fn lookups(&self, found: bool) -> usize {
        let is = |mac: &&MacAddr| black_box(self.fdb.lookup(NETWORK, **mac)).is_some() == found;
        self.chosen.iter().filter(is).count()
    }

    #[inline]
    fn learns(&self, learned: Learned) -> usize {
        const LIMITS: Limits = Limits::of(u32::MAX);
        let place = |mac: &MacAddr| self.fdb.place(NETWORK, mac.to_u64());
        let is = |mac: &&MacAddr| self.fdb.learn_at(place(mac), REMOTE, NOW_S, &LIMITS) == learned;
        self.chosen.iter().filter(is).count()
    }

    fn forget_chosen(&mut self) {
        for mac in &self.chosen {
            self.fdb.remove(NETWORK, *mac);
        }
    }
}

fn known(number: u64) -> MacAddr {
    let [.., a, b, c, d] = number.to_be_bytes();
    MacAddr([2, a, b, c, d, 1])
}

fn unknown(number: u64) -> MacAddr {
    let [.., a, b, c, d] = number.to_be_bytes();
    MacAddr([6, a, b, c, d, 1])
}

fn lookup_hit(name: &str, addresses: Addresses) -> Result<Case, String> {
    Ok(case(name, addresses, Addresses::choose_known, |addresses| addresses.lookups(true)))
}

fn lookup_miss(name: &str, addresses: Addresses) -> Result<Case, String> {
    Ok(case(name, addresses, Addresses::choose_unknown, |addresses| addresses.lookups(false)))
}

fn learn_known(name: &str, addresses: Addresses) -> Result<Case, String> {
    Ok(case(name, addresses, Addresses::choose_known, |addresses| addresses.learns(Learned::Known)))
}

fn learn_new(name: &str, addresses: Addresses) -> Result<Case, String> {
    let prepare = |addresses: &mut Addresses| {
        addresses.forget_chosen();
        addresses.choose_unknown();
    };
    Ok(case(name, addresses, prepare, |addresses| addresses.learns(Learned::New)))
}

/// First all are asked for, then all are looked up: what a burst does.
fn lookup_prefetched(name: &str, addresses: Addresses) -> Result<Case, String> {
    Ok(case(name, addresses, Addresses::choose_known, |Addresses { fdb, chosen, .. }| {
        let places = chosen.map(|mac| fdb.place(NETWORK, mac.to_u64()));
        places.iter().for_each(|place| fdb.prefetch(*place));
        places.iter().filter(|place| black_box(fdb.lookup_at(**place)).is_some()).count()
    }))
}

/// The same as `learn_new` while another core looks up what is there.
fn learn_new_beside_reader(name: &str, addresses: Addresses) -> Result<Case, String> {
    let reader = Reader::start(addresses.fdb.clone(), addresses.entries)?;
    let prepare = |(addresses, _): &mut (Addresses, Reader)| {
        addresses.forget_chosen();
        addresses.choose_unknown();
    };
    Ok(case(name, (addresses, reader), prepare, |(addresses, _)| addresses.learns(Learned::New)))
}

/// Looks up addresses until it is dropped.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(fdb: Arc<Fdb>, entries: u64) -> Result<Reader, String> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let read = move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                black_box(fdb.lookup(NETWORK, known(number)));
                number = (number + 7919) % entries;
            }
        };
        let thread = std::thread::Builder::new().spawn(read).map_err(|error| format!("a thread: {error}"))?;
        Ok(Reader { stop, thread: Some(thread) })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// The control thread's longest step through the table when nothing is old; each 64th part counts as a packet.
fn age_step(name: &str, addresses: Addresses) -> Result<Case, String> {
    const PART: usize = AgeingHand::STEP_MAX / PACKETS;
    Ok(case(
        name,
        (addresses, 0),
        |_| {},
        |(Addresses { fdb, .. }, at)| {
            for _ in 0..PACKETS {
                black_box(fdb.age(*at, PART, NOW_S, |_| black_box(300)));
                *at = (*at + PART) % fdb.buckets();
            }
            PACKETS
        },
    ))
}

/// As many networks as remotes, each network with one of them.
fn many_tables() -> Tables {
    let mut plan = plan(0);
    let Some(first) = plan.networks.first().cloned() else { return Tables::with_secret(&plan, 1500, SECRET) };
    let network = |number| NetworkPlan {
        name: format!("perf{number}"),
        vni: vni(number),
        remotes: vec![IpAddr::V4(address(number))],
        ..first.clone()
    };
    plan.networks = (1..=MANY).map(network).collect();
    Tables::with_secret(&plan, 1500, SECRET)
}

fn vni(number: u32) -> Vni {
    let [_, a, b, c] = number.to_be_bytes();
    Vni::from_bytes([a, b, c])
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xc612_0000 + number) // 198.18.0.0/15, for benchmarks (RFC 2544)
}

/// The next numbers of those in the tables.
fn numbers(next: &mut u32) -> impl Iterator<Item = u32> {
    let first = *next;
    *next = (first + PACKETS as u32) % MANY;
    (0..PACKETS as u32).map(move |ahead| (first + ahead) % MANY + 1)
}

fn network_by_vni(name: &str) -> Case {
    case(
        name,
        (many_tables(), 0, [vni(1); PACKETS]),
        |(_, next, chosen)| chosen.iter_mut().zip(numbers(next)).for_each(|(place, n)| *place = vni(n)),
        |(tables, _, chosen)| {
            chosen.iter().filter(|vni| black_box(tables.network_by_vni(**vni)).is_some()).count()
        },
    )
}

fn remote_by_address(name: &str) -> Case {
    case(
        name,
        (many_tables(), 0, [address(1); PACKETS]),
        |(_, next, chosen)| chosen.iter_mut().zip(numbers(next)).for_each(|(place, n)| *place = address(n)),
        |(tables, _, chosen)| {
            chosen.iter().filter(|address| black_box(tables.remote_by_ipv4(**address)).is_some()).count()
        },
    )
}
