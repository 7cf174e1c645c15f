//! What profiles mean, what is refused, and how flows are dealt out.

use std::collections::HashSet;

use peregrine_dataplane::types::MacAddr;

use super::*;

const FLOWS: &str = r#"
    [flows]
    source_mac = "02:00:00:00:01:01"
    destination_mac = "02:00:00:00:02:01"
    source_ip = "10.0.0.1"
    destination_ip = "10.0.1.1"
"#;

fn profile(text: &str) -> Result<Profile, String> {
    let draft = Draft::parse(text)?;
    Profile::new(draft, 1).map_err(|why| {
        assert_eq!(why.exit_status(), 2);
        why.to_string()
    })
}

#[test]
fn the_example_means_what_it_says() {
    let got = profile(include_str!("../../profiles/imix.toml")).unwrap();
    assert_eq!((got.seed, got.seconds, got.count), (1, Some(10.0), None));
    assert_eq!((got.rate.to_string(), got.arrivals), ("100000kbit".into(), Arrivals::Poisson));
    assert_eq!(got.sizes.to_string(), "60:7,590:4,1514:1");
    assert_eq!((got.flows.count, got.flows.choice), (1000, Choice::Zipf(1.1)));
    assert_eq!(
        (got.classes[0].flows(), got.classes[1].flows(), got.classes[0].dscp),
        (0..100, 100..1000, 46),
        "flows by share"
    );
    let (first, last) = (got.flow(0), got.flow(999));
    assert_eq!(first.source.to_string(), "10.0.0.1:20000");
    assert_eq!((first.destination.to_string(), first.dscp), ("10.0.1.1:5004".into(), 46));
    assert_eq!(last.source.to_string(), "10.0.0.8:20062", "addresses change first: 999 is 62 times 16 and 7");
    assert_eq!((last.destination.to_string(), last.dscp), ("10.0.1.1:9000".into(), 0));
    assert_eq!(last.source_mac, MacAddr([2, 0, 0, 0, 1, 8]));
    let all: HashSet<_> = (0..1000).map(|n| (got.flow(n).source, got.flow(n).destination)).collect();
    assert_eq!(all.len(), 1000);
}

#[test]
fn the_reports_words_are_those_of_the_file() {
    let json = serde_json::to_value(profile(include_str!("../../profiles/imix.toml")).unwrap()).unwrap();
    assert_eq!(json["sizes"], "60:7,590:4,1514:1");
    assert_eq!(json["arrivals"], "poisson");
    assert_eq!(json["flows"]["choice"], "zipf:1.1");
    assert_eq!(json["flows"]["source_ip"], "10.0.0.1-10.0.0.16");
    assert_eq!(
        json["classes"][0],
        serde_json::json!({"name": "voice", "share": 1, "dscp": 46, "destination_port": 5004, "first_flow": 0, "flow_count": 100})
    );
}

#[test]
fn networks_take_turns_and_may_have_stations_of_their_own() {
    let networks = "[[networks]]\nvni = 7\n[[networks]]\nvni = 8\nsource_mac = '02:00:00:00:08:01'\n";
    let got = profile(&format!("{FLOWS}count = 4\n{networks}")).unwrap();
    let flows: Vec<_> = (0..4).map(|n| got.flow(n)).collect();
    assert_eq!(flows.iter().map(|flow| flow.vni.unwrap().get()).collect::<Vec<_>>(), [7, 8, 7, 8]);
    assert_eq!(flows.iter().map(|flow| flow.source.port()).collect::<Vec<_>>(), [20000, 20000, 20001, 20001]);
    assert_eq!((flows[0].source_mac.0[4], flows[1].source_mac.0[4]), (1, 8));
}

#[test]
fn flags_count_more_than_the_file() {
    let under = Draft::parse(&format!("rate = 5\nseconds = 3\nseed = 9\n{FLOWS}count = 4\n")).unwrap();
    let over = Draft { rate: Some(Word(Rate::Max)), count: Some(10), ..Draft::default() };
    let got = Profile::new(under.overlaid(over), 1).unwrap();
    assert_eq!((got.rate, got.seed, got.flows.count), (Rate::Max, 9, 4));
    assert_eq!((got.seconds, got.count), (None, Some(10)), "one limit replaces the other");
}

