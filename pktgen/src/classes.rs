//! Classes of packets, for a sink that reports each by itself: by UDP destination port or by DSCP, as `--class` says.
//!
//! What a class is told by must be the same for all packets of a flow, since what is lost has no header to look at.

use std::ops::RangeInclusive;
use std::str::FromStr;

/// How many classes there may be.
pub const CLASSES_MAX: usize = 16;

/// A class: a name and what its packets have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Class {
    /// What the report calls it.
    pub name: String,
    /// What its packets have in common.
    pub rule: Rule,
}

/// What the packets of a class have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rule {
    /// UDP destination ports.
    Ports(RangeInclusive<u16>),
    /// The differentiated services code point (RFC 2474).
    Dscp(u8),
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Class, String> {
        const HOW: &str = "a class is NAME=ports:FIRST-LAST, NAME=ports:PORT or NAME=dscp:0..63";
        let (name, rule) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(HOW)?;
        let rule = match rule.split_once(':').ok_or(HOW)? {
            ("ports", ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let (first, last) = first.parse().ok().zip(last.parse().ok()).ok_or(HOW)?;
                if last < first {
                    return Err(format!("ports {first}-{last}: the last is before the first"));
                }
                Rule::Ports(first..=last)
            }
            ("dscp", dscp) => Rule::Dscp(dscp.parse().ok().filter(|dscp| *dscp < 64).ok_or(HOW)?),
            _ => return Err(HOW.into()),
        };
        Ok(Class { name: name.into(), rule })
    }
}

/// The index of the first class that a frame is of; `classes.len()`, the place of "other", if it is of none.
#[inline]
pub fn class_of(classes: &[Class], frame: &[u8]) -> usize {
    let Some((dscp, port)) = dscp_and_port(frame) else { return classes.len() };
    let is_of = |class: &Class| match &class.rule {
        Rule::Ports(ports) => ports.contains(&port),
        Rule::Dscp(wanted) => *wanted == dscp,
    };
    classes.iter().position(is_of).unwrap_or(classes.len())
}

/// Of a UDP packet over IPv4 or IPv6 without extension headers.
#[inline]
fn dscp_and_port(frame: &[u8]) -> Option<(u8, u16)> {
    let (ethernet, packet) = frame.split_first_chunk::<14>()?;
    let (traffic_class, protocol, header_len) = match (ethernet[12], ethernet[13]) {
        (0x08, 0x00) => {
            let head = packet.first_chunk::<20>()?;
            (head[1], head[9], usize::from(head[0] & 0x0f) * 4)
        }
        (0x86, 0xdd) => {
            let head = packet.first_chunk::<40>()?;
            (head[0] << 4 | head[1] >> 4, head[6], 40)
        }
        _ => return None,
    };
    let [_, _, high, low] = *packet.get(header_len..)?.first_chunk::<4>()?;
    (protocol == 17).then_some((traffic_class >> 2, u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};

    fn classes(texts: &[&str]) -> Vec<Class> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ipv4(dscp: u8, port: u16) -> Vec<u8> {
        let header = Ipv4Header {
            dscp: dscp.try_into().unwrap(),
            protocol: IpNumber::UDP,
            time_to_live: 64,
            fragment_offset: IpFragOffset::ZERO,
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
            ..Ipv4Header::default()
        };
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
        builder.udp(9000, port).write(&mut out, &[0; 18]).unwrap();
        out
    }

    fn ipv6(dscp: u8, port: u16) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: dscp << 2 | 1,
            flow_label: Ipv6FlowLabel::try_new(0xfffff).unwrap(),
            ..Ipv6Header::default()
        };
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv6(header, Default::default()));
        builder.udp(9000, port).write(&mut out, &[0; 18]).unwrap();
        out
    }

    #[test]
    fn the_first_class_that_fits_counts() {
        let classes =
            classes(&["voice=dscp:46", "low=ports:1-8999", "web=ports:9000-9099", "one=ports:9100"]);
        for frame in [ipv4, ipv6] {
            for (dscp, port, wanted) in
                [(46, 9000, 0), (0, 8999, 1), (45, 9000, 2), (0, 9099, 2), (0, 9100, 3), (0, 9101, 4)]
            {
                assert_eq!(class_of(&classes, &frame(dscp, port)), wanted, "{dscp} {port}");
            }
        }
    }

    #[test]
    fn what_is_no_udp_or_cut_is_of_no_class() {
        let classes = classes(&["all=ports:0-65535"]);
        for good in [ipv4(0, 1), ipv6(0, 1)] {
            assert_eq!(class_of(&classes, &good), 0);
            for len in 0..good.len() - 22 {
                assert_eq!(class_of(&classes, &good[..len]), 1, "{len} bytes");
            }
        }
        let mut tcp = ipv4(0, 1);
        tcp[23] = 6;
        assert_eq!(class_of(&classes, &tcp), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "a",
            "a=",
            "=dscp:1",
            "a=dscp:64",
            "a=dscp:x",
            "a=ports:9-8",
            "a=ports:70000",
            "a=ports:1-",
            "a=vlan:1",
        ] {
            assert!(text.parse::<Class>().is_err(), "{text}");
        }
    }
}
