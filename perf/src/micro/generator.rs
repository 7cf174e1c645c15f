//! Micro-benches of the generator: what `peregrine-pktgen send --rate max` does for a burst into a memif ring, with one flow and
//! with many; beside it `memif/send/client/64` is the ring alone, with a packet that never changes. Used by `micro`.

use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use peregrine_pktgen::limits::Stop;
use peregrine_pktgen::profile::{Draft, Profile};
use peregrine_pktgen::send::engine::{Engine, Run};
use peregrine_pktgen::send::flows::{FlowLoad, template};
use peregrine_pktgen::send::{MemifWire, SendWait};

use super::{Case, Maker, PACKETS, case, maker};
use crate::rig::pair;

pub fn cases() -> Vec<Maker> {
    [("generator/1-flow", 1), ("generator/1000-flows", 1000)]
        .map(|(name, flows)| maker(name, move |name| Generator::new(flows).map(|it| it.case(name))))
        .into()
}

/// A sender as in a run, and who takes from the ring it sends.
struct Generator {
    engine: Engine<'static, MemifWire, FlowLoad>,
    taker: Interface,
    now: u64,
}

impl Generator {
    /// 64-byte frames of so many flows, all of them due at once.
    fn new(flows: u16) -> Result<Generator, String> {
        let (mut client, taker) = pair(ClientConfig::default(), ServerConfig::default())?;
        let (Some(tx), Some(rx)) = (client.tx.pop(), client.rx.pop()) else { return Err("no ring".into()) };
        let profile = profile(flows)?;
        let load =
            FlowLoad::new(&profile, &template(&profile, None), 0, 1, 0).map_err(|why| why.to_string())?;
        // What a run keeps on its stack lives as long as the program here.
        let wire = Box::leak(Box::new(MemifWire::new(tx, rx, None, "perf".into(), profile.longest())));
        let stop = Box::leak(Box::new(Stop::new()));
        let run = Box::leak(Box::new(Run { start_ns: 0, wait: SendWait::Poll, stop, sent: &[], goal: None }));
        Ok(Generator { engine: Engine::new(wire, load, None, run, 0, 1), taker, now: 0 })
    }

    /// Empties the ring, whatever is in it.
    fn take(&mut self) {
        self.now += 1000;
        let Some(rx) = self.taker.rx.first_mut() else { return };
        let _pending = rx.pending();
        while rx.next_packet().is_some() {}
        rx.release();
    }

    /// One turn of the generator's loop; how many packets it sent.
    #[inline]
    fn send(&mut self) -> usize {
        let before = self.engine.tally().handed;
        match self.engine.step(self.now, u64::MAX, u64::MAX) {
            Ok(_) => (self.engine.tally().handed - before) as usize,
            Err(_) => 0,
        }
    }

    fn case(self, name: &str) -> Case {
        case(name, self, Generator::take, |it| it.send().min(PACKETS))
    }
}

fn profile(flows: u16) -> Result<Profile, String> {
    let text = format!(
        "rate = 'max'\nsizes = '64'\n[flows]\ncount = {flows}\nsource_mac = '02:00:00:00:01:01'\n\
         destination_mac = '02:00:00:00:02:01'\nsource_ip = '10.0.0.1'\ndestination_ip = '10.0.1.1'\n"
    );
    let draft = Draft::parse(&text).map_err(|why| why.to_string())?;
    Profile::new(draft, 1).map_err(|why| why.to_string())
}
