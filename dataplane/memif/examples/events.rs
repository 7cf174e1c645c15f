//! An event loop around a server: several interface ids on one socket, every packet sent back, and asleep when there is nothing to
//! do. `cargo run --release --example events -- /run/memif.sock [IDS]`
//!
//! The loop wakes for the listener, a handshake, a control socket or a ring's eventfd, and then looks at all of them, which is right
//! for a few clients; for many, give each its own token.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use peregrine_memif::{
    Handshake, Interface, Listener, ListenerConfig, Progress, Refusal, Request, ServerConfig, SocketAddr,
    Violation,
};

/// Longest sleep: some senders' wake-ups can be lost.
const SLEEP_MAX: Duration = Duration::from_millis(10);
/// Most packets of one queue before it is another's turn.
const BURST: u16 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let addr: SocketAddr = args.next().ok_or("usage: events SOCKET [IDS]")?.parse()?;
    let ids = args.next().map_or(Ok(4), |text| text.parse())?;
    serve(&Listener::bind(&addr, ListenerConfig::default())?, ids, &AtomicBool::new(false))
        .map_err(Into::into)
}

fn serve(listener: &Listener, ids: u32, stop: &AtomicBool) -> io::Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(64));
    watch(&poll, listener)?;
    let (mut handshakes, mut peers) = (Vec::<Handshake>::new(), Vec::<Interface>::new());
    let mut is_busy = false;
    while !stop.load(Ordering::Relaxed) {
        let next = handshakes.iter().map(Handshake::deadline).min();
        let left = next.map_or(SLEEP_MAX, |at| at.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, Some(if is_busy { Duration::ZERO } else { left.min(SLEEP_MAX) })) {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => return Err(why),
            _ => {}
        }
        // Events are edges here, so each source is used until it has nothing more to give.
        while let Some(handshake) = listener.accept()? {
            watch(&poll, &handshake.socket().ok_or(io::ErrorKind::NotConnected)?)?;
            handshakes.push(handshake);
        }
        handshakes.retain_mut(|handshake| advance(handshake, ids, &mut peers, &poll));
        is_busy = false;
        peers.retain_mut(|peer| match (echo(peer), peer.control.poll_disconnect()) {
            (Ok(busy), Ok(None)) => {
                is_busy |= busy;
                true
            }
            _ => forget(peer, &poll),
        });
    }
    Ok(())
}

fn raw(source: impl AsFd) -> i32 {
    source.as_fd().as_raw_fd()
}

fn watch(poll: &Poll, source: &impl AsFd) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&raw(source)), Token(0), Interest::READABLE)
}

/// Always false. A control socket leaves the poll by being closed; an eventfd is open at the client, too, and must be taken out.
fn forget(peer: &Interface, poll: &Poll) -> bool {
    for rx in &peer.rx {
        let _ = poll.registry().deregister(&mut SourceFd(&raw(rx.event_fd())));
    }
    false
}

/// Whether the handshake goes on.
fn advance(handshake: &mut Handshake, ids: u32, peers: &mut Vec<Interface>, poll: &Poll) -> bool {
    let is_taken = |id| peers.iter().any(|peer| peer.id == id);
    let progress = handshake.step(&mut |request: &Request<'_>| match request.id {
        id if id >= ids => Err(Refusal::UnknownId),
        id if is_taken(id) => Err(Refusal::AlreadyConnected),
        id => Ok(ServerConfig { name: format!("echo{id}"), ..ServerConfig::default() }),
    });
    match progress {
        Ok(Progress::Pending) => return true,
        // Two handshakes for one id can both have got this far.
        Ok(Progress::Connected(peer)) if is_taken(peer.id) => peer.control.disconnect("already connected"),
        // Its control socket is the handshake's, and is being watched already.
        Ok(Progress::Connected(peer)) if peer.rx.iter().all(|rx| watch(poll, &rx.event_fd()).is_ok()) => {
            peers.push(*peer);
        }
        Ok(Progress::Connected(peer)) => peer.control.disconnect("no resources"),
        Err(why) => eprintln!("handshake failed: {why}"),
    }
    false
}

/// A burst of each queue; whether there is more to do at once. If not, the client will wake us.
fn echo(peer: &mut Interface) -> Result<bool, Violation> {
    let (mut packet, mut is_busy) = ([0; 16384], false);
    for (rx, tx) in peer.rx.iter_mut().zip(&mut peer.tx) {
        let _ = rx.drain_event();
        for _ in 0..rx.pending()?.min(BURST) {
            if let Some(Ok(next)) = rx.next_packet()
                && let Some(length) = next.copy_to(&mut packet)
            {
                // A full ring drops, like any network.
                let _ = tx.push(&packet[..length]);
            }
        }
        rx.release();
        let _ = tx.flush();
        if rx.arm()? {
            rx.disable_interrupt();
            is_busy = true;
        }
    }
    Ok(is_busy)
}

#[cfg(test)]
mod tests {
    use peregrine_memif::{Client, ClientConfig};

    use super::*;

    #[test]
    fn each_id_is_served_once_and_again_after_its_client_has_left() {
        let addr = SocketAddr::Abstract(format!("memif-events-{}", std::process::id()));
        let listener = Listener::bind(&addr, ListenerConfig::default()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(&listener, 2, &stop));
            let connect = |id| {
                let config = ClientConfig { id, ..ClientConfig::default() };
                Client::connect_blocking(&addr, config, Duration::from_secs(20)).unwrap()
            };
            for _ in 0..3 {
                // The id of a client that has just left is free as soon as the server has noticed.
                let mut clients = [connect(0), connect(1)];
                for client in &mut clients {
                    client.tx[0].push(&[client.id as u8; 60]).unwrap();
                    client.tx[0].flush().unwrap();
                    assert!(client.rx[0].wait(Duration::from_secs(20)).unwrap(), "no echo");
                    let mut bytes = [9; 60];
                    assert_eq!(client.rx[0].next_packet().unwrap().unwrap().copy_to(&mut bytes), Some(60));
                    assert_eq!(bytes, [client.id as u8; 60]);
                }
            }
            stop.store(true, Ordering::Relaxed);
            server.join().unwrap().unwrap();
        });
    }
}
