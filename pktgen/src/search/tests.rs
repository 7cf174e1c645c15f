//! The search against devices that are formulas.

use proptest::prelude::*;

use super::*;

/// A sender and a device: what they send and forward of a load.
struct Simulated {
    /// The most that the sender can send.
    sender: f64,
    /// Packets a second that get through, of so many.
    forwards: Box<dyn FnMut(f64) -> f64>,
}

impl Simulated {
    fn new(sender: f64, forwards: impl FnMut(f64) -> f64 + 'static) -> Simulated {
        Simulated { sender, forwards: Box::new(forwards) }
    }

    fn trial(&mut self, rate: Rate, duration: Duration) -> Counted {
        let asked = match rate {
            Rate::Pps(pps) => pps.get() as f64,
            Rate::Max => f64::INFINITY,
            Rate::Bits(_) => panic!("a search counts packets"),
        };
        let seconds = duration.as_secs_f64();
        let sent = (asked.min(self.sender) * seconds).round();
        let through = ((self.forwards)(sent / seconds) * seconds).min(sent).round();
        let skipped = if asked.is_finite() { (asked * seconds - sent).max(0.0) as u64 } else { 0 };
        let (sent, received) = (sent as u64, through as u64);
        Counted {
            due: sent + skipped,
            sent,
            received,
            arriving: None,
            late: 0,
            skipped,
            sending: duration,
            took: duration,
        }
    }

    fn search(mut self, goals: &Goals) -> Findings {
        let (findings, failure) = search(goals, |rate, duration| Ok::<_, ()>(self.trial(rate, duration)));
        assert_eq!(failure, None);
        findings
    }
}

/// Time is not what these tests are about: but the number of trials is bounded as ever.
fn goals() -> Goals {
    Goals { time_max: Duration::from_secs(100_000), ..Goals::default() }
}

/// What holds whatever the device is.
fn consistent(findings: &Findings, goals: &Goals) {
    let Findings { ndr, pdr, trials, .. } = findings;
    assert!(ndr.pps <= pdr.pps, "{findings:?}");
    assert!(trials.len() <= goals.trials_max);
    for trial in trials {
        assert!(trial.received <= trial.sent);
        assert!(trial.received_pps <= findings.max_received_pps);
        assert!(trial.pps.is_none_or(|pps| pps >= goals.pps_min));
    }
    for found in [ndr, pdr].into_iter().filter(|found| found.end != End::Unconfirmed && found.pps > 0) {
        assert!(found.upper_pps.is_none_or(|upper| upper > found.pps));
        let long: f64 = trials
            .iter()
            .filter(|trial| trial.pps == Some(found.pps) && trial.loss_ratio <= found.loss_ratio_max)
            .map(|trial| trial.seconds)
            .sum();
        assert!(long >= goals.sum.as_secs_f64() / 2.0, "not confirmed: {found:?}");
    }
}

#[test]
fn a_hard_capacity_is_found_to_the_width() {
    let goals = goals();
    let findings = Simulated::new(5e6, |load| load.min(1_234_567.0)).search(&goals);
    consistent(&findings, &goals);
    assert_eq!((findings.ndr.end, findings.pdr.end), (End::Device, End::Device));
    assert!((1_205_000..=1_234_568).contains(&findings.ndr.pps), "{:?}", findings.ndr);
    assert!((1_210_000..=1_241_000).contains(&findings.pdr.pps), "{:?}", findings.pdr);
    assert!(findings.trials.len() <= 40, "{}", findings.trials.len());
    assert!((findings.max_received_pps - 1_234_567.0).abs() < 10.0);
}

#[test]
fn a_device_faster_than_the_sender_is_not_blamed() {
    let goals = goals();
    let findings = Simulated::new(800_000.0, |load| load).search(&goals);
    consistent(&findings, &goals);
    for found in [findings.ndr, findings.pdr] {
        assert_eq!((found.end, found.upper_pps), (End::Generator, None));
        assert!((780_000..=800_000).contains(&found.pps), "{found:?}");
    }
}

