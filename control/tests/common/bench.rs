//! An underlay and the kernel's own routes and neighbours.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use peregrine_control::underlay::{Underlay, Uplink, Wanted};
use peregrine_dataplane::engine::{NextHop, Path, SourceId};
use peregrine_dataplane::types::{MacAddr, RemoteId, UplinkId};

use super::{Net, until};

/// An underlay that is turned by its notices and its timer, as the daemon does.
pub struct Bench {
    pub net: Net,
    poll: Poll,
    pub underlay: Underlay,
    /// What was published, by place in what is wanted.
    pub paths: Vec<Vec<Path>>,
    /// The hop of the first of them.
    pub hops: Vec<Option<NextHop>>,
    /// Frames towards each remote so far.
    pub frames: Cell<u64>,
}

impl Bench {
    pub fn new(remotes: &[&str]) -> Bench {
        Bench::over(Net::new(), &[("ov0", "10.9.0.1")], remotes)
    }

    /// A second uplink on a wire of its own: `here: other0 10.8.0.1/24 ── other1 10.8.0.2/24 :there`.
    pub fn with_two_uplinks(remotes: &[&str]) -> Bench {
        let net = Net::new();
        net.here(&format!("link add other0 type veth peer name other1 netns {}", net.there));
        net.here("addr add 10.8.0.1/24 dev other0");
        net.there("addr add 10.8.0.2/24 dev other1");
        net.here("link set other0 up");
        net.there("link set other1 up");
        Bench::over(net, &[("ov0", "10.9.0.1"), ("other0", "10.8.0.1")], remotes)
    }

    pub fn over(net: Net, uplinks: &[(&str, &str)], remotes: &[&str]) -> Bench {
        let uplinks =
            uplinks.iter().map(|(interface, local)| uplink(&net, interface, None, &[local])).collect();
        let wanted: Vec<(&str, Option<&str>)> = remotes.iter().map(|remote| (*remote, None)).collect();
        Bench::wanting(net, uplinks, &wanted)
    }

    /// Remotes, and the source address where it is not the uplink's.
    pub fn wanting(net: Net, uplinks: Vec<Uplink>, wanted: &[(&str, Option<&str>)]) -> Bench {
        net.enter();
        let underlay = Underlay::open(uplinks, wanted_ways(wanted)).unwrap();
        let poll = Poll::new().unwrap();
        let fd = underlay.raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
        let (paths, hops) = (vec![Vec::new(); wanted.len()], vec![None; wanted.len()]);
        Bench { net, poll, underlay, paths, hops, frames: Cell::new(0) }
    }

    pub fn turn(&mut self) {
        let mut events = Events::with_capacity(4);
        let now = Instant::now();
        let wait = self.underlay.deadline(now).saturating_duration_since(now).min(Duration::from_millis(50));
        self.poll.poll(&mut events, Some(wait)).unwrap();
        if !events.is_empty() {
            self.underlay.readable();
        }
        for (remote, _, paths) in self.underlay.turn(Instant::now(), |_: RemoteId| self.frames.get()) {
            self.hops[remote.index()] = paths.first().map(|path| path.hop);
            self.paths[remote.index()] = paths;
        }
    }

    pub fn reason(&self, index: usize) -> String {
        let (_, verdict) = self.underlay.ways().nth(index).unwrap();
        verdict.why().map(|why| why.to_string()).unwrap_or_default()
    }

    pub fn expect_mac(&mut self, index: usize, mac: &str) {
        let mac: MacAddr = mac.parse().unwrap();
        until(5, "the next hop", || {
            self.turn();
            self.hops[index].is_some_and(|hop| hop.destination == mac)
        });
    }

    pub fn expect_uplink(&mut self, index: usize, uplink: u8) {
        until(5, "the uplink", || {
            self.turn();
            self.hops[index].is_some_and(|hop| hop.uplink == UplinkId(uplink))
        });
    }

    pub fn expect_none(&mut self, index: usize, reason: &str) {
        until(5, reason, || {
            self.turn();
            self.hops[index].is_none() && self.reason(index).contains(reason)
        });
    }
}

/// Each with its place as [`RemoteId`].
pub fn wanted_ways(ways: &[(&str, Option<&str>)]) -> Vec<Wanted> {
    let way = |(place, (remote, local)): (u16, &(&str, Option<&str>))| Wanted {
        remote: RemoteId(place),
        address: remote.parse().unwrap(),
        source: SourceId(u8::from(local.is_some())),
        local: local.map(|local| local.parse().unwrap()),
    };
    (0..).zip(ways).map(way).collect()
}

/// One of ours, as the daemon would have it.
pub fn uplink(net: &Net, interface: &str, vlan: Option<u16>, locals: &[&str]) -> Uplink {
    let text = net.here(&format!("-o link show {interface}"));
    let ifindex = text.split(':').next().unwrap().trim().parse().unwrap();
    let locals: Vec<IpAddr> = locals.iter().map(|local| local.parse().unwrap()).collect();
    Uplink::new(interface, ifindex, vlan, &locals)
}

/// The address in `ip -o link`'s words.
pub fn mac_of(text: &str) -> String {
    let mut words = text.split_whitespace().skip_while(|w| *w != "link/ether").skip(1);
    words.next().unwrap().to_owned()
}
