//! The bench: a VTEP between a wire whose far end is the suite and tenants that are the suite, too.
//!
//! That a frame does *not* come is known without waiting for it: markers are sent behind it on the same way, and when they have
//! come, it would have.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use peregrine_tests::{FAR, NEAR, Net, RawSocket, run};

use crate::scapy::Scapy;
use crate::sut::{Has, Kind, Network, Setup, Sut};

/// How long a frame that must come may take: only what fails takes so long.
const FRAME_TIME: Duration = Duration::from_secs(3);

/// Why a case is not passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Not {
    /// It does otherwise.
    Fail(String),
    /// It has nothing of the kind.
    Absent(String),
    /// It was not tried: this machine, or the suite, has not got what that takes.
    Untried(String),
}

impl From<String> for Not {
    fn from(why: String) -> Not {
        Not::Fail(why)
    }
}

pub type Outcome = Result<(), Not>;

/// Leaves a case as failed unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        let holds = $condition;
        if !holds {
            return Err($crate::bench::Not::Fail(format!($($why)+)));
        }
    };
}

/// An outer packet that left the VTEP.
#[derive(Clone, Debug)]
pub struct Outer {
    pub bytes: Vec<u8>,
    pub from: String,
    pub to: String,
    pub tos: u8,
    pub ttl: u8,
    pub dont_fragment: bool,
    /// More follow, or it is none of the first.
    pub is_fragment: bool,
    /// Where the IP header begins.
    pub ip_at: usize,
    pub source_port: u16,
    pub port: u16,
    pub udp_length: usize,
    pub checksum: u16,
    pub vxlan: [u8; 8],
    pub inner: Vec<u8>,
}

impl Outer {
    pub fn parse(frame: &[u8]) -> Option<Outer> {
        let word = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
        let mut at = if word(12)? == 0x8100 { 18 } else { 14 };
        let ip_at = at;
        let byte = |at: usize| frame.get(at).copied();
        let (from, to, tos, ttl, protocol, fragment);
        match word(at - 2)? {
            0x0800 => {
                let four = |at: usize| {
                    Some(
                        std::net::Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?)
                            .to_string(),
                    )
                };
                (from, to) = (four(at + 12)?, four(at + 16)?);
                (tos, ttl, protocol, fragment) = (byte(at + 1)?, byte(at + 8)?, byte(at + 9)?, word(at + 6)?);
                at += usize::from(byte(at)? & 15) * 4;
            }
            0x86dd => {
                let six = |at: usize| {
                    Some(
                        std::net::Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?)
                            .to_string(),
                    )
                };
                (from, to) = (six(at + 8)?, six(at + 24)?);
                (tos, ttl, protocol) = ((word(at)? >> 4) as u8, byte(at + 7)?, byte(at + 6)?);
                fragment = if protocol == 44 { 1 } else { 0x4000 };
                at += 40;
            }
            _ => return None,
        }
        if protocol != 17 && fragment & 0x3fff == 0 {
            return None;
        }
        Some(Outer {
            bytes: frame.to_vec(),
            from,
            to,
            tos,
            ttl,
            dont_fragment: fragment & 0x4000 != 0,
            is_fragment: fragment & 0x3fff != 0,
            ip_at,
            source_port: word(at)?,
            port: word(at + 2)?,
            udp_length: word(at + 4)?.into(),
            checksum: word(at + 6)?,
            vxlan: frame.get(at + 8..at + 16)?.try_into().ok()?,
            inner: frame.get(at + 16..)?.to_vec(),
        })
    }

    pub fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.vxlan[4], self.vxlan[5], self.vxlan[6]])
    }
}

/// See the head of the file. Fields are dropped in this order: the host last.
pub struct Bench {
    pub sut: Box<dyn Sut>,
    pub kind: Kind,
    pub setup: &'static Setup,
    wire: RawSocket,
    scapy: Rc<RefCell<Scapy>>,
    serial: u32,
    /// Networks in which anything passes.
    alive: Vec<u32>,
    /// All that came from the VTEP's host, and whether what is in it was made to be sound.
    pub captured: Vec<(bool, Vec<u8>)>,
    /// What tenants send now is strange by intent, so its dissection says nothing of the VTEP.
    pub is_strange: bool,
    pub net: Net,
}

