//! Way out, last step: the outer headers are put in front of the inner frame, from the remote's template, and the frame is told
//! which uplink it leaves by.

use super::{Cx, answer};
use crate::counters::{DropReason, WorkerCounters};
use crate::frame::{Burst, Flooding, Frame, Target};
use crate::plan::OuterDscp;
use crate::tables::{Adjacency, Network, Tables, Way};
use crate::types::{NetworkId, RemoteId};
use crate::wire::ecn;
use crate::wire::outer::{OVERHEAD_IPV4, OVERHEAD_IPV6, OuterHeaders, OuterTemplate, OwnFields};

/// Empties `input`; what goes on is ready for the wire.
pub fn run(input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
    // Most often each has one way to go, and none needs to be moved from burst to burst.
    if output.is_empty() && input.iter().all(|frame| matches!(frame.meta.target, Target::Remote(_))) {
        let (tables, mut last) = (cx.tables, Last::default());
        cx.each(input, |frame, cx| match frame.meta.target {
            Target::Remote(to) => encap(frame, to, tables, &mut last, cx),
            _ => Err(DropReason::FloodNobody),
        });
        last.count(cx.counters);
        std::mem::swap(input, output);
        return;
    }
    let mut last = Last::default();
    for frame in input.drain() {
        match frame.meta.target {
            Target::Remote(to) => send(frame, to, &mut last, output, cx),
            Target::Flood(state) if frame.home() != cx.me() => pass_home(frame, state, output, cx),
            Target::Flood(state) => replicate(frame, state, &mut last, output, cx),
            Target::Endpoint(_) | Target::Unknown | Target::Uplink(_) => {
                cx.drop(frame, DropReason::FloodNobody)
            }
        }
    }
    last.count(cx.counters);
}

/// The flow of a flooded frame comes by here, but copies are made where it entered: it goes on to there, in its place among the others.
fn pass_home(mut frame: Frame, state: Flooding, output: &mut Burst, cx: &mut Cx<'_>) {
    frame.meta.target = Target::Flood(Flooding { first: frame.home(), ..state });
    pass(frame, output, cx);
}

/// Head-end replication: one copy for each remote of the network; the last one is the frame itself, unless it goes on to tenants
/// elsewhere.
fn replicate<'t>(
    mut frame: Frame,
    state: Flooding,
    last: &mut Last<'t>,
    output: &mut Burst,
    cx: &mut Cx<'t>,
) {
    let (tables, id) = (cx.tables, frame.meta.network);
    let remotes = tables.network(id).map_or(&[][..], |network| &network.remotes);
    let Some((&end, others)) = remotes.split_last() else { return cx.drop(frame, DropReason::FloodNobody) };
    for &to in others {
        cx.count_copies(&frame, 1);
        send_copy(&frame, to, last, output, cx);
    }
    let Some(next) = cx.next_visit(id, state.first) else { return send(frame, end, last, output, cx) };
    // This one counts as the frame itself, and what tenants get as copies.
    send_copy(&frame, end, last, output, cx);
    frame.meta.target = Target::Flood(Flooding { given: true, ..state });
    cx.visit(frame, next, true);
}

fn send_copy<'t>(frame: &Frame, to: RemoteId, last: &mut Last<'t>, output: &mut Burst, cx: &mut Cx<'t>) {
    match super::copy(frame, cx.pool) {
        Ok(copy) => send(copy, to, last, output, cx),
        Err(reason) => super::count_drop(cx.counters, frame, None, reason),
    }
}

fn send<'t>(mut frame: Frame, to: RemoteId, last: &mut Last<'t>, output: &mut Burst, cx: &mut Cx<'t>) {
    match encap_apart(&mut frame, to, last, cx) {
        Ok(()) => pass(frame, output, cx),
        Err(reason) => cx.drop_or_answer(frame, reason),
    }
}

/// Copies can be more than a burst holds, and every input still needs its place.
#[inline]
fn pass(frame: Frame, output: &mut Burst, cx: &mut Cx<'_>) {
    if output.room() == 0 {
        cx.leave(output, &mut Burst::new());
    }
    cx.pass(frame, output);
}

