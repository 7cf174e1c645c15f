//! The answers: who they are, how long they took, and which are missing.

use peregrine_dataplane::types::Vni;
use peregrine_dataplane::wire::outer::Vtep;
use serde::Serialize;

use crate::error::Error;
use crate::latency::{Latency, Percentiles};
use crate::port::xdp::inner;
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
    /// All that [`rtt_us`](Self::rtt_us) is taken from.
    #[serde(skip)]
    pub latency: Latency,
}

/// How an answer looks.
#[derive(Clone, PartialEq, Debug)]
pub enum Expected {
    /// A frame as it is.
    Plain,
    /// A VXLAN frame to us, of one of these networks.
    Vxlan(Vtep, Vec<Vni>),
}

/// Receives the answers of one sender.
#[derive(Debug)]
pub struct Rtt {
    expected: Expected,
    /// Answers to packets of another run are none of ours.
    run: u16,
    tracker: Tracker,
    latency: Latency,
    received: u64,
    not_ours: u64,
}

impl Rtt {
    /// For the answers to what so many flows send in this run.
    ///
    /// # Errors
    /// No memory for the histogram.
    pub fn new(expected: Expected, flows: usize, run: u16) -> Result<Rtt, Error> {
        let (tracker, latency) = (Tracker::new(flows), Latency::new()?);
        Ok(Rtt { expected, run, tracker, latency, received: 0, not_ours: 0 })
    }

    /// A frame arrived.
    #[inline]
    pub fn record(&mut self, now: u64, frame: &[u8]) {
        let ours = self.expected.trailer(frame).filter(|trailer| trailer.run == self.run);
        match ours {
            Some(trailer) if self.tracker.record(trailer.flow, trailer.sequence) => {
                self.received += 1;
                self.latency.record(elapsed(now, trailer.time));
            }
            _ => self.not_ours += 1,
        }
    }

    /// Answers so far, each once.
    pub fn distinct(&self) -> u64 {
        self.tracker.counts().distinct
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
            latency: self.latency.clone(),
        }
    }
}

impl Expected {
    /// The trailer of an answer to us.
    #[inline]
    fn trailer(&self, frame: &[u8]) -> Option<Trailer> {
        let Expected::Vxlan(vtep, vnis) = self else { return Trailer::of_frame(frame) };
        inner(frame, *vtep, vnis).and_then(Trailer::of_frame)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use peregrine_dataplane::types::MacAddr;
    use peregrine_dataplane::wire::outer::OuterFields;

    use super::*;
    use crate::template::{Inner, Template, Vxlan};

    fn headers() -> Inner {
        Inner {
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
            destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 9000),
            size: 60,
            flows: 1,
        }
    }

    /// Answers that came too late to tell whether they had come before stand for no packet.
    #[test]
    fn what_is_too_old_to_tell_is_no_answer_that_was_missing() {
        let mut rtt = Rtt::new(Expected::Plain, 1, 7).unwrap();
        let template = Template::new(&headers(), None).unwrap();
        let mut frame = vec![0; template.len()];
        for sequence in [10_000, 0, 1, 10_000] {
            assert!(template.write(&mut frame, Trailer { run: 7, flow: 0, sequence, time: 6 }));
            rtt.record(7, &frame);
        }
        assert_eq!((rtt.received, rtt.distinct()), (4, 1));
        assert!(template.write(&mut frame, Trailer { run: 8, flow: 0, sequence: 10_001, time: 6 }));
        rtt.record(7, &frame);
        assert_eq!((rtt.received, rtt.not_ours), (4, 1), "an answer to another run");
    }

    #[test]
    fn an_answer_is_known_by_all_its_headers() {
        let (vni, vtep) = (Vni::new(7).unwrap(), Vtep { address: Ipv4Addr::new(192, 0, 2, 2), port: 4789 });
        let outer = OuterFields {
            destination_mac: MacAddr([4, 0, 0, 0, 0, 2]),
            source_mac: MacAddr([4, 0, 0, 0, 0, 1]),
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: vtep.address,
            port: vtep.port,
            ttl: 64,
        };
        let template = Template::new(&headers(), Some(&Vxlan { outer, vni })).unwrap();
        let mut frame = vec![0; template.len()];
        let packet = Trailer { run: 7, flow: 0, sequence: 5, time: 6 };
        assert!(template.write(&mut frame, packet));
        let trailer = |frame: &[u8], vtep, vni| Expected::Vxlan(vtep, vec![vni]).trailer(frame);
        assert_eq!(trailer(&frame, vtep, vni), Some(packet));
        assert_eq!(trailer(&frame, vtep, Vni::new(8).unwrap()), None);
        assert_eq!(trailer(&frame, Vtep { port: 4790, ..vtep }, vni), None);
        assert_eq!(trailer(&frame, Vtep { address: outer.source, ..vtep }, vni), None);
        for len in 0..frame.len() {
            assert_eq!(trailer(&frame[..len], vtep, vni), None, "{len} bytes");
        }
        assert_eq!(Expected::Plain.trailer(&frame[50..]), Some(packet));
    }
}
