//! The answers: who they are, how long they took, and which are missing.

use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::types::Vni;
use peregrine_dataplane::wire::outer::{self, Vtep};
use peregrine_dataplane::wire::vxlan::VxlanHeader;
use peregrine_dataplane::xsk::XskSocket;
use serde::Serialize;

use super::SendSettings;
use crate::clock::now_ns;
use crate::error::Error;
use crate::latency::{Latency, Percentiles};
use crate::tracker::{Counts, Tracker};
use crate::trailer::{Trailer, elapsed};

/// What came back.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RttReport {
    /// Answers, duplicates included.
    pub received: u64,
    /// Packets sent that no answer came to.
    pub lost: u64,
    /// Answers overtaken by a later one.
    pub reordered: u64,
    /// Answers that had come before.
    pub duplicates: u64,
    /// Frames that were steered to us and are no answers to us.
    pub not_ours: u64,
    /// From the intended departure to the arrival of the answer.
    pub rtt_us: Option<Percentiles>,
}

/// Receives the answers of one sender.
#[derive(Debug)]
pub struct Rtt {
    vtep: Vtep,
    vni: Vni,
    /// Answers to what was sent before are none of ours.
    since: u64,
    burst: Burst,
    tracker: Tracker,
    latency: Latency,
    received: u64,
    distinct: u64,
    not_ours: u64,
}

impl Rtt {
    /// For the answers to what these settings send.
    pub fn new(settings: &SendSettings) -> Result<Rtt, Error> {
        Ok(Rtt {
            vtep: Vtep { address: settings.local, port: settings.port },
            vni: settings.vni,
            since: now_ns(),
            burst: Burst::new(),
            tracker: Tracker::new(usize::from(settings.inner.flows)),
            latency: Latency::new()?,
            received: 0,
            distinct: 0,
            not_ours: 0,
        })
    }

    /// Takes what has arrived, and returns how many frames there were.
    #[inline]
    pub fn receive(&mut self, socket: &mut XskSocket, pool: &mut FramePool) -> usize {
        let count = socket.receive(pool, &mut self.burst);
        if count == 0 {
            return 0;
        }
        let now = now_ns();
        for frame in self.burst.drain() {
            let ours = trailer(frame.bytes(), self.vtep, self.vni)
                .filter(|trailer| elapsed(self.since, trailer.time) == 0);
            match ours {
                Some(trailer) if self.tracker.record(trailer.flow, trailer.sequence) => {
                    self.received += 1;
                    self.latency.record(elapsed(now, trailer.time));
                }
                _ => self.not_ours += 1,
            }
            pool.put(frame);
        }
        socket.refill(pool);
        self.distinct = self.received - self.tracker.counts().duplicates;
        count
    }

    /// Answers so far, each once.
    pub fn distinct(&self) -> u64 {
        self.distinct
    }

    /// `sent` packets could have been answered.
    pub fn report(&self, sent: u64) -> RttReport {
        let Counts { distinct, reordered, duplicates, .. } = self.tracker.counts();
        RttReport {
            received: self.received,
            lost: sent.saturating_sub(distinct),
            reordered,
            duplicates,
            not_ours: self.not_ours,
            rtt_us: self.latency.percentiles(),
        }
    }
}

/// The trailer in a VXLAN frame of our network to us.
///
/// The outer UDP checksum is not looked at: the kernel's vxlan device sends one and Peregrine none, and neither half of a
/// comparison shall pay for it here.
#[inline]
fn trailer(frame: &[u8], vtep: Vtep, vni: Vni) -> Option<Trailer> {
    let outer = outer::parse_unsummed(frame, vtep).ok()?;
    let payload = frame.get(outer.header_len..)?.get(..outer.payload_len)?;
    let (vxlan, inner) = VxlanHeader::split(payload).ok()?;
    if vxlan.vni() == vni { Trailer::of_frame(inner) } else { None }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use peregrine_dataplane::types::MacAddr;
    use peregrine_dataplane::wire::outer::OuterFields;

    use super::*;
    use crate::template::{Inner, Template, Vxlan};

    #[test]
    fn an_answer_is_known_by_all_its_headers() {
        let (vni, vtep) = (Vni::new(7).unwrap(), Vtep { address: Ipv4Addr::new(192, 0, 2, 2), port: 4789 });
        let inner = Inner {
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
            destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 9000),
            size: 60,
            flows: 1,
        };
        let outer = OuterFields {
            destination_mac: MacAddr([4, 0, 0, 0, 0, 2]),
            source_mac: MacAddr([4, 0, 0, 0, 0, 1]),
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: vtep.address,
            port: vtep.port,
            ttl: 64,
        };
        let template = Template::new(&inner, Some(&Vxlan { outer, vni })).unwrap();
        let mut frame = vec![0; template.len()];
        let packet = Trailer { flow: 0, sequence: 5, time: 6 };
        assert!(template.write(&mut frame, packet));
        assert_eq!(trailer(&frame, vtep, vni), Some(packet));
        assert_eq!(trailer(&frame, vtep, Vni::new(8).unwrap()), None);
        assert_eq!(trailer(&frame, Vtep { port: 4790, ..vtep }, vni), None);
        assert_eq!(trailer(&frame, Vtep { address: outer.source, ..vtep }, vni), None);
        for len in 0..frame.len() {
            assert_eq!(trailer(&frame[..len], vtep, vni), None, "{len} bytes");
        }
    }
}