/// [`encap`] where bursts are mixed: a function of its own, so that the usual loop has the other copy to itself.
#[inline(never)]
fn encap_apart<'t>(
    frame: &mut Frame,
    to: RemoteId,
    last: &mut Last<'t>,
    cx: &Cx<'t>,
) -> Result<(), DropReason> {
    encap(frame, to, cx.tables, last, cx)
}

/// What the frames before have in common, as most often all of a burst do: it is looked up, and counted, once.
#[derive(Default)]
struct Last<'t> {
    known: Option<Known<'t>>,
    /// Those that were to go there: it tells control that somebody wants this next hop.
    wanted: u64,
    /// Those that got their headers.
    frames: u64,
    bytes: u64,
}

/// A network and a remote that its frames go to.
#[derive(Clone, Copy)]
struct Known<'t> {
    id: NetworkId,
    to: RemoteId,
    network: &'t Network,
    way: &'t Way,
    plain: Plain<'t>,
}

/// What most remotes have: one path, and headers without a tag of which nothing but lengths, source port, VNI and the UDP checksum is a
/// frame's own.
#[derive(Clone, Copy)]
enum Plain<'t> {
    /// Over IPv4, where there is no checksum either.
    Ipv4(&'t Adjacency, &'t OuterTemplate),
    Ipv6(&'t Adjacency, &'t OuterTemplate<OVERHEAD_IPV6>),
    /// Something else.
    No,
}

impl<'t> Plain<'t> {
    fn of(way: &'t Way, network: &Network) -> Plain<'t> {
        match way {
            Way::One(path) if network.is_usual => match &path.outer {
                OuterHeaders::Ipv4(template) if !path.udp_checksum => Plain::Ipv4(path, template),
                OuterHeaders::Ipv6(template) => Plain::Ipv6(path, template),
                _ => Plain::No,
            },
            _ => Plain::No,
        }
    }
}

impl<'t> Last<'t> {
    fn count(&mut self, counters: &WorkerCounters) {
        let Some(known) = self.known else { return };
        if let Some(counter) = counters.remote(known.to) {
            counter.add(self.wanted);
        }
        if let Some(counters) = counters.network(known.id) {
            counters.to_underlay.frames.add(self.frames);
            counters.to_underlay.bytes.add(self.bytes);
        }
        (self.wanted, self.frames, self.bytes) = (0, 0, 0);
    }

    /// Another network or remote than before.
    #[inline(never)]
    fn find(
        &mut self,
        id: NetworkId,
        to: RemoteId,
        tables: &'t Tables,
        cx: &Cx<'_>,
    ) -> Result<Known<'t>, DropReason> {
        let network = tables.network(id).ok_or(DropReason::VniUnknown)?;
        self.count(cx.counters);
        self.known = None;
        let Some(way @ (Way::One(_) | Way::Several(_))) = tables.way(to, network.source) else {
            if let Some(counter) = cx.counters.remote(to) {
                counter.add(1);
            }
            return Err(DropReason::NextHopUnresolved);
        };
        let plain = Plain::of(way, network);
        let known = Known { id, to, network, way, plain };
        self.known = Some(known);
        Ok(known)
    }
}

#[inline(always)]
fn encap<'t>(
    frame: &mut Frame,
    to: RemoteId,
    tables: &'t Tables,
    last: &mut Last<'t>,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    let known = match last.known {
        Some(known) if known.to == to && known.id == frame.meta.network => known,
        _ => last.find(frame.meta.network, to, tables, cx)?,
    };
    last.wanted += 1; // before anything can fail
    let inner_len = frame.len();
    let tos = tables.dscps.get(frame.class().index()).copied().unwrap_or_default() << 2;
    // Whatever the tables say by the time it leaves: these headers belong to this wire.
    frame.meta.target = match known.plain {
        Plain::Ipv4(path, template) if inner_len <= path.inner_max && is_unmarked_ipv4(frame.bytes()) => {
            let source_port = path.source_ports.of(frame.meta.flow_hash);
            let head = frame.push(OVERHEAD_IPV4).and_then(|head| head.first_chunk_mut());
            let head = head.ok_or(DropReason::UplinkTooLong)?;
            template.write(head, inner_len as u16, known.network.vni, source_port);
            if tos != 0 {
                OuterTemplate::set_tos(head, tos);
            }
            path.target
        }
        Plain::Ipv6(path, template) if inner_len <= path.inner_max && is_unmarked_ipv4(frame.bytes()) => {
            encap_ipv6(frame, path, template, known.network, tos)?
        }
        _ => encap_other(frame, &known, tos, cx)?,
    };
    last.frames += 1;
    last.bytes += inner_len as u64;
    Ok(())
}

