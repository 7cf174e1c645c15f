//! Both sides of a connection in one process, for tests and benchmarks: the real handshake over a socket pair, the real memory,
//! and neither a socket file nor any privilege.

use crate::client::{Client, ClientConfig};
use crate::error::HandshakeError;
use crate::interface::Interface;
use crate::listener::Limits;
use crate::server::{Handshake, Progress, ServerConfig};
use crate::sys;

/// A connected client and server, in this order. See the crate's example.
///
/// # Errors
/// As the two handshakes: a configuration that cannot be, or one that the other side refuses.
pub fn pair(client: ClientConfig, server: ServerConfig) -> Result<(Interface, Interface), HandshakeError> {
    client.check()?;
    let (ours, theirs) = sys::socket_pair().map_err(HandshakeError::io("make a socket pair"))?;
    let defaults = Limits::default();
    // Nobody holds a lock here.
    let limits = Limits { seal_timeout: defaults.handshake_timeout, ..defaults };
    let mut handshake = Handshake::new(theirs, "pair".to_owned(), limits);
    let mut client = Client::over(ours, client);
    let mut served = None;
    loop {
        // The side that is refused gets the reason; the other one's error is the reason itself.
        let progress = client.step()?;
        if served.is_none()
            && let Progress::Connected(interface) = handshake.step(&mut |_| Ok(server.clone()))?
        {
            served = Some(interface);
        }
        if let Progress::Connected(client) = progress {
            let server = served.ok_or(HandshakeError::Finished)?;
            return Ok((*client, *server));
        }
    }
}
