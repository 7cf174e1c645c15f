//! Micro-benches of classifying: the headers of a packet walked, its flow hashed, its class looked up, with more or fewer rules. Used
//! by `micro`.

use std::hint::black_box;
use std::ops::RangeInclusive;

use peregrine_dataplane::classes::{CompiledRules, Known};
use peregrine_dataplane::plan::RulePlan;
use peregrine_dataplane::types::Class;
use peregrine_dataplane::wire::flow::Headers;

use super::{Case, Maker, PACKETS, case, maker};
use crate::rig::{FAR, NETWORK, inner, plan, tenant_mac};

/// What the case's packet, UDP over IPv4, belongs to.
const ITS: Class = Class::URGENT;

pub fn cases() -> Vec<Maker> {
    vec![
        maker("classes/none", |name| Ok(classify(name, Vec::new(), Class::NORMAL))),
        maker("classes/rules-10", |name| Ok(classify(name, rules(10), ITS))),
        maker("classes/rules-1000", |name| Ok(classify(name, rules(1000), ITS))),
        maker("classes/rules-1000-no-match", |name| {
            let mut rules = rules(1000);
            rules.pop();
            Ok(classify(name, rules, Class::NORMAL))
        }),
    ]
}

/// Rules as people write them: by port, by address and port, by prefix. The last one is the packet's.
pub fn rules(count: u16) -> Vec<RulePlan> {
    let udp = RulePlan { network: Some(NETWORK), protocol: Some(17), ..RulePlan::any(Class::NORMAL) };
    let one = |n: u16| -> RangeInclusive<u16> { 20_000 + n..=20_000 + n };
    let other = |n: u16| match n % 3 {
        0 => RulePlan { port: Some(one(n)), ..udp.clone() },
        1 => RulePlan {
            destination: format!("10.99.{}.{}", n >> 8, n & 0xff).parse().ok(),
            destination_port: Some(one(n)),
            protocol: Some(6),
            ..udp.clone()
        },
        _ => RulePlan { source: format!("172.16.{}.0/24", n & 0xff).parse().ok(), ..udp.clone() },
    };
    let its = RulePlan { class: ITS, destination: "10.0.0.0/8".parse().ok(), ..udp.clone() };
    (1..count).map(other).chain([its]).collect()
}

/// As a stage would: what the headers are read for, hash and class, is both taken from one walk.
fn classify(name: &str, rules: Vec<RulePlan>, class: Class) -> Case {
    let mut plan = plan(1);
    plan.classes.rules = rules;
    let rules = CompiledRules::compile(&plan);
    let known = Known { network: NETWORK, sender: None, outer_dscp: None };
    let is = move |rules: &CompiledRules, packet: &[u8]| {
        let Some(headers) = Headers::read(packet) else { return false };
        black_box(headers.flow_hash);
        rules.classify(&known, &headers) == class
    };
    let run = move |(rules, packet): &mut (CompiledRules, Vec<u8>)| {
        (0..PACKETS).filter(|_| is(black_box(rules), black_box(packet))).count()
    };
    case(name, (rules, inner(FAR, tenant_mac(0), 64)), |_| {}, run)
}