/// The usual case over IPv6.
#[inline(never)]
fn encap_ipv6(
    frame: &mut Frame,
    path: &Adjacency,
    template: &OuterTemplate<OVERHEAD_IPV6>,
    network: &Network,
    tos: u8,
) -> Result<Target, DropReason> {
    let source_port = path.source_ports.of(frame.meta.flow_hash);
    let own = OwnFields { vni: network.vni, source_port, port: None, tos, udp_checksum: path.udp_checksum };
    if push(frame, OVERHEAD_IPV6) && template.encapsulate(frame.bytes_mut(), &own) {
        Ok(path.target)
    } else {
        Err(DropReason::UplinkTooLong)
    }
}

/// With any path and any headers; returns the uplink that they are for.
#[inline(never)]
fn encap_other(frame: &mut Frame, known: &Known<'_>, tos: u8, cx: &Cx<'_>) -> Result<Target, DropReason> {
    let path = known.way.of(frame.meta.flow_hash).ok_or(DropReason::NextHopUnresolved)?;
    if frame.len() > path.inner_max {
        return Err(answer::too_big(frame, path.inner_max, cx));
    }
    let tos = outer_tos(frame.bytes(), known.network.dscp, tos);
    write_other(frame, path, known.network, tos)?;
    Ok(path.target)
}

/// Every other form of outer headers.
#[inline]
fn write_other(
    frame: &mut Frame,
    adjacency: &Adjacency,
    network: &Network,
    tos: u8,
) -> Result<(), DropReason> {
    let own = OwnFields {
        vni: network.vni,
        source_port: adjacency.source_ports.of(frame.meta.flow_hash),
        port: network.port,
        tos,
        udp_checksum: adjacency.udp_checksum,
    };
    if push(frame, adjacency.outer.len()) && adjacency.outer.write(frame.bytes_mut(), &own) {
        Ok(())
    } else {
        Err(DropReason::UplinkTooLong)
    }
}

/// Puts so many bytes in front of the frame, to be written. False if there is no room for them.
#[inline]
fn push(frame: &mut Frame, overhead: usize) -> bool {
    (frame.headroom() >= overhead || make_room(frame, overhead)) && frame.push(overhead).is_some()
}

/// Moves the frame, whose network had no remote with such long headers at the start, towards the end of its chunk.
#[cold]
#[inline(never)]
fn make_room(frame: &mut Frame, overhead: usize) -> bool {
    let (headroom, len) = (frame.headroom(), frame.len());
    let Some(both) = frame.reset(0, overhead + len) else { return false };
    both.copy_within(headroom..headroom + len, overhead);
    frame.pull(overhead)
}

/// What most frames hold: IPv4 without a tag before it, and its ECN field is zero.
#[inline(always)]
fn is_unmarked_ipv4(frame: &[u8]) -> bool {
    let word = frame.get(12..).and_then(|rest| rest.first_chunk());
    word.is_some_and(|word| u32::from_be_bytes(*word) & 0xffff_0003 == 0x0800_0000)
}

/// DSCP and ECN of the outer header. `tos` is the DSCP of the frame's class. The ECN field is the inner one (RFC 6040 §4.1, normal mode):
/// whoever takes the frame out carries marks over again.
#[inline]
fn outer_tos(frame: &[u8], dscp: OuterDscp, tos: u8) -> u8 {
    if dscp == OuterDscp::ByClass && is_unmarked_ipv4(frame) {
        return tos;
    }
    let inner = ecn::inner_tos(frame);
    let tos = match dscp {
        OuterDscp::ByClass => tos,
        OuterDscp::Copy => inner,
        OuterDscp::Fixed(dscp) => dscp << 2,
    };
    tos & !3 | inner & 3
}
