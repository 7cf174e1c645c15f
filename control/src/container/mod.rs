//! What a container that knows nothing of us is given: a pair of veth devices, one end of which is made directly in the container's
//! network namespace, with its address and routes, and the other in ours, where a port drives it (`peregrine_dataplane::xsk::Ports`).
//!
//! - `namespace`: a namespace given by name, path or process; work done inside it
//! - `pair`: the pair, made and removed
//! - `pool`: namespaces with pairs and ports that are ready before anybody asks
//! - `remover`: the thread that removes them
//! - `maker`: a pair and our end of it, open; found again where an earlier daemon left it
//!
//! The far end is made where it is to be. To move a device from one namespace to another costs the kernel an RCU grace period or
//! two, some 16 ms; to make it there, nothing.
//!
//! What must hold: what fails leaves nothing behind; a mistake is named with what, where and the way out, in one line; nothing of another
//! owner's is changed: a name that is taken is refused, a default route that is there stays.

mod maker;
mod namespace;
mod pair;
mod pool;
mod remover;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;

use peregrine_dataplane::xsk::XskError;

pub use maker::{Maker, is_device, is_fleeting};
pub use namespace::Namespace;
use namespace::how_to_list;
pub use pair::{Link, Pair, VethPlan, make};
use peregrine_dataplane::plan::NamespaceRef;
pub use pool::{PartPlan, Pool, PoolConfig, PoolCounts, Taken};

/// Why a container did not get its interface.
#[derive(Debug)]
pub enum ContainerError {
    /// There is no such namespace.
    NoNamespace {
        /// What was asked for.
        namespace: NamespaceRef,
        /// What the system said.
        source: io::Error,
    },
    /// It is there, but it is no network namespace.
    NotANamespace {
        /// What was asked for.
        namespace: NamespaceRef,
    },
    /// No interface can be called that.
    BadName {
        /// The name asked for.
        name: String,
    },
    /// There is an interface of this name already.
    NameTaken {
        /// The name asked for.
        name: String,
        /// Where; `None`: in our own namespace.
        namespace: Option<NamespaceRef>,
    },
    /// Some privilege is missing.
    NotPermitted {
        /// What was refused.
        what: String,
    },
    /// The namespace has no IPv6.
    NoIpv6 {
        /// Which.
        namespace: NamespaceRef,
    },
    /// The namespace has a default route.
    HasRoute {
        /// Which.
        namespace: NamespaceRef,
        /// The gateway that was to be its.
        gateway: std::net::IpAddr,
    },
    /// No network namespace can be called that.
    BadNamespaceName {
        /// The name asked for.
        name: String,
    },
    /// Something has this name already.
    NamespaceTaken {
        /// The name asked for.
        name: String,
    },
    /// Another process has a pool with this directory.
    PoolTaken {
        /// The directory.
        directory: PathBuf,
    },
    /// Our end did not become a port.
    Port {
        /// Why.
        source: XskError,
    },
    /// The kernel refused something else.
    Refused {
        /// What was tried.
        what: String,
        /// Its reason.
        source: io::Error,
    },
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ContainerError as E;
        match self {
            E::NoNamespace { namespace, source } => {
                write!(f, "there is no {namespace} ({source}): {}", how_to_list(namespace))
            }
            E::NotANamespace { namespace } => {
                write!(f, "{namespace} is no network namespace: {}", how_to_list(namespace))
            }
            E::BadName { name } => write!(
                f,
                "no interface can be called '{}': use 1 to 15 letters and digits, '-', '_' or '.'",
                name.escape_debug()
            ),
            E::NameTaken { name, namespace: None } => write!(
                f,
                "there is an interface '{name}' already: choose another name, or remove it (ip link del {name})"
            ),
            E::NameTaken { name, namespace: Some(namespace) } => write!(
                f,
                "there is an interface '{name}' in {namespace} already: choose another name, or remove it there"
            ),
            E::NotPermitted { what } => write!(
                f,
                "{what} is not permitted: run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN"
            ),
            E::NoIpv6 { namespace } => write!(
                f,
                "{namespace} has IPv6 switched off: set net.ipv6.conf.default.disable_ipv6 to 0 there, or leave IPv6 addresses out"
            ),
            E::HasRoute { namespace, gateway } => write!(
                f,
                "{namespace} has a default route, so none to {gateway} was made: remove it there, or say default_route = false"
            ),
            E::BadNamespaceName { name } => write!(
                f,
                "no network namespace can be called '{}': use 1 to 255 letters, digits and signs, but no '/' and no space",
                name.escape_debug()
            ),
            E::NamespaceTaken { name } => write!(
                f,
                "there is a network namespace '{name}' already: choose another name, or remove it (ip netns del {name})"
            ),
            E::PoolTaken { directory } => write!(
                f,
                "another process has its pool of containers' parts in {}: give each a directory of its own, or end the other",
                directory.display()
            ),
            E::Port { source } => source.fmt(f),
            E::Refused { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for ContainerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ContainerError::NoNamespace { source, .. } | ContainerError::Refused { source, .. } => {
                Some(source)
            }
            ContainerError::Port { source } => source.source(),
            _ => None,
        }
    }
}

impl From<XskError> for ContainerError {
    fn from(source: XskError) -> ContainerError {
        ContainerError::Port { source }
    }
}