impl Bench {
    /// Starts a VTEP; or why it does not run.
    pub fn start(kind: Kind, setup: &'static Setup, scapy: Rc<RefCell<Scapy>>) -> Result<Bench, String> {
        let net = Net::apart();
        net.far
            .wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), setup.wire_mtu)
            .map_err(|error| error.to_string())?;
        // No card completes a checksum here: what the far end reads is what would be on a wire.
        run(net.near.command("ethtool").args(["-K", NEAR.1, "tx", "off"]));
        if setup.vlan.is_some() {
            run(net.near.command("ethtool").args(["-K", NEAR.1, "rxvlan", "off"]));
        }
        if kind != Kind::Ovs {
            crate::sut::linux::underlay(&net.near, setup)?;
        }
        let wire = RawSocket::open(&net.far, FAR.1);
        let sut = kind.start(&net, setup)?;
        let mut bench = Bench {
            sut,
            kind,
            setup,
            wire,
            scapy,
            serial: 0,
            alive: Vec::new(),
            captured: Vec::new(),
            is_strange: false,
            net,
        };
        for network in setup.networks {
            bench.prime(network.vni);
        }
        Ok(bench)
    }

    /// The station behind the first remote and the tenants speak once, so that all know them. Where that does not work, cases will tell.
    fn prime(&mut self, vni: u32) {
        let is_heard = self.inbound(vni, &[]).is_ok();
        if self.outbound(vni, &[]).is_ok() && is_heard {
            self.alive.push(vni);
        }
    }

    /// After a case that was not passed: every first tenant speaks, so that its address is where it belongs for the next case.
    pub fn restore(&mut self) {
        for vni in self.alive.clone() {
            let _not = self.outbound(vni, &[]);
        }
    }

    /// Leaves a case as not applicable if the VTEP has nothing of the kind.
    pub fn needs(&self, what: Has) -> Outcome {
        self.sut.lacks(what).map_or(Ok(()), |why| Err(Not::Absent(why.into())))
    }

    pub fn network(&self, vni: u32) -> &'static Network {
        self.setup.network(vni)
    }

    /// Where a network's first tenant stands in the list of all.
    pub fn tenant(&self, vni: u32) -> usize {
        self.setup
            .networks
            .iter()
            .take_while(|network| network.vni != vni)
            .map(|network| network.tenants)
            .sum()
    }

    /// A frame that scapy builds.
    pub fn scapy(&mut self, expression: &str) -> Vec<u8> {
        self.scapy.borrow_mut().frame(expression)
    }

    /// A packet for a network from its first remote, with more said about the outer headers (`tos=1, `).
    pub fn outer(&mut self, vni: u32, more: &str, inner: &str) -> Vec<u8> {
        let network = self.network(vni);
        let remote = network.remotes.first().copied().unwrap_or(crate::sut::A4);
        self.outer_from(vni, remote, more, inner)
    }

    /// The same from another address.
    pub fn outer_from(&mut self, vni: u32, from: &str, more: &str, inner: &str) -> Vec<u8> {
        let network = self.network(vni);
        let (to, port) = (network.from(), network.port());
        let vlan = self.setup.vlan.map_or(String::new(), |vlan| format!("vlan={vlan},"));
        let more = if more.is_empty() { String::new() } else { format!("{more}, ") };
        self.scapy.borrow_mut().frame(&format!("outer(**{{**dict(vni={vni}, src='{from}', dst='{to}', dport={port}, {vlan}), **dict({more})}})/{inner}"))
    }

    fn marker(&mut self, ends: &str) -> String {
        self.serial += 1;
        format!("Ether({ends}, type=0x88b5)/bytes.fromhex('{:08x}{}')", self.serial, "5a".repeat(46))
    }

    /// Puts packets on the wire; what the network's first tenant has got of them.
    pub fn inbound(&mut self, vni: u32, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Not> {
        let tenant = self.tenant(vni);
        self.inbound_to(vni, tenant, "TENANT", frames)
    }

    /// The same for another tenant of the network, who has this address.
    pub fn inbound_to(
        &mut self,
        vni: u32,
        tenant: usize,
        mac: &str,
        frames: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, Not> {
        frames.iter().for_each(|frame| self.wire.send(frame));
        let mut all = Vec::new();
        // The second one is sent when the first one has come: then nothing older is still under way.
        for _ in 0..2 {
            let marker = self.marker(&format!("src=STATION, dst={mac}"));
            let more = if self.network(vni).from().contains(':') { "chksum='right'" } else { "" };
            let outer = self.outer(vni, more, &marker);
            let marker = self.scapy.borrow_mut().frame(&marker);
            self.wire.send(&outer);
            let got = self.sut.receive(tenant, &|frame| frame == marker, FRAME_TIME);
            let got =
                got.ok_or_else(|| Not::Fail("good packets from the wire do not come any more".into()))?;
            all.extend(got.into_iter().filter(|frame| !is_marker(frame)));
        }
        Ok(all)
    }

    /// The first tenant of a network sends; what left the VTEP of it.
    pub fn outbound(&mut self, vni: u32, frames: &[Vec<u8>]) -> Result<Vec<Outer>, Not> {
        let tenant = self.tenant(vni);
        let all = self.outbound_raw(vni, tenant, frames)?;
        Ok(all.iter().filter_map(|frame| Outer::parse(frame)).filter(|outer| outer.vni() == vni).collect())
    }

    /// The same with everything that left the host.
    pub fn outbound_raw(&mut self, vni: u32, tenant: usize, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Not> {
        let mac = if tenant == self.tenant(vni) { "TENANT" } else { "'02:00:00:00:42:03'" };
        let mut all = Vec::new();
        let mut left = frames.chunks(32);
        for last in [false, true] {
            // No more at once than any of them takes without losing some.
            loop {
                let some = if last { None } else { left.next() };
                some.into_iter().flatten().for_each(|frame| self.sut.send(tenant, frame));
                let marker = self.marker(&format!("src={mac}, dst=STATION"));
                let marker = self.scapy.borrow_mut().frame(&marker);
                self.sut.send(tenant, &marker);
                self.read_wire(&mut all, |frame| frame.ends_with(&marker))?;
                if last || left.len() == 0 {
                    break;
                }
            }
        }
        self.capture(&all);
        Ok(all
            .into_iter()
            .filter(|frame| Outer::parse(frame).is_none_or(|outer| !is_marker(&outer.inner)))
            .collect())
    }

    /// Kept for tshark. What is the far end's own is not: there may be more than the suite on that end.
    fn capture(&mut self, all: &[Vec<u8>]) {
        let near = crate::answers::mac(NEAR.2);
        let of_near = all.iter().filter(|frame| frame.get(6..12) == Some(&near));
        self.captured.extend(of_near.map(|frame| (self.is_strange, frame.clone())));
    }

    fn read_wire(&mut self, all: &mut Vec<Vec<u8>>, last: impl Fn(&[u8]) -> bool) -> Outcome {
        let came = self.wire.next(FRAME_TIME, |frame| {
            all.push(frame.to_vec());
            last(frame)
        });
        came.map(drop).ok_or_else(|| Not::Fail("good frames of the tenant do not leave any more".into()))
    }

    /// What leaves the host until one of it is as wanted; all of it.
    pub fn wire_until(
        &mut self,
        time: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        let came = self.wire.next(time, |frame| {
            all.push(frame.to_vec());
            wanted(frame)
        });
        self.capture(&all);
        came.map(|_| all)
    }

    /// A frame onto the wire as it is.
    pub fn put(&self, frame: &[u8]) {
        self.wire.send(frame);
    }

    /// The packet carries exactly this to the tenant.
    pub fn delivers(&mut self, vni: u32, packet: &[u8], inner: &[u8]) -> Outcome {
        let got = self.inbound(vni, &[packet.to_vec()])?;
        ensure!(got == [inner], "{}", differs(&got, inner));
        Ok(())
    }

    /// Nothing of the packet comes to the tenant.
    pub fn refuses(&mut self, vni: u32, packet: &[u8]) -> Outcome {
        let got = self.inbound(vni, &[packet.to_vec()])?;
        ensure!(got.is_empty(), "it is delivered");
        Ok(())
    }

    /// Refused, and counted under this reason where reasons are told.
    pub fn refuses_as(&mut self, vni: u32, packet: &[u8], reason: &str) -> Outcome {
        let (before, all) = (self.sut.drops(reason), self.sut.drops("all"));
        self.refuses(vni, packet)?;
        let (now, all_now) = (self.sut.drops(reason), self.sut.drops("all"));
        if let (Some(before), Some(now)) = (before, now) {
            ensure!(
                now == before + 1,
                "not counted as {reason}: {:?} drops in all",
                all_now.zip(all).map(|(b, a)| b - a)
            );
        }
        Ok(())
    }

    /// The one packet in which this frame leaves.
    pub fn leaves(&mut self, vni: u32, inner: &[u8]) -> Result<Outer, Not> {
        let mut sent = self.outbound(vni, &[inner.to_vec()])?;
        ensure!(sent.len() == 1, "{} packets leave instead of one", sent.len());
        Ok(sent.remove(0))
    }

    /// The frame passes as it is, to the tenant and from it.
    pub fn passes(&mut self, vni: u32, protocol: &str) -> Outcome {
        let outward = protocol.replace("side", "out");
        let inward = protocol.replace("side4", "in4").replace("side6", "in6").replace("side", "inn");
        let packet = self.outer(vni, "", &inward);
        let inner = self.scapy(&inward);
        self.delivers(vni, &packet, &inner).map_err(|not| said("from the wire", not))?;
        let inner = self.scapy(&outward);
        let sent = self.leaves(vni, &inner).map_err(|not| said("from the tenant", not))?;
        ensure!(sent.inner == inner, "from the tenant: {}", differs(&[sent.inner], &inner));
        Ok(())
    }
}

fn is_marker(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x88, 0xb5]) && frame.len() == 64 && frame.ends_with(&[0x5a; 46])
}

/// A verdict with what it is about before it.
pub fn said(what: impl Display, not: Not) -> Not {
    match not {
        Not::Fail(why) => Not::Fail(format!("{what}: {why}")),
        other => other,
    }
}

/// How what came differs from what should have.
fn differs(got: &[Vec<u8>], inner: &[u8]) -> String {
    match got {
        [] => "nothing comes".into(),
        [one] if one.len() != inner.len() => format!("{} bytes come instead of {}", one.len(), inner.len()),
        [one] => {
            let at = one.iter().zip(inner).position(|(a, b)| a != b).unwrap_or(0);
            format!("byte {at} comes as {:#04x} instead of {:#04x}", one[at], inner[at])
        }
        more => format!("{} frames come instead of one", more.len()),
    }
}