#[test]
fn a_sender_that_does_not_hold_its_own_maximum_is_found_out() {
    // In one go it sends a million, but paced only 700,000.
    let goals = goals();
    let mut device = Simulated::new(1e6, |load| load);
    let (findings, _) = search(&goals, |rate, duration| {
        device.sender = if rate == Rate::Max { 1e6 } else { 700_000.0 };
        Ok::<_, ()>(device.trial(rate, duration))
    });
    consistent(&findings, &goals);
    assert_eq!(findings.ndr.end, End::Generator);
    assert!((650_000..=708_000).contains(&findings.ndr.pps), "{:?}", findings.ndr);
    assert!(findings.trials.iter().any(|trial| trial.generator_limited));
}

#[test]
fn a_maximum_that_was_asked_for_is_an_end_of_its_own() {
    let goals = Goals { pps_max: NonZeroU64::new(50_000), ..goals() };
    let findings = Simulated::new(1e6, |load| load).search(&goals);
    assert_eq!((findings.ndr.pps, findings.ndr.end), (50_000, End::RateMax));
    assert!(findings.max_offered_pps <= 50_001.0);
}

#[test]
fn a_device_that_forwards_nothing_has_no_rate() {
    let goals = goals();
    let findings = Simulated::new(1e6, |_| 0.0).search(&goals);
    consistent(&findings, &goals);
    for found in [findings.ndr, findings.pdr] {
        assert_eq!((found.pps, found.end), (0, End::Nothing));
    }
    assert!(findings.trials.len() <= 20, "{}", findings.trials.len());
}

#[test]
fn a_sender_that_sends_nothing_ends_the_search() {
    let goals = goals();
    let findings = Simulated::new(0.0, |load| load).search(&goals);
    consistent(&findings, &goals);
    assert_eq!((findings.ndr.pps, findings.ndr.end), (0, End::Generator));
}

#[test]
fn a_loss_that_is_always_there_leaves_only_the_rate_with_loss() {
    let goals = Goals { pps_min: 10_000, ..goals() };
    let findings = Simulated::new(2e6, |load| (load * 0.998).min(600_000.0)).search(&goals);
    consistent(&findings, &goals);
    assert_eq!(findings.ndr.end, End::Nothing);
    assert_eq!(findings.pdr.end, End::Device);
    assert!((585_000..=605_000).contains(&findings.pdr.pps), "{:?}", findings.pdr);
}

#[test]
fn one_disturbed_trial_in_four_does_not_hide_the_rate() {
    let goals = goals();
    let mut count = 0;
    let findings = Simulated::new(5e6, move |load| {
        count += 1;
        if count % 4 == 3 { load.min(1e6) * 0.9 } else { load.min(1e6) }
    })
    .search(&goals);
    consistent(&findings, &goals);
    assert!((900_000..=1_010_000).contains(&findings.ndr.pps), "{:?}", findings.ndr);
}

#[test]
fn what_a_search_found_until_its_bound_is_said_to_be_unconfirmed() {
    let device = || Simulated::new(5e6, |load| load.min(1e6));
    for goals in [
        Goals { trials_max: 6, ..goals() },
        Goals { time_max: Duration::from_millis(1500), ..Goals::default() },
    ] {
        let findings = device().search(&goals);
        consistent(&findings, &goals);
        assert_eq!(findings.ndr.end, End::Unconfirmed);
        assert!(findings.ndr.pps > 500_000, "{findings:?}");
    }
}

#[test]
fn a_trial_that_fails_leaves_what_was_found() {
    let mut device = Simulated::new(5e6, |load| load.min(1e6));
    let mut left = 5;
    let (findings, failure) = search(&goals(), |rate, duration| {
        left -= 1;
        if left == 0 { Err("gone") } else { Ok(device.trial(rate, duration)) }
    });
    assert_eq!((failure, findings.trials.len()), (Some("gone"), 4));
    assert!(findings.max_received_pps > 999_000.0);
}

/// Nothing is lost of any trial: what is beyond the device's capacity waits, and arrives after the sender's end.
#[test]
fn a_buffer_that_hides_all_loss_does_not_raise_the_rate() {
    let goals = goals();
    let mut device = Simulated::new(3e6, |load| load);
    let (findings, _) = search(&goals, |rate, duration| {
        let counted = device.trial(rate, duration);
        let arriving = duration.max(Duration::from_secs_f64(counted.received as f64 / 1e6));
        Ok::<_, ()>(Counted { arriving: Some(arriving), ..counted })
    });
    consistent(&findings, &goals);
    for found in [findings.ndr, findings.pdr] {
        assert_eq!(found.end, End::Device);
        assert!((980_000..=1_030_000).contains(&found.pps), "{found:?}");
    }
    assert!(findings.max_received_pps <= 1_000_001.0, "{}", findings.max_received_pps);
    assert!(findings.trials.iter().any(|trial| trial.queued));
}

