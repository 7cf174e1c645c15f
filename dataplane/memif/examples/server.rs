//! A server for one socket that sends every packet of every client back: for trying out tenants by hand.
//!
//! `cargo run --release --example server -- /run/memif.sock [SECONDS]`, then for instance
//! `dpdk-testpmd --no-huge -m 512 --no-pci --vdev=net_memif0,socket-abstract=no,socket=/run/memif.sock -- --tx-first`

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use peregrine_memif::{Handshake, Interface, Listener, ListenerConfig, Progress, ServerConfig, SocketAddr};

/// Most packets of one queue before it is another's turn.
const BURST: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let addr: SocketAddr = args.next().ok_or("usage: server SOCKET [SECONDS]")?.parse()?;
    let seconds = args.next().map_or(Ok(3600), |text| text.parse())?;
    // This thread will wake the clients.
    peregrine_memif::warm_up();
    let end = Instant::now() + Duration::from_secs(seconds);
    let listener = Listener::bind(&addr, ListenerConfig::default())?;
    let (mut handshakes, mut clients) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        while let Some(handshake) = listener.accept()? {
            handshakes.push(handshake);
        }
        handshakes.retain_mut(|handshake| advance(handshake, &mut clients));
        let mut busy = 0;
        for _ in 0..1000 {
            busy += clients.iter_mut().map(echo).sum::<usize>();
        }
        clients.retain(|client| still_there(&client.interface));
        if busy == 0 {
            thread::yield_now();
        }
    }
    for client in clients {
        client.report();
        client.interface.control.disconnect("server ends");
    }
    Ok(())
}

struct Client {
    interface: Interface,
    echoed: u64,
    bad: u64,
    dropped: u64,
}

impl Client {
    fn report(&self) {
        let Self { echoed, bad, dropped, .. } = self;
        println!("{}: {echoed} echoed, {dropped} dropped, {bad} bad descriptors", self.interface.peer_name);
    }
}

/// Whether the handshake goes on.
fn advance(handshake: &mut Handshake, clients: &mut Vec<Client>) -> bool {
    match handshake.step(&mut |_| Ok(ServerConfig::default())) {
        Ok(Progress::Pending) => true,
        Ok(Progress::Connected(interface)) => {
            let (rx, tx) = (&interface.rx, &interface.tx);
            println!("{:?} is connected as id {}", interface.peer_name, interface.id);
            println!("{} rx and {} tx queues of {} slots", rx.len(), tx.len(), rx[0].size());
            clients.push(Client { interface: *interface, echoed: 0, bad: 0, dropped: 0 });
            false
        }
        Err(err) => {
            println!("handshake failed: {err}");
            false
        }
    }
}

fn still_there(interface: &Interface) -> bool {
    match interface.control.poll_disconnect() {
        Ok(None) => true,
        Ok(Some(reason)) => {
            println!("{:?} is gone: {reason}", interface.peer_name);
            false
        }
        Err(err) => {
            println!("{:?} is gone: {err}", interface.peer_name);
            false
        }
    }
}

/// One burst of every queue pair; how many packets there were.
fn echo(client: &mut Client) -> usize {
    let mut packet = [0; 16384];
    let mut taken = 0;
    let Interface { rx, tx, .. } = &mut client.interface;
    for (rx, tx) in rx.iter_mut().zip(tx) {
        if let Err(violation) = rx.pending() {
            println!("{violation}");
            continue;
        }
        for _ in 0..BURST {
            let Some(next) = rx.next_packet() else { break };
            taken += 1;
            match next.map(|next| next.copy_to(&mut packet)) {
                Ok(Some(length)) if tx.push(&packet[..length]).is_ok() => client.echoed += 1,
                Ok(_) => client.dropped += 1,
                Err(_) => client.bad += 1,
            }
        }
        rx.release();
        // A tenant that cannot be woken finds the packets when it next looks.
        let _ = tx.flush();
    }
    taken
}
