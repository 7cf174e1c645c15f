//! A tenant: attaches to a memif server and sends every packet back with its MAC addresses swapped.
//!
//! `cargo run --release --example echo -- /run/peregrine/memif.sock 0`

use std::error::Error;
use std::time::Duration;

use peregrine_memif::{Client, ClientConfig, SocketAddr};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let addr: SocketAddr = args.next().ok_or("usage: echo SOCKET [ID]")?.parse()?;
    let id = args.next().map_or(Ok(0), |id| id.parse())?;
    let config = ClientConfig { id, name: "echo".into(), ..ClientConfig::default() };
    let mut interface = Client::connect_blocking(&addr, config, Duration::from_secs(10))?;
    let (rx, tx) = (&mut interface.rx[0], &mut interface.tx[0]);
    let mut packet = [0; 2048];
    loop {
        if !rx.wait(Duration::from_millis(100))? {
            if let Some(reason) = interface.control.poll_disconnect()? {
                return Err(reason.to_string().into());
            }
            continue;
        }
        while let Some(Ok(taken)) = rx.next_packet() {
            let Some(length) = taken.copy_to(&mut packet) else { continue };
            let (to, rest) = packet.split_at_mut(6);
            to.swap_with_slice(&mut rest[..6]);
            // A full ring drops, like any network.
            let _ = tx.push(&packet[..length]);
        }
        rx.release();
        tx.flush()?;
    }
}