#[test]
fn a_random_schedule_is_held_if_all_that_was_due_was_sent() {
    // By chance a fifth fewer packets are due in every other trial; all of them are sent.
    let goals = Goals { pps_max: NonZeroU64::new(1000), ..goals() };
    let (mut device, mut fewer) = (Simulated::new(1e6, |load| load), false);
    let (findings, _) = search(&goals, |rate, duration| {
        let all = device.trial(rate, duration);
        fewer = !fewer;
        let due = if fewer { all.due * 4 / 5 } else { all.due };
        Ok::<_, ()>(Counted { due, sent: due, received: due, ..all })
    });
    assert!(findings.trials.iter().all(|trial| !trial.generator_limited), "{findings:?}");
    assert_eq!((findings.ndr.pps, findings.ndr.end), (1000, End::RateMax));
}

/// Above 300,000 a second the sender sends in bursts, and the device loses some of each burst.
#[test]
fn loss_of_late_packets_is_the_senders() {
    let mut device = Simulated::new(1e6, |load| if load > 300_000.0 { load * 0.9 } else { load });
    let (findings, _) = search(&goals(), |rate, duration| {
        let counted = device.trial(rate, duration);
        let too_fast = counted.received < counted.sent;
        Ok::<_, ()>(Counted { late: if too_fast { counted.sent / 50 } else { 0 }, ..counted })
    });
    assert_eq!(findings.ndr.end, End::Generator);
    assert!((150_000..=300_000).contains(&findings.ndr.pps), "{:?}", findings.ndr);
}

#[test]
fn late_packets_that_all_arrive_are_no_reason_to_doubt() {
    let mut device = Simulated::new(1e6, |load| load.min(500_000.0));
    let (findings, _) = search(&goals(), |rate, duration| {
        let counted = device.trial(rate, duration);
        let late = if counted.received == counted.sent { counted.sent / 2 } else { 0 };
        Ok::<_, ()>(Counted { late, ..counted })
    });
    assert_eq!(findings.ndr.end, End::Device);
    assert!((485_000..=500_001).contains(&findings.ndr.pps), "{:?}", findings.ndr);
}

/// RFC 9900's classification, at the corners of its definition.
#[test]
fn loads_are_classified_as_the_rfc_says() {
    let goals = goals();
    let trial = |seconds, loss_ratio| Trial {
        pps: Some(1000),
        seconds,
        due: 0,
        sent: 0,
        received: 0,
        loss_ratio,
        offered_pps: 0.0,
        received_pps: 0.0,
        queued: false,
        late: 0,
        skipped: 0,
        generator_limited: false,
    };
    let (good, bad) = (trial(1.0, 0.0), trial(1.0, 0.1));
    let (good_short, bad_short) = (trial(0.5, 0.0), trial(0.5, 0.1));
    for (trials, class) in [
        (vec![], Class::Undecided),
        (vec![good], Class::Undecided),
        (vec![good, good], Class::Lower),
        (vec![bad, bad], Class::Upper),
        (vec![good, bad], Class::Undecided),
        (vec![good, bad, good], Class::Lower),
        (vec![good, bad, bad], Class::Upper),
        (vec![good, good, bad, bad], Class::Lower),
        (vec![good_short; 20], Class::Undecided),
        (vec![bad_short; 3], Class::Undecided),
        (vec![bad_short; 4], Class::Upper),
        (vec![bad_short, bad_short, bad_short, bad_short, good_short], Class::Undecided),
        (vec![Trial { generator_limited: true, ..bad }; 5], Class::Undecided),
    ] {
        let run = |_: Rate, _: Duration| Ok::<Counted, ()>(Counted::default());
        let search = Search {
            goals: &goals,
            run,
            trials: trials.clone(),
            took: Duration::ZERO,
            ceiling: u64::MAX,
            ceiling_is_the_senders: false,
            lowered: 0,
        };
        let target = search.target(PRECEDING, 0.0, Bounds::default());
        assert_eq!(search.class(1000, &target), class, "{trials:?}");
    }
}

