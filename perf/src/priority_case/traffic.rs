//! What is offered: the urgent flow and the normal ones, as frames of the far VTEP, and the rules that tell them apart. The same
//! over all ports, the kernel's included, so all headers and their checksums are right.

use std::net::Ipv4Addr;
use std::sync::Arc;

use peregrine_control::demo::hosts::{ECHO, GENERATOR, NEAR};
use peregrine_dataplane::plan::{ClassPlan, ClassesPlan, RulePlan, WorkOrder};
use peregrine_dataplane::replay::{Pace, ReplayFrame, ReplayStream, Speed};
use peregrine_dataplane::types::{Class, MacAddr};
use peregrine_dataplane::wire::checksum::Sum;
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate};

use crate::rig::{FAR, LOCAL, NETWORK, REMOTE, VNI, tenant_mac};

/// Bytes of the inner packets.
pub const INNER_BYTES: usize = 64;
/// The urgent flow's number; the normal ones follow.
pub const URGENT_FLOW: u32 = 0;
const NORMAL_FLOWS: u16 = 100;
/// Flows in all.
pub const FLOWS: usize = NORMAL_FLOWS as usize + 1;
/// Inner UDP ports that the two kinds go to.
pub const URGENT_PORT: u16 = 7000;
pub const NORMAL_PORT: u16 = 9000;

/// Who the packets are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receiver {
    /// Two tenants of Peregrine: the first gets the urgent ones.
    Tenants,
    /// The kernel's tenant, which has both ports.
    Kernel,
}

/// The two streams' speeds, and what came of them.
#[derive(Clone, Debug)]
pub struct Paces {
    pub urgent: Arc<Pace>,
    pub normal: Arc<Pace>,
}

/// Both streams, stopped: the urgent one first.
pub fn streams(receiver: Receiver) -> Result<(Vec<ReplayStream>, Paces), String> {
    let [urgent, normal] = [(); 2].map(|()| Arc::new(Pace::new(Speed::Stopped)));
    let stream = |flows: std::ops::Range<u32>, tenant, port, pace: &Arc<Pace>, is_urgent| {
        let frames = flows.map(|flow| frame(receiver, flow, tenant, port)).collect::<Result<_, _>>()?;
        Ok::<_, String>(ReplayStream { frames, pace: pace.clone(), field: None, is_urgent })
    };
    let first = stream(URGENT_FLOW..URGENT_FLOW + 1, 0, URGENT_PORT, &urgent, true)?;
    let others = stream(URGENT_FLOW + 1..FLOWS as u32, 1, NORMAL_PORT, &normal, false)?;
    Ok((vec![first, others], Paces { urgent, normal }))
}

fn frame(receiver: Receiver, flow: u32, tenant: u16, port: u16) -> Result<ReplayFrame, String> {
    let known = |text: &str| text.parse::<MacAddr>().map_err(|_| format!("{text} is no Ethernet address"));
    let (destination, source) = match receiver {
        Receiver::Tenants => (tenant_mac(tenant), FAR),
        Receiver::Kernel => (known(ECHO.1)?, known(GENERATOR.1)?),
    };
    let mut inner = Vec::with_capacity(INNER_BYTES);
    inner.extend(destination.0);
    inner.extend(source.0);
    inner.extend([8, 0]);
    inner.extend(ipv4((INNER_BYTES - 14) as u16)?);
    for word in [30_000 + flow as u16, port, (INNER_BYTES - 34) as u16, 0] {
        inner.extend(word.to_be_bytes()); // no checksum, for the stamp is not known
    }
    inner.resize(INNER_BYTES, 0);
    let template = OuterTemplate::new(&OuterFields {
        destination_mac: known(NEAR.2)?,
        source_mac: FAR,
        source: REMOTE,
        destination: LOCAL,
        port: 4789,
        ttl: 64,
    });
    let mut head = [0; OVERHEAD_IPV4];
    template.write(&mut head, INNER_BYTES as u16, VNI, 50_000);
    Ok(ReplayFrame { flow, bytes: [&head[..], &inner].concat() })
}

/// The inner IP header of a UDP packet from the generator to the tenant.
fn ipv4(total: u16) -> Result<[u8; 20], String> {
    let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("{text} is no IPv4 address"));
    let (source, destination) = (address(GENERATOR.0)?.octets(), address(ECHO.0)?.octets());
    let [high, low] = total.to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum = Sum::ZERO.bytes(&header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(header)
}

/// What goes to this port is of this class.
pub fn rule(port: u16, class: Class) -> RulePlan {
    RulePlan {
        network: Some(NETWORK),
        protocol: Some(17),
        destination_port: Some(port..=port),
        ..RulePlan::any(class)
    }
}

/// Two classes, the urgent one in this order, the normal one with at least this share in percent, told apart by these rules.
pub fn classes(order: WorkOrder, normal_share: u8, rules: Vec<RulePlan>) -> ClassesPlan {
    let urgent = ClassPlan { order, ..ClassPlan::new("urgent") };
    let normal = ClassPlan { share: normal_share, ..ClassPlan::new("normal") };
    ClassesPlan { list: vec![urgent, normal], rules, ..ClassesPlan::default() }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketHeaders, TransportHeader};
    use peregrine_dataplane::classes::{CompiledRules, Known};
    use peregrine_dataplane::wire::flow::Headers;

    use super::*;
    use crate::rig::plan;

    #[test]
    fn the_kernel_would_take_every_frame() {
        for receiver in [Receiver::Tenants, Receiver::Kernel] {
            let (streams, _paces) = streams(receiver).unwrap();
            assert_eq!(streams.iter().map(|stream| stream.frames.len()).sum::<usize>(), FLOWS);
            for frame in streams.iter().flat_map(|stream| &stream.frames) {
                for (bytes, port) in [(&frame.bytes[..], None), (&frame.bytes[OVERHEAD_IPV4..], Some(frame))]
                {
                    let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
                    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = &packet.net else { panic!("{packet:?}") };
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    let Some(TransportHeader::Udp(udp)) = packet.transport else { panic!("{packet:?}") };
                    assert_eq!(usize::from(udp.length), bytes.len() - 34, "of {ip:?}");
                    let expected = port.map_or(4789, |frame| match frame.flow {
                        URGENT_FLOW => URGENT_PORT,
                        _ => NORMAL_PORT,
                    });
                    assert_eq!(udp.destination_port, expected);
                }
            }
        }
    }

    #[test]
    fn the_rules_tell_the_flows_apart() {
        let mut plan = plan(2);
        plan.classes = classes(WorkOrder::Sync, 20, vec![rule(URGENT_PORT, Class::URGENT)]);
        let rules = CompiledRules::compile(&plan);
        let known = Known { network: NETWORK, sender: None, outer_dscp: None };
        let (streams, _paces) = streams(Receiver::Tenants).unwrap();
        for (stream, class) in streams.iter().zip([Class::URGENT, Class::NORMAL]) {
            for frame in &stream.frames {
                let headers = Headers::read(&frame.bytes[OVERHEAD_IPV4..]).unwrap();
                assert_eq!(rules.classify(&known, &headers), class);
            }
        }
    }
}
