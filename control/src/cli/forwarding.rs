//! `peregrine fdb` and `peregrine remote`: where addresses are and which remotes there are, shown and changed while packets flow.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use peregrine_dataplane::types::MacAddr;
use serde_json::{Value, json};

use super::{Ask, print, show_with};
use crate::client::Client;
use crate::error::Error;
use crate::render;

/// `peregrine fdb`, with a word behind it or without.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct FdbArgs {
    /// What to do; without it the addresses are shown.
    #[command(subcommand)]
    pub command: Option<FdbCommand>,
    /// Which are shown.
    #[command(flatten)]
    pub list: Addresses,
}

/// What happens to addresses.
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// Show where addresses are: learned, from the config, or on this host.
    List(Addresses),
    /// Forget learned addresses: all, or those that are meant. What is for them is flooded until they are learned again.
    Flush(Addresses),
    /// Put an address behind a remote: it is neither learned nor aged. Lasts until the daemon is started again.
    Add {
        /// The network.
        #[arg(long, value_name = "NETWORK")]
        network: String,
        /// The address.
        #[arg(long, value_name = "ADDRESS")]
        mac: MacAddr,
        /// One of the network's remotes.
        #[arg(long, value_name = "IP")]
        remote: IpAddr,
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
    },
    /// Take away an address that is fixed behind a remote. One of the config is back when the daemon is started again.
    Remove {
        /// The network.
        #[arg(long, value_name = "NETWORK")]
        network: String,
        /// The address.
        #[arg(long, value_name = "ADDRESS")]
        mac: MacAddr,
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
    },
}

/// Addresses for which all that is given is so.
#[derive(Debug, Args)]
pub struct Addresses {
    /// On this network.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// This address.
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Option<MacAddr>,
    /// Behind this remote.
    #[arg(long, value_name = "IP")]
    pub remote: Option<IpAddr>,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// What happens to remotes.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Show the remotes: from the config, added, or discovered; and those that were removed and are barred.
    List {
        /// Of this network.
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
        /// The same.
        #[arg(long = "network", value_name = "NETWORK", conflicts_with = "network")]
        of: Option<String>,
        /// Where and how.
        #[command(flatten)]
        ask: Ask,
    },
    /// Add a remote to a network, while packets flow: it may send, and what is flooded goes there. Lasts until the daemon is started again.
    Add(OneRemote),
    /// Remove a remote from a network, while packets flow, with the addresses behind it.
    ///
    /// It returns when no packet goes there any more. Where any remote may send (`any_remote`), this one may not until it is added again. A remote of the config is back when the daemon is started again.
    Remove(OneRemote),
}

/// A remote of a network.
#[derive(Debug, Args)]
pub struct OneRemote {
    /// The network.
    #[arg(value_name = "NETWORK")]
    pub network: String,
    /// The remote's VTEP address.
    #[arg(value_name = "ADDRESS")]
    pub address: IpAddr,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// So long a remote may take to be gone; it is some milliseconds where all is well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Does what `peregrine fdb` says.
///
/// # Errors
/// What the daemon says.
pub fn fdb(args: &FdbArgs) -> Result<(), Error> {
    match &args.command {
        None => show_with(&args.list.ask, "fdb", &args.list.params(), render::fdb),
        Some(FdbCommand::List(which)) => show_with(&which.ask, "fdb", &which.params(), render::fdb),
        Some(FdbCommand::Flush(which)) => flush(which),
        Some(FdbCommand::Add { network, mac, remote, ask }) => {
            let params = json!({ "network": network, "mac": mac, "remote": remote });
            show_with(ask, "fdb.add", &params, |_| {
                format!("{mac} is behind {remote} on network {network}, until the daemon is started again\n")
            })
        }
        Some(FdbCommand::Remove { network, mac, ask }) => {
            let params = json!({ "network": network, "mac": mac });
            show_with(ask, "fdb.remove", &params, |_| {
                format!("{mac} is no longer fixed on network {network}\n")
            })
        }
    }
}

impl Addresses {
    /// For the daemon: only what is given.
    fn params(&self) -> Value {
        let mut params = json!({ "network": self.network, "mac": self.mac, "remote": self.remote });
        if let Some(keys) = params.as_object_mut() {
            keys.retain(|_, value| !value.is_null());
        }
        params
    }
}

/// A large table is flushed part by part, so that each answer comes soon.
fn flush(which: &Addresses) -> Result<(), Error> {
    let mut client = Client::connect(&which.ask.socket)?;
    let (mut params, mut flushed) = (which.params(), 0);
    loop {
        let answer = client.call_with("fdb.flush", &params)?;
        flushed += answer["flushed"].as_u64().unwrap_or(0);
        match answer["next"].as_u64() {
            Some(next) => params["from"] = json!(next),
            None => break,
        }
    }
    print(&match which.ask.json {
        true => format!("{}\n", json!({ "flushed": flushed })),
        false => format!("{} forgotten\n", render::addresses(flushed, "learned")),
    })
}

/// Does what `peregrine remote` says.
///
/// # Errors
/// What the daemon says.
pub fn remote(command: &RemoteCommand) -> Result<(), Error> {
    match command {
        RemoteCommand::List { network, of, ask } => {
            let params = network
                .as_ref()
                .or(of.as_ref())
                .map_or_else(|| json!({}), |network| json!({ "network": network }));
            show_with(ask, "remote.list", &params, render::remotes)
        }
        RemoteCommand::Add(one @ OneRemote { network, address, ask }) => {
            show_with(ask, "remote.add", &one.params(), |_| {
                format!("{address} is a remote of network {network}, until the daemon is started again\n")
            })
        }
        RemoteCommand::Remove(one @ OneRemote { network, address, ask }) => {
            let mut client = Client::connect(&ask.socket)?;
            let answer = client.call_with("remote.remove", &one.params())?;
            let fixed = match answer["fixed_removed"].as_u64().unwrap_or(0) {
                0 => String::new(),
                some => format!("; {} behind it went with it", render::addresses(some, "fixed")),
            };
            wait_until_gone(&mut client, one, &fixed)?;
            let barred =
                if answer["barred"] == true { "; it may not send until it is added again" } else { "" };
            print(&match ask.json {
                true => format!("{answer}\n"),
                false => format!("{address} is no remote of network {network} any more{fixed}{barred}\n"),
            })
        }
    }
}

impl OneRemote {
    fn params(&self) -> Value {
        json!({ "network": self.network, "remote": self.address })
    }
}

/// `fixed` says which addresses went.
fn wait_until_gone(client: &mut Client, one: &OneRemote, fixed: &str) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let address = json!(one.address);
    loop {
        let answer = client.call_with("remote.list", &json!({ "network": one.network }))?;
        let mut listed = answer["remotes"].as_array().into_iter().flatten();
        if !listed.any(|its| its["remote"] == address && its["leaving"] == true) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Answer {
                path: one.ask.socket.clone(),
                reason: format!(
                    "it removes {}, but some worker has not let go of it within {} s: `peregrine remote list` tells when it is gone{fixed}",
                    one.address,
                    PATIENCE.as_secs()
                ),
            });
        }
        std::thread::sleep(LOOK);
    }
}
