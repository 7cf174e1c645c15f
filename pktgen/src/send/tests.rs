//! One thread's flows: proportions, order, and that a seed repeats; and the loop against a wire that is full.

use std::collections::HashMap;

use peregrine_dataplane::xsk::Kicks;

use super::*;
use crate::limits::Ended;
use crate::limits::Stop;
use crate::profile::Draft;
use crate::trailer::Trailer;
use wire::Written;

const FLOWS: &str = r#"
    [flows]
    source_mac = "02:00:00:00:01:01"
    destination_mac = "02:00:00:00:02:01"
    source_ip = "10.0.0.1"
    destination_ip = "10.0.1.1"
"#;

/// A load of one thread of `threads`, everything of it due at once.
fn load(text: &str, thread: u32, threads: u32) -> FlowLoad {
    let profile = Profile::new(Draft::parse(&format!("rate = 'max'\n{text}")).unwrap(), threads).unwrap();
    FlowLoad::new(&profile, &flows::template(&profile, None), thread, threads, 0).unwrap()
}

fn packet(load: &mut FlowLoad) -> (Vec<u8>, Trailer, Written) {
    let mut out = vec![0xee; load.next_len()];
    let written = load.write(5, &mut out).unwrap();
    let trailer = Trailer::of_frame(&out).unwrap();
    (out, trailer, written)
}

#[test]
fn imix_is_7_to_4_to_1_in_every_dozen() {
    let mut load = load(&format!("sizes = 'imix'\n{FLOWS}"), 0, 1);
    for _ in 0..50 {
        let mut counts = HashMap::new();
        for _ in 0..12 {
            *counts.entry(packet(&mut load).0.len()).or_insert(0) += 1;
        }
        assert_eq!(counts, HashMap::from([(60, 7), (590, 4), (1514, 1)]));
    }
}

#[test]
fn frames_of_all_sizes_have_right_checksums() {
    let mut load = load(&format!("sizes = '60,61,99,100,1514'\n{FLOWS}count = 3\n"), 0, 1);
    for _ in 0..50 {
        let (frame, ..) = packet(&mut load);
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!() };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(usize::from(header.total_len), frame.len() - 14);
        let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else { panic!() };
        assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap());
    }
}

#[test]
fn zipf_gives_the_first_flow_its_part() {
    let mut load = load(&format!("seed = 7\n{FLOWS}count = 4\nchoice = 'zipf:1'\n"), 0, 1);
    let mut counts = [0u32; 4];
    let mut sequences = [0u64; 4];
    for _ in 0..25_000 {
        let (_, trailer, _) = packet(&mut load);
        let flow = usize::from(trailer.flow);
        assert_eq!(trailer.sequence, sequences[flow], "each flow counts by itself");
        sequences[flow] += 1;
        counts[flow] += 1;
    }
    for (got, wanted) in counts.iter().zip([12_000, 6_000, 4_000, 3_000]) {
        assert!(got.abs_diff(wanted) < 300, "{counts:?}");
    }
}