proptest! {
    #[test]
    fn any_capacity_is_found_to_the_width(
        capacity in 200u32..20_000_000, sender in 200u32..20_000_000, width in 1u32..=5,
    ) {
        let goals = Goals { width: f64::from(width) / 100.0, ..goals() };
        let (capacity, sender) = (f64::from(capacity), f64::from(sender));
        let findings = Simulated::new(sender, move |load| load.min(capacity)).search(&goals);
        consistent(&findings, &goals);
        let (found, limit) = (findings.ndr.pps as f64, capacity.min(sender));
        // A short trial at a low rate cannot tell rates apart by less than a packet.
        prop_assert!(found <= limit + 3.0, "{findings:?}");
        prop_assert!(found >= limit * (1.0 - 1.5 * goals.width) - 6.0, "{findings:?}");
        prop_assert!(findings.ndr.end != End::Unconfirmed, "{findings:?}");
        if capacity > sender * 1.05 + 6.0 {
            prop_assert_eq!(findings.ndr.end, End::Generator);
        } else if capacity < sender * 0.95 - 6.0 {
            prop_assert_eq!(findings.ndr.end, End::Device);
        }
    }

    /// More in, less out: an overloaded kernel.
    #[test]
    fn a_capacity_that_falls_with_the_load_is_found(capacity in 1_000u32..5_000_000, fall in 0.1f64..3.0) {
        let goals = goals();
        let capacity = f64::from(capacity);
        let forwards = move |load: f64| {
            if load <= capacity { load } else { (capacity - fall * (load - capacity)).max(0.0) }
        };
        let findings = Simulated::new(10e6, forwards).search(&goals);
        consistent(&findings, &goals);
        prop_assert_eq!(findings.ndr.end, End::Device);
        let found = findings.ndr.pps as f64;
        prop_assert!(found <= capacity + 3.0 && found >= capacity * 0.97 - 6.0, "{findings:?}");
    }

    /// Whatever comes, it ends within its bounds and does not contradict itself.
    #[test]
    fn noise_ends_within_the_bounds(
        losses in proptest::collection::vec(0.0f64..1.0, 1..40),
        sender in 1.0f64..5e6,
        trials_max in 1usize..100,
    ) {
        let goals = Goals { trials_max, ..goals() };
        let mut next = losses.into_iter().cycle();
        let findings = Simulated::new(sender, move |load| {
            let loss = next.next().unwrap();
            if loss < 0.5 { load } else { load * loss }
        })
        .search(&goals);
        consistent(&findings, &goals);
    }
}

/// A device that comes to a standstill under overload, as a kernel does whose interrupts leave no time to the application.
fn collapses(capacity: f64) -> Simulated {
    Simulated::new(2e6, move |load| if load <= capacity { load } else { 2000.0 })
}

#[test]
fn a_start_spares_the_way_up_after_a_standstill_and_finds_the_same() {
    let (without, with) = (goals(), Goals { pps_start: Some(290_000), ..goals() });
    let [far, near] = [&without, &with].map(|goals| {
        let findings = collapses(300_000.0).search(goals);
        consistent(&findings, goals);
        assert_eq!(findings.ndr.end, End::Device);
        assert!((294_000..=300_000).contains(&findings.ndr.pps), "{:?}", findings.ndr);
        findings.trials.len()
    });
    assert!(near < far, "{near} trials, without a start {far}");
    // One that is much too high, or too low, does no harm.
    for start in [1_900_000, 3_000_000, 500] {
        let findings = collapses(300_000.0).search(&Goals { pps_start: Some(start), ..goals() });
        assert!((294_000..=300_000).contains(&findings.ndr.pps), "{start}: {:?}", findings.ndr);
    }
}

#[test]
fn a_start_is_not_used_where_all_arrives_at_full_rate() {
    let goals = Goals { pps_start: Some(1000), ..goals() };
    let findings = Simulated::new(800_000.0, |load| load).search(&goals);
    assert!(findings.trials.iter().all(|trial| trial.pps.is_none_or(|pps| pps > 1000)));
}
