//! How fast packets cross between two threads of this process, S2M and M2S: `cargo run --release --example throughput [SECONDS]`

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use peregrine_memif::{ClientConfig, HandshakeError, PushError, RxRing, ServerConfig, TxRing, pair};

/// Packets per burst, on both sides.
const BURST: u16 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse())?;
    for bytes in [64, 1500] {
        println!("{bytes:5} B, one thread: {:6.2} ns for a packet's way in and out", alone(bytes, seconds)?);
        let (mut client, mut server) = pair(ClientConfig::default(), ServerConfig::default())?;
        let s2m = measure(client.tx.remove(0), server.rx.remove(0), bytes, seconds);
        let m2s = measure(server.tx.remove(0), client.rx.remove(0), bytes, seconds);
        println!("{bytes:5} B, two threads: S2M {s2m:6.2} Mpps  M2S {m2s:6.2} Mpps");
    }
    Ok(())
}

/// Nanoseconds for one packet to be sent and received by the same thread, in bursts.
fn alone(bytes: usize, seconds: f64) -> Result<f64, HandshakeError> {
    let (mut client, mut server) = pair(ClientConfig::default(), ServerConfig::default())?;
    let packet = vec![0x5a; bytes];
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..64 {
            send(&mut client.tx[0], &packet);
            count += receive(&mut server.rx[0]);
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / count as f64)
}

/// Millions of packets per second that arrived.
fn measure(mut tx: TxRing, mut rx: RxRing, bytes: usize, seconds: f64) -> f64 {
    let stop = AtomicBool::new(false);
    let packet = vec![0x5a; bytes];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut idle = 0;
            while !stop.load(Ordering::Relaxed) {
                idle = if send(&mut tx, &packet) { 0 } else { wait(idle) };
            }
        });
        let start = Instant::now();
        let (mut received, mut idle) = (0u64, 0);
        while start.elapsed() < Duration::from_secs_f64(seconds) {
            for _ in 0..64 {
                let count = receive(&mut rx);
                received += count;
                idle = if count > 0 { 0 } else { wait(idle) };
            }
        }
        let elapsed = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        received as f64 / elapsed.as_secs_f64() / 1e6
    })
}

/// Spins; gives the core away when that has gone on for long, as on a machine with other work.
fn wait(idle: u32) -> u32 {
    if idle > 1000 {
        thread::yield_now()
    } else {
        std::hint::spin_loop()
    }
    idle + 1
}

fn send(tx: &mut TxRing, packet: &[u8]) -> bool {
    let room = tx.free().unwrap_or(0).min(BURST);
    for _ in 0..room {
        if tx.push(packet) == Err(PushError::Full) {
            break;
        }
    }
    tx.flush().is_ok() && room > 0
}

fn receive(rx: &mut RxRing) -> u64 {
    let count = rx.pending().unwrap_or(0).min(BURST);
    let mut packet = [0; 2048];
    let mut good = 0;
    for _ in 0..count {
        if let Some(Ok(taken)) = rx.next_packet() {
            good += u64::from(taken.copy_to(&mut packet).is_some());
            std::hint::black_box(&packet);
        }
    }
    rx.release();
    good
}