/// However many threads there are, each flow has the part of all packets that it has with one.
#[test]
fn zipf_is_zipf_over_all_threads() {
    const PACKETS: u64 = 400_000;
    let text = "[[classes]]\nname='a'\nshare=3\n[[classes]]\nname='b'\nshare=1\n";
    for (text, flows) in [("", 40), (text, 40)] {
        let text = format!("seed = 7\n{FLOWS}count = {flows}\nchoice = 'zipf:1.1'\n{text}");
        for threads in [1, 2, 3, 7] {
            let made = format!("rate = {PACKETS}\n{text}");
            let profile = Profile::new(Draft::parse(&made).unwrap(), threads).unwrap();
            let mut counts = vec![0u64; flows];
            for thread in 0..threads {
                let part = profile.parts[thread as usize].of(PACKETS);
                let Some(Rate::Pps(pps)) = profile.rate.part(&profile.parts[thread as usize]) else {
                    panic!()
                };
                assert_eq!(pps.get(), part, "rate and count are shared out alike");
                let mut load = load(&text, thread, threads);
                for _ in 0..part {
                    let Trailer { flow, sequence, .. } = packet(&mut load).1;
                    assert_eq!(sequence, counts[usize::from(flow)], "one thread counts them");
                    counts[usize::from(flow)] += 1;
                }
            }
            assert_eq!(counts.iter().sum::<u64>(), PACKETS);
            let shares: f64 = profile.classes.iter().map(|class| f64::from(class.share)).sum();
            for class in &profile.classes {
                let weights: Vec<f64> = (1..=class.flow_count).map(|n| f64::from(n).powf(-1.1)).collect();
                let of_all = f64::from(class.share) / shares / weights.iter().sum::<f64>();
                for (flow, weight) in class.flows().zip(&weights) {
                    let wanted = PACKETS as f64 * weight * of_all;
                    let got = counts[flow as usize] as f64;
                    // Five standard deviations, and what rounding a rate may cost.
                    assert!(
                        (got - wanted).abs() < 5.0 * wanted.sqrt() + 2.0,
                        "{threads} threads, flow {flow}: {got}, not {wanted}"
                    );
                }
            }
        }
    }
}

#[test]
fn classes_get_their_share_their_mark_and_their_port() {
    let classes =
        "[[classes]]\nname='a'\nshare=3\n[[classes]]\nname='b'\nshare=1\ndscp=46\ndestination_port=5004\n";
    let mut load = load(&format!("{FLOWS}count = 8\n{classes}"), 0, 1);
    let mut counts = [0; 2];
    for _ in 0..400 {
        let (frame, trailer, written) = packet(&mut load);
        counts[usize::from(written.class)] += 1;
        let (tos, port) = (frame[15], u16::from_be_bytes([frame[36], frame[37]]));
        assert_eq!((tos, port), if written.class == 1 { (46 << 2, 5004) } else { (0, 9000) });
        assert_eq!(written.class, u8::from(trailer.flow >= 6), "the flow tells the class");
    }
    assert_eq!(counts, [300, 100]);
}

#[test]
fn a_seed_repeats_and_threads_have_flows_of_their_own() {
    let text = format!("sizes = 'imix'\n{FLOWS}count = 9\nchoice = 'uniform'\n");
    let frames = |text: &str, thread| {
        let mut load = load(text, thread, 2);
        (0..200).map(|_| packet(&mut load)).collect::<Vec<_>>()
    };
    assert_eq!(frames(&text, 0), frames(&text, 0));
    assert_ne!(frames(&text, 0), frames(&format!("seed = 2\n{text}"), 0));
    for thread in 0..2 {
        assert!(frames(&text, thread).iter().all(|(_, trailer, _)| u32::from(trailer.flow) % 2 == thread));
    }
}

/// A wire that takes nothing until `open_at`, and then a few frames at a time.
struct Stalled {
    open_at: u64,
    at_once: usize,
    built: Vec<Vec<u8>>,
    taken: std::sync::mpsc::Sender<(u64, Vec<u8>)>,
}

impl Wire for Stalled {
    fn room(&mut self) -> Result<usize, Error> {
        Ok(8 - self.built.len())
    }

    fn build(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let mut frame = vec![0; len];
        let done = write(&mut frame);
        self.built.extend(done.then_some(frame));
        done
    }

    fn built(&self) -> usize {
        self.built.len()
    }

    fn transmit(&mut self, now: u64) -> Result<usize, Error> {
        if now < self.open_at {
            return Ok(0);
        }
        let count = self.built.len().min(self.at_once);
        self.built.drain(..count).try_for_each(|frame| self.taken.send((now, frame))).unwrap();
        Ok(count)
    }

    fn complete(&mut self) -> usize {
        0
    }

    fn outstanding(&mut self) -> usize {
        0
    }

    fn receive(&mut self, _each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        Ok(0)
    }

