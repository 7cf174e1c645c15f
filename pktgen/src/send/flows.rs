//! One sender's part of a profile: which flow, which size, when.

use std::sync::Arc;

use peregrine_dataplane::wire::outer::OuterFields;

use super::wire::{Load, Written};
use crate::clock::SECOND;
use crate::error::Error;
use crate::pacer::{Pacer, Rate};
use crate::profile::parts::{self, Part};
use crate::profile::{Choice, Class, Profile};
use crate::rng::{Deck, Rng, Weighted};
use crate::template::Template;
use crate::trailer::Trailer;

/// The flows that are sent by one thread.
#[derive(Debug)]
pub struct FlowLoad {
    template: Arc<Template>,
    run: u16,
    pacer: Pacer,
    rng: Rng,
    /// Which class is next, and what each has.
    classes: Classes,
    choosers: Vec<Chooser>,
    /// Which size is next, and the frames' lengths.
    sizes: Deck,
    lens: Vec<usize>,
    /// The next number of each flow, by the flow's own.
    sequences: Vec<u64>,
    next: Next,
    /// There is one class and one size: packets differ by their flow only.
    alike: bool,
}

/// What the next packet will be.
#[derive(Clone, Copy, Debug)]
struct Next {
    flow: u16,
    class: u8,
    len: usize,
}

/// Chooses among classes.
#[derive(Debug)]
enum Classes {
    /// Exactly by their shares.
    Dealt(Deck),
    /// By the weights of those of their flows that are this thread's, which are no whole numbers.
    Weighted(Weighted),
}

impl Classes {
    fn new(profile: &Profile, part: &Part) -> Option<Classes> {
        let shares: Vec<u32> = profile.classes.iter().map(|class| class.share).collect();
        let weighted =
            shares.len() > 1 && profile.parts.len() > 1 && matches!(profile.flows.choice, Choice::Zipf(_));
        if weighted {
            return Some(Classes::Weighted(Weighted::new(&part.classes)));
        }
        Deck::new(&shares).map(Classes::Dealt)
    }

    #[inline]
    fn draw(&mut self, rng: &mut Rng) -> usize {
        match self {
            Classes::Dealt(deck) => deck.draw(rng),
            Classes::Weighted(weights) => weights.draw(rng),
        }
    }
}

/// Chooses among the flows of one class that are this thread's.
#[derive(Debug)]
struct Chooser {
    flows: Vec<u16>,
    /// Whose turn it is.
    at: usize,
    choice: Chosen,
}

#[derive(Debug)]
enum Chosen {
    InTurn,
    Uniform,
    Weighted(Weighted),
}

impl Chooser {
    fn new(class: &Class, choice: Choice, thread: u32, threads: u32) -> Chooser {
        let flows = || parts::flows(class, thread, threads);
        let chosen = match choice {
            Choice::RoundRobin => Chosen::InTurn,
            Choice::Uniform => Chosen::Uniform,
            Choice::Zipf(_) => {
                let weights = flows().map(|flow| parts::weight(class, choice, flow));
                Chosen::Weighted(Weighted::new(&weights.collect::<Vec<_>>()))
            }
        };
        Chooser { flows: flows().map(|flow| flow as u16).collect(), at: 0, choice: chosen }
    }

    #[inline(always)]
    fn choose(&mut self, rng: &mut Rng) -> u16 {
        let at = match &self.choice {
            Chosen::InTurn => {
                let at = self.at;
                self.at = if at + 1 < self.flows.len() { at + 1 } else { 0 };
                at
            }
            Chosen::Uniform => rng.below(self.flows.len() as u32) as usize,
            Chosen::Weighted(weights) => weights.draw(rng),
        };
        self.flows.get(at).copied().unwrap_or(0)
    }
}

/// The frames of all flows of a profile; the threads share them.
pub fn template(profile: &Profile, outer: Option<&OuterFields>) -> Arc<Template> {
    Arc::new(Template::of_flows((0..profile.flows.count).map(|number| profile.flow(number)), outer))
}

