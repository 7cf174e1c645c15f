//! Files written by hand, byte by byte: both formats, both byte orders, and what is wrong with them.

use std::io::Write;

use super::*;

fn pcap(packets: &[(u32, u32, &[u8])], nanoseconds: bool) -> Vec<u8> {
    let mut out: Vec<u8> =
        if nanoseconds { vec![0x4d, 0x3c, 0xb2, 0xa1] } else { vec![0xd4, 0xc3, 0xb2, 0xa1] };
    out.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    for (seconds, fraction, bytes) in packets {
        for field in [*seconds, *fraction, bytes.len() as u32, bytes.len() as u32] {
            out.extend(field.to_le_bytes());
        }
        out.extend(*bytes);
    }
    out
}

/// Big-endian, time stamps in units of 2^-10 s.
fn pcapng(packets: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let length = (body.len().next_multiple_of(4) + 12) as u32;
        out.extend(kind.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(body);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(length.to_be_bytes());
    };
    block(0x0a0d_0d0a, &[0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    block(1, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0x8a, 0, 0, 0, 0, 0, 0, 0]);
    for (stamp, bytes) in packets {
        let mut body = vec![0; 8];
        body.extend(stamp.to_be_bytes());
        body.extend((bytes.len() as u32).to_be_bytes());
        body.extend((bytes.len() as u32 + 1).to_be_bytes());
        body.extend(*bytes);
        block(6, &body);
    }
    out
}

fn read(bytes: &[u8], change: impl FnOnce(&mut ReplaySettings)) -> Result<(Capture, ReplaySettings), String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let mut settings = ReplaySettings::new(file.path());
    change(&mut settings);
    let capture = Capture::read(&settings, 1514).map_err(|why| {
        assert_eq!(why.exit_status(), 1);
        why.to_string()
    })?;
    Ok((capture, settings))
}

/// All that is sent: when, and what.
fn sent(capture: Capture, settings: &ReplaySettings) -> Vec<(u64, Vec<u8>)> {
    let mut replay = Replay::new(&capture, settings, None, 1000);
    let mut all = Vec::new();
    while replay.next_ns(0) != u64::MAX {
        let mut out = vec![0; replay.next_len()];
        let written = replay.write(u64::MAX / 2, &mut out).unwrap();
        all.push((written.due, out));
    }
    all
}

#[test]
fn a_pcap_is_sent_at_its_own_pace_and_again() {
    let bytes = pcap(&[(10, 999_999, &[1; 60]), (11, 1, &[2; 61]), (11, 4, &[3; 62])], false);
    let (capture, settings) = read(&bytes, |settings| settings.loops = 2).unwrap();
    assert_eq!((capture.report().packets, capture.report().bytes), (3, 183));
    let got = sent(capture, &settings);
    let times: Vec<u64> = got.iter().map(|(at, _)| *at).collect();
    // 2 µs and 3 µs; between the loops the mean of them.
    assert_eq!(times, [1000, 3000, 6000, 8500, 10_500, 13_500]);
    assert_eq!((&got[1].1, &got[5].1), (&vec![2; 61], &vec![3; 62]));
}

#[test]
fn twice_as_fast_takes_half_the_time() {
    let bytes = pcap(&[(1, 0, &[1; 60]), (1, 900, &[2; 60])], true);
    let (capture, settings) = read(&bytes, |settings| settings.pace = Pace::Recorded(2.0)).unwrap();
    let times: Vec<u64> = sent(capture, &settings).iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [1000, 1450]);
}

#[test]
fn a_pcapng_in_the_other_byte_order_is_read() {
    let (capture, settings) =
        read(&pcapng(&[(1024, &[1; 60]), (1025, &[2; 63]), (1024, &[3; 60])]), |_| ()).unwrap();
    assert_eq!((capture.report().snapped, capture.report().backwards), (3, 1));
    let got = sent(capture, &settings);
    let times: Vec<u64> = got.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [1000, 977_562, 977_562], "a unit is 976,562 ns; time does not go back");
    assert_eq!(got[1].1, vec![2; 63], "without padding");
}

#[test]
fn a_given_rate_replaces_the_recorded_one() {
    let bytes = pcap(&[(1, 0, &[1; 60]), (900, 0, &[2; 60])], false);
    let pace = Pace::Rate("1000".parse().unwrap(), Arrivals::Constant);
    let (capture, settings) = read(&bytes, |settings| settings.pace = pace).unwrap();
    let times: Vec<u64> = sent(capture, &settings).iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [1000, 1_001_000]);
}

#[test]
fn what_does_not_fit_is_counted_and_left_out() {
    let bytes = pcap(&[(1, 0, &[1; 1515]), (1, 1, &[2; 1514]), (1, 2, &[3; 13])], false);
    let (capture, settings) = read(&bytes, |_| ()).unwrap();
    assert_eq!((capture.report().too_long, capture.report().too_short, capture.len()), (1, 1, 1));
    assert_eq!(sent(capture, &settings)[0].1, vec![2; 1514]);
    let why = read(&pcap(&[(1, 0, &[1; 1515])], false), |_| ()).unwrap_err();
    assert!(why.contains("1 are longer than 1514 bytes"), "{why}");
}