    fn sleep(&mut self, longest_ns: u64, _listening: bool) -> Result<(), Error> {
        std::thread::sleep(Duration::from_nanos(longest_ns));
        Ok(())
    }

    fn gone(&mut self) -> Option<String> {
        None
    }

    fn discard(&mut self) -> usize {
        self.built.drain(..).count()
    }

    fn kicks(&mut self) -> Kicks {
        Kicks::default()
    }
}

/// The wire is full for 50 ms. What was meant to leave in that time still says so: the stall is seen as latency.
#[test]
fn a_stalled_wire_shows_as_latency_from_the_intended_time() {
    let profile = Profile::new(Draft::parse(&format!("rate = 2000\n{FLOWS}")).unwrap(), 1).unwrap();
    let (start_ns, stop, sent) = (now_ns(), Stop::new(), [AtomicU64::new(0)]);
    let run = Run { start_ns, wait: SendWait::Yield, stop: &stop, sent: &sent, goal: None };
    let load = FlowLoad::new(&profile, &flows::template(&profile, None), 0, 1, start_ns).unwrap();
    let (taken, arrivals) = std::sync::mpsc::channel();
    let mut wire = Stalled { open_at: start_ns + 50_000_000, at_once: 8, built: Vec::new(), taken };
    let limits = SendSettings::limits(None, Some(120), None);
    let part = Engine::new(&mut wire, load, None, &run, 0, 1).run(&limits);
    drop(wire);
    let arrivals: Vec<(u64, Vec<u8>)> = arrivals.iter().collect();
    assert_eq!((part.tally.handed, arrivals.len(), part.ended), (120, 120, Ended::Count));
    assert_eq!(part.tally.classes, [(120, 120 * 64)]);
    for (n, (at, frame)) in (0u64..).zip(&arrivals) {
        let trailer = Trailer::of_frame(frame).unwrap();
        let due = start_ns + n * 500_000;
        assert_eq!(
            (trailer.sequence, trailer.time),
            (n, due & ((1 << 48) - 1)),
            "as meant, whatever happened"
        );
        if n < 100 {
            assert!(at - due >= 50_000_000 - n * 500_000, "packet {n} waited");
        }
    }
    assert!(part.tally.late >= 80, "{}", part.tally.late);
}

/// Frames are counted by class and length when they are taken, however few of those that were built that is.
#[test]
fn what_is_counted_is_what_was_taken() {
    let text = format!(
        "rate = 'max'\nsizes = 'imix'\n{FLOWS}count = 8\n[[classes]]\nname='a'\nshare=3\n[[classes]]\nname='b'\nshare=1\n"
    );
    let profile = Profile::new(Draft::parse(&text).unwrap(), 1).unwrap();
    let first_of_b = profile.classes[1].first_flow;
    let (stop, sent) = (Stop::new(), [AtomicU64::new(0)]);
    let run = Run { start_ns: 0, wait: SendWait::Poll, stop: &stop, sent: &sent, goal: None };
    for at_once in [1, 3, 7, 8] {
        let load = FlowLoad::new(&profile, &flows::template(&profile, None), 0, 1, 0).unwrap();
        let (taken, arrivals) = std::sync::mpsc::channel();
        let mut wire = Stalled { open_at: 0, at_once, built: Vec::new(), taken };
        let mut engine = Engine::new(&mut wire, load, None, &run, 0, 2);
        let mut wanted = (vec![(0, 0); 2], 0);
        for now in 1..200 {
            engine.step(now, u64::MAX, u64::MAX).unwrap();
            for (_, frame) in arrivals.try_iter() {
                let flow = Trailer::of_frame(&frame).unwrap().flow;
                let class = &mut wanted.0[usize::from(u32::from(flow) >= first_of_b)];
                *class = (class.0 + 1, class.1 + frame.len() as u64);
                wanted.1 += 1;
            }
            let tally = engine.tally();
            assert_eq!((&tally.classes, tally.handed), (&wanted.0, wanted.1), "turn {now}");
            assert_eq!(tally.bytes, wanted.0.iter().map(|class| class.1).sum::<u64>());
        }
        assert_eq!(wanted.1, 199 * at_once as u64);
    }
}