#[test]
fn what_cannot_be_is_refused_with_key_value_and_way_out() {
    let with = |line: &str| format!("{line}\n{FLOWS}");
    for (text, said) in [
        (with("rat = 5"), &["line 1, `rat = 5`", "unknown field"][..]),
        (with("rate = 0"), &["`rate = 0`", "'max'"]),
        (with("rate = 1.5"), &["`rate = 1.5`", "whole number"]),
        (with("sizes = 59"), &["sizes (--size) 59", "60 to"]),
        (with("sizes = '60:9999,61:2'"), &["60:9999,61:2", "10000"]),
        (with("sizes = '60:0'"), &["60:0", "imix"]),
        (with("arrivals = 'bursts:0'"), &["bursts:0", "bursts:N"]),
        (with("seconds = 0"), &["seconds 0", "above 0"]),
        (with("seconds = nan"), &["seconds NaN", "above 0"]),
        (with("count = 0"), &["count", "at least 1"]),
        (format!("{FLOWS}choice = 'zipf:0'"), &["zipf:0", "above 0"]),
        (format!("{FLOWS}choice = 'zipf:-1'"), &["zipf:-1", "above 0"]),
        (format!("{FLOWS}count = 65537"), &["65537", "65536"]),
        (format!("{FLOWS}count = 45537"), &["45537", "45536 flows"]),
        (
            format!("{FLOWS}count = 11\nsource_port = '1-10'"),
            &["flows.count (--flows) 11", "10 flows", "wider"],
        ),
        (FLOWS.replace("02:00:00:00:01:01", "03:00:00:00:01:01"), &["source_mac", "03:00:00:00:01:01"]),
        (FLOWS.replace("10.0.0.1", "10.0.0.9-10.0.0.1"), &["10.0.0.9-10.0.0.1", "higher one last"]),
        ("rate = 5".into(), &["flows.source_mac", "--inner-source-mac"]),
        (format!("{FLOWS}[[networks]]\nvni = 16777216"), &["16777216", "16777215"]),
        (format!("{FLOWS}[[networks]]\nvni = 7\n[[networks]]\nvni = 7"), &["7", "twice"]),
        (format!("{FLOWS}[[classes]]\nname = 'a'\nshare = 0"), &["share [0]", "above 0"]),
        (format!("{FLOWS}[[classes]]\nname = 'a'\nshare = 1\ndscp = 64"), &["dscp 64 of a", "63"]),
        (
            format!("{FLOWS}[[classes]]\nname = 'a'\nshare = 1\n[[classes]]\nname = 'b'\nshare = 1"),
            &["flows.count", "at least 2"],
        ),
        ("[flows".into(), &["line 1, `[flows`"]),
    ] {
        let got = profile(&text).unwrap_err();
        assert!(!got.contains('\n') && said.iter().all(|said| got.contains(said)), "{text}: {got}");
    }
}

#[test]
fn threads_need_flows_packets_and_rate_for_each() {
    let refused = |line: &str| Profile::new(Draft::parse(line).unwrap(), 4).unwrap_err().to_string();
    assert!(refused(&format!("{FLOWS}count = 3")).contains("at least 4 flows"));
    assert!(refused(&format!("rate = 3\n{FLOWS}count = 4")).contains("--threads 4"));
    assert!(refused(&format!("count = 3\n{FLOWS}count = 4")).contains("each thread"));
}

#[test]
fn threads_share_out_everything_without_rest() {
    for choice in ["round-robin", "zipf:1"] {
        let draft = Draft::parse(&format!("rate = 11\n{FLOWS}count = 4\nchoice = '{choice}'\n")).unwrap();
        let parts = Profile::new(draft, 3).unwrap().parts;
        let rates: Vec<u64> = parts.iter().map(|part| part.of(11)).collect();
        // By Zipf: 1 + 1/4, 1/2 and 1/3 of 25/12.
        assert_eq!(rates, if choice == "zipf:1" { [7, 2, 2] } else { [4, 3, 4] });
        for whole in [0, 3, 1_000_003, u64::from(u32::MAX)] {
            assert_eq!(parts.iter().map(|part| part.of(whole)).sum::<u64>(), whole);
        }
        assert_eq!(Rate::Max.part(&parts[2]), Some(Rate::Max));
    }
    let draft =
        |rate| Draft::parse(&format!("rate = {rate}\n{FLOWS}count = 2\nchoice = 'zipf:10'\n")).unwrap();
    let refused = Profile::new(draft(100), 2).unwrap_err().to_string();
    assert!(refused.contains("rate (--rate) 100: less than 1 for each"), "{refused}");
    Profile::new(draft(10_000), 2).unwrap();
}

#[test]
fn every_class_gets_flows_for_every_thread_and_none_is_left_over() {
    let class = |share| ClassDraft { name: "x".into(), share, ..ClassDraft::default() };
    let got = classes(&[class(9998), class(1), class(1)], 100, 2).unwrap();
    let ranges: Vec<_> = got.iter().map(Class::flows).collect();
    assert_eq!(ranges, [0..96, 96..98, 98..100]);
}

#[test]
fn an_error_shows_no_more_of_a_line_than_one_reads() {
    for text in [format!("rate = {}", "\u{e9}".repeat(200_000)), format!("{} = 1", "a".repeat(200_000))] {
        let why = Draft::parse(&text).unwrap_err();
        assert!(
            why.starts_with("line 1, `") && why.chars().count() < 500,
            "{} characters",
            why.chars().count()
        );
    }
}
