//! The generator's own latency floor: packets that go round through a memif pair in this process, stamped, put into a
//! ring, taken from it, and recorded, by the same code as in a run. What a run then measures beyond it is not the
//! generator's; differences smaller than it mean nothing.
//!
//! One thread does both ends, so waking another thread or core is not part of it. Measured just before a run, for at
//! most [`LONGEST`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{ClientConfig, ServerConfig, pair};
use serde::Serialize;

use crate::clock::now_ns;
use crate::error::Error;
use crate::latency::Latency;
use crate::limits::Wait;
use crate::port::memif::{MemifPort, MemifRx};
use crate::port::{Port, Source};
use crate::template::{Inner, SIZE_MIN, Template};
use crate::trailer::{Trailer, elapsed};

/// How long measuring may take.
pub const LONGEST: Duration = Duration::from_millis(50);
/// How many packets go round; the first tenth only warms caches.
const ROUNDS: u64 = 10_000;

/// Nanoseconds from a packet's intended departure to its record, with nothing between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Floor {
    /// Half of the packets took at most this long.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
}

/// Measures it.
///
/// # Errors
/// If there is no memory for a memif pair.
pub fn measure() -> Result<Floor, Error> {
    let failed = |why: &dyn std::fmt::Display| Error::System {
        what: "measuring the generator's own latency (--no-floor leaves it out)".into(),
        source: std::io::Error::other(why.to_string()),
    };
    let config = ClientConfig::default();
    let packet_bytes_max = config.buffer_bytes as usize;
    let (client, server) = pair(config, ServerConfig::default()).map_err(|why| failed(&why))?;
    let mut sink = MemifPort::new(client, packet_bytes_max)?.rx;
    let mut source = MemifPort::new(server, packet_bytes_max)?.tx;
    let template = template().ok_or_else(|| failed(&"no frame"))?;
    let mut frame = vec![0; template.len()];
    let mut latency = Latency::new()?;
    let end = now_ns() + LONGEST.as_nanos() as u64;
    for sequence in 0..ROUNDS {
        if sequence == ROUNDS / 10 {
            latency.reset();
        }
        let time = now_ns();
        if time >= end {
            break;
        }
        if template.write(&mut frame, Trailer { run: 0, flow: 0, sequence, time }) {
            source.push(&frame)?;
            source.flush()?;
        }
        sink.receive(Wait::Poll, |_, packet| {
            if let Some(trailer) = MemifRx::trailer(packet) {
                latency.record(elapsed(now_ns(), trailer.time));
            }
        })?;
    }
    Ok(Floor { p50: latency.at(0.5), p99: latency.at(0.99) })
}

fn template() -> Option<Template> {
    let inner = Inner {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 20000),
        destination: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 9000),
        size: SIZE_MIN,
        flows: 1,
    };
    Template::new(&inner, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_floor_and_it_is_no_zero() {
        let floor = measure().unwrap();
        assert!(floor.p50 > 0 && floor.p50 <= floor.p99, "{floor:?}");
    }
}