/// One thread's run over a wire that takes nothing until `open_ns` after the start.
fn run_until<L: Load>(
    load: impl FnOnce(u64) -> L,
    open_ns: u64,
    limits: &Limits,
    stop: &Stop,
) -> (u64, Part) {
    let (start_ns, sent) = (now_ns(), [AtomicU64::new(0)]);
    let run = Run { start_ns, wait: SendWait::Block, stop, sent: &sent, goal: None };
    let (taken, _arrivals) = std::sync::mpsc::channel();
    let mut wire = Stalled { open_at: start_ns + open_ns, at_once: 8, built: Vec::new(), taken };
    (start_ns, Engine::new(&mut wire, load(start_ns), None, &run, 0, 1).run(limits))
}

/// The next burst would be due in 100 s, which nobody waited for.
#[test]
fn a_run_lasts_no_longer_than_it_did() {
    let text = format!("rate = 1\narrivals = 'bursts:100'\n{FLOWS}");
    let profile = Profile::new(Draft::parse(&text).unwrap(), 1).unwrap();
    let template = flows::template(&profile, None);
    let stopped = Stop::new();
    stopped.set();
    for (seconds, count, stop, ended) in [
        (Some(0.02), None, Stop::new(), Ended::Seconds),
        (Some(60.0), None, stopped, Ended::Signal),
        (None, Some(100), Stop::new(), Ended::Count),
    ] {
        let load = |start| FlowLoad::new(&profile, &template, 0, 1, start).unwrap();
        let (start, part) = run_until(load, 0, &SendSettings::limits(seconds, count, None), &stop);
        assert_eq!(part.ended, ended);
        assert!((start..=now_ns()).contains(&part.end_ns), "{ended:?}: {} ns", part.end_ns - start);
    }
}

/// The packets of a rate have a time each, the last one, too.
#[test]
fn a_count_at_a_rate_lasts_as_long_as_the_rate_says() {
    let profile = Profile::new(Draft::parse(&format!("rate = 1000\n{FLOWS}")).unwrap(), 1).unwrap();
    let template = flows::template(&profile, None);
    let load = |start| FlowLoad::new(&profile, &template, 0, 1, start).unwrap();
    let (start, part) = run_until(load, 0, &SendSettings::limits(None, Some(5), None), &Stop::new());
    assert!(part.ended == Ended::Count && part.end_ns - start >= 5_000_000, "{} ns", part.end_ns - start);
}

/// A replay leaves nothing out, but its time: 20 ms of 20 million a second, over a wire that is stuck.
#[test]
fn a_replay_that_is_too_late_ends_and_gives_the_rest_up() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
    for stamp in [0, 1000u32] {
        for field in [0, stamp, 60, 60] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend([7; 60]);
    }
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    // Each packet leaves after a millisecond as recorded, and the last one waits another.
    for (pace, due) in [
        (Pace::Rate("20000000".parse().unwrap(), Arrivals::Constant), 400_000),
        (Pace::Recorded(1.0), 20),
        (Pace::Recorded(1000.0), 20_000),
    ] {
        let settings = ReplaySettings { pace, loops: u64::MAX, ..ReplaySettings::new(file.path()) };
        let capture = Capture::read(&settings, 1514).unwrap();
        let load = |start| Replay::new(&capture, &settings, None, start);
        let limits = SendSettings::limits(Some(0.02), None, None);
        let (_, part) = run_until(load, 300_000_000, &limits, &Stop::new());
        assert_eq!(
            (part.ended, part.tally.handed + part.tally.skipped, part.due),
            (Ended::Seconds, due, due)
        );
        assert_eq!(part.tally.handed, 8, "what was built before");
    }
}