#[test]
fn a_cut_file_is_refused_unless_a_part_will_do() {
    for whole in [pcap(&[(1, 0, &[1; 60]), (1, 1, &[2; 60])], false), pcapng(&[(1, &[1; 60]), (2, &[2; 60])])]
    {
        let cut = &whole[..whole.len() - 7];
        let why = read(cut, |_| ()).unwrap_err();
        assert!(
            why.contains("packet 2") && why.contains("1 packets before") && why.contains("--replay-partial"),
            "{why}"
        );
        let (capture, _) = read(cut, |settings| settings.partial = true).unwrap();
        assert_eq!(capture.len(), 1);
        assert!(capture.report().partial.as_ref().unwrap().contains("packet 2"));
    }
}

#[test]
fn a_huge_file_ends_at_the_limit() {
    let packets = vec![(1, 0, &[1; 1500][..]); 800];
    let small = |settings: &mut ReplaySettings| settings.limit_mib = 1;
    let why = read(&pcap(&packets, false), small).unwrap_err();
    assert!(why.contains("more than 1 MiB") && why.contains("--replay-limit"), "{why}");
    let (capture, _) = read(&pcap(&packets, false), |settings| {
        (settings.limit_mib, settings.partial) = (1, true);
    })
    .unwrap();
    assert_eq!(capture.len(), (1 << 20) / (1500 + PACKET_COST));
}

#[test]
fn other_files_are_told_from_captures() {
    let mut ppp = pcap(&[(1, 0, &[1; 60])], false);
    ppp[20] = 9;
    for (bytes, said) in [
        (Vec::new(), "neither pcap nor pcapng"),
        (b"#!/bin/sh\necho this is a shell script\n".to_vec(), "neither pcap nor pcapng"),
        (pcap(&[], false), "no packet"),
        (pcap(&[], false)[..10].to_vec(), "neither pcap nor pcapng"),
        (ppp, "link type 9"),
    ] {
        let why = read(&bytes, |settings| settings.partial = true).unwrap_err();
        assert!(why.contains(said) && why.starts_with("--replay /"), "{why}");
    }
    let missing = Capture::read(&ReplaySettings::new(Path::new("/no/such.pcap")), 1514).unwrap_err();
    assert!(missing.to_string().contains("/no/such.pcap"), "{missing}");
}

/// A packet that says it is huge asks for no more memory than a block may have.
#[test]
fn a_lying_length_is_found_out() {
    let mut bytes = pcap(&[(1, 0, &[1; 60]), (1, 1, &[2; 60])], false);
    let second = 24 + 16 + 60;
    bytes[second + 8..second + 12].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    bytes.resize(6 << 20, 7);
    let why = read(&bytes, |_| ()).unwrap_err();
    assert!(why.contains("packet 2"), "{why}");
}

#[test]
fn a_wrapped_packet_has_outer_headers_before_it() {
    let (capture, mut settings) = read(&pcap(&[(1, 0, &[5; 100])], false), |_| ()).unwrap();
    settings.vni = Vni::new(77);
    let outer = OuterFields {
        destination_mac: peregrine_dataplane::types::MacAddr([4, 0, 0, 0, 0, 2]),
        source_mac: peregrine_dataplane::types::MacAddr([4, 0, 0, 0, 0, 1]),
        source: [192, 0, 2, 1].into(),
        destination: [192, 0, 2, 2].into(),
        port: 4789,
        ttl: 64,
    };
    let mut replay = Replay::new(&capture, &settings, Some(&outer), 0);
    let mut out = vec![0; replay.next_len()];
    replay.write(0, &mut out).unwrap();
    let sliced = etherparse::SlicedPacket::from_ethernet(&out).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else { panic!() };
    assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0, 77, 0]);
    assert_eq!(udp.payload()[8..], [5; 100]);
}

/// Stamps 136 years apart: refused where the pace is theirs, and of no matter at a rate.
#[test]
fn time_stamps_that_are_nonsense_are_refused() {
    let bytes = pcap(&[(0, 0, &[1; 60]), (u32::MAX, 0, &[2; 60])], false);
    for factor in [0.001, 1.0, 1000.0] {
        let why = read(&bytes, |settings| settings.pace = Pace::Recorded(factor)).unwrap_err();
        assert!(why.contains("at this pace") && why.contains("--rate"), "{why}");
    }
    let rate = Pace::Rate("1000".parse().unwrap(), Arrivals::Constant);
    let (capture, settings) = read(&bytes, |settings| settings.pace = rate).unwrap();
    assert_eq!(sent(capture, &settings).len(), 2);
    let (slow, _) = read(&pcap(&[(0, 0, &[1; 60]), (7 * 86400, 0, &[2; 60])], false), |_| ()).unwrap();
    assert_eq!(slow.report().seconds, 604_800.0, "a week is sent");
}

#[test]
fn the_longest_time_stamps_overflow_nothing() {
    let mut recorded = Capture::empty(&ReplaySettings::new(Path::new("none")), 1514);
    for time_ns in [0, i128::from(u64::MAX), i128::MAX / 2] {
        let packet = Packet { bytes: &[1; 60], time_ns, snapped: false };
        assert!(recorded.add(packet, 1 << 20).is_ok());
    }
    assert_eq!((recorded.last_offset_ns, recorded.report.backwards), (u64::MAX, 0));
    let settings =
        ReplaySettings { loops: 3, pace: Pace::Recorded(0.001), ..ReplaySettings::new(Path::new("none")) };
    let mut replay = Replay::new(&recorded, &settings, None, 1000);
    for _ in 0..9 {
        replay.advance();
    }
    assert_eq!(replay.loops_left, 0);
}