impl FlowLoad {
    /// The part of thread number `thread` of `threads`: of each class every so-many-th flow, and of the rate as much
    /// as these flows have of the packets.
    ///
    /// # Errors
    /// Never, for a profile that was made for so many threads.
    pub fn new(
        profile: &Profile,
        template: &Arc<Template>,
        thread: u32,
        threads: u32,
        start_ns: u64,
    ) -> Result<FlowLoad, Error> {
        let chooser = |class: &Class| Chooser::new(class, profile.flows.choice, thread, threads);
        let unfit = || Error::Arguments("the profile does not fit so many --threads".into());
        let part = profile.parts.get(thread as usize).ok_or_else(unfit)?;
        let overhead = template.overhead();
        let stream = u64::from(thread) * 2;
        let pacer = Pacer::with(
            profile.rate.part(part).ok_or_else(unfit)?,
            profile.arrivals,
            profile.sizes.mean() + overhead as f64,
            Rng::new(profile.seed, stream + 1),
            start_ns + phase_ns(profile, overhead, thread),
        );
        let mut load = FlowLoad {
            template: Arc::clone(template),
            run: 0,
            pacer,
            rng: Rng::new(profile.seed, stream),
            classes: Classes::new(profile, part).ok_or_else(unfit)?,
            choosers: profile.classes.iter().map(chooser).collect(),
            sizes: Deck::new(&profile.sizes.weights()).ok_or_else(unfit)?,
            lens: profile.sizes.iter().map(|size| size.bytes + overhead).collect(),
            sequences: vec![0; template.flows()],
            next: Next { flow: 0, class: 0, len: 0 },
            alike: profile.classes.len() == 1 && profile.sizes.iter().count() == 1,
        };
        load.next = load.draw();
        Ok(load)
    }

    /// The same, as part of this run.
    #[must_use]
    pub fn of_run(self, run: u16) -> FlowLoad {
        FlowLoad { run, ..self }
    }

    #[inline]
    fn draw(&mut self) -> Next {
        let class = self.classes.draw(&mut self.rng);
        let flow = self.choosers.get_mut(class).map_or(0, |chooser| chooser.choose(&mut self.rng));
        let len = self.lens.get(self.sizes.draw(&mut self.rng)).copied().unwrap_or(0);
        Next { flow, class: class as u8, len }
    }
}

/// Threads begin one after the other, so that together they are as even as one.
fn phase_ns(profile: &Profile, overhead: usize, thread: u32) -> u64 {
    let gap = match profile.rate {
        Rate::Pps(pps) => SECOND as f64 / pps.get() as f64,
        Rate::Bits(bits) => {
            (profile.sizes.mean() + overhead as f64) * 8.0 * SECOND as f64 / bits.get() as f64
        }
        Rate::Max => 0.0,
    };
    (gap * f64::from(thread)) as u64
}

impl Load for FlowLoad {
    #[inline]
    fn next_ns(&self, now: u64) -> u64 {
        self.pacer.next_ns(now)
    }

    fn slot_end_ns(&self, now: u64) -> u64 {
        self.pacer.slot_end_ns(now)
    }

    #[inline]
    fn next_len(&self) -> usize {
        self.next.len
    }

    #[inline]
    fn write(&mut self, now: u64, out: &mut [u8]) -> Option<Written> {
        let Next { flow, class, len } = self.next;
        let due = self.pacer.take(now, len)?;
        let sequence = self.sequences.get_mut(usize::from(flow))?;
        if !self.template.write(out, Trailer { run: self.run, flow, sequence: *sequence, time: due }) {
            return None; // never: the sizes have been checked
        }
        *sequence += 1;
        match self.choosers.first_mut().filter(|_| self.alike) {
            Some(chooser) => self.next.flow = chooser.choose(&mut self.rng),
            None => self.next = self.draw(),
        }
        Some(Written { due, class })
    }

    #[inline]
    fn skip_overdue(&mut self, now: u64) -> u64 {
        self.pacer.skip_overdue(now)
    }

    fn due_before(&mut self, end_ns: u64) -> u64 {
        self.pacer.take_before(end_ns, self.next.len)
    }
}
