//! What carries an endpoint: `memif` for a program that speaks it, or `veth` for a container that knows nothing of us.

use std::path::{Path, PathBuf};

use peregrine_dataplane::plan::{NamespaceRef, PortPlan, VethPlan};

use super::memif::{Sockets, memif};
use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::raw::{Field, Memif, Veth};
use crate::values;

const MEMIF: &str = "a table, such as { socket = \"/run/peregrine/memif.sock\", id = 0 }";
const EITHER: &str = "a table, such as { socket = \"/run/peregrine/memif.sock\", id = 0 }; or there must be a table veth, such as { namespace = \"web\" }";
const VETH: &str = "a table, such as { namespace = \"web\" }";
const NAMESPACE: &str = "the name of a network namespace (1 to 63 letters, digits, '_', '.' or '-'), or the path of one, such as \"/proc/4242/ns/net\"";

/// What ports may have once over all of them.
pub struct Ports<'a> {
    sockets: Sockets<'a>,
    /// `None`: this is about one alone.
    together: Option<Together>,
}

#[derive(Default)]
struct Together {
    interfaces: Claims<(NamespaceRef, String)>,
    /// Namespaces that are made with their port.
    made: Claims<NamespaceRef>,
}

impl<'a> Ports<'a> {
    /// Nobody has one but the daemon itself.
    pub fn new(control_socket: Option<&'a Path>) -> Ports<'a> {
        Ports { sockets: Sockets::new(control_socket), together: Some(Together::default()) }
    }

    /// For one alone: whether others have the same is not looked at.
    pub fn of_one(control_socket: Option<&'a Path>) -> Ports<'a> {
        Ports { sockets: Sockets::of_one(control_socket), together: None }
    }
}

/// Checks the one of both that is given; `at` is the table that has them, `network` the MTU of the endpoint's network with the path of that
/// key, where it is known.
pub fn port(
    at: &At<'_>,
    (of_memif, of_veth): (&Field<Memif>, &Field<Veth>),
    network: Option<(u16, String)>,
    ports: &mut Ports<'_>,
) -> Option<PortPlan> {
    if let Some(shown) = of_veth.given() {
        if of_memif.given().is_some() {
            at.key("veth").invalid(shown, "left out: there is memif");
        }
        let at = at.key("veth");
        return at.table(of_veth, VETH).and_then(|raw| veth(&at, raw, network, ports)).map(PortPlan::Veth);
    }
    let at = at.key("memif");
    let rule = if matches!(of_memif, Field::Absent) { EITHER } else { MEMIF };
    let raw = at.table(of_memif, rule)?;
    memif(&at, raw, network, &mut ports.sockets).map(PortPlan::Memif)
}

/// Why a network with this MTU cannot be reached by a port, if it cannot.
pub fn unfit(port: &PortPlan, mtu: u16) -> Option<String> {
    match port {
        PortPlan::Memif(memif) => super::memif::too_small(memif, mtu),
        PortPlan::Veth(_) if mtu > VethPlan::MTU_MAX => Some(format!(
            "a veth carries an mtu of {} at most, and the network's is {mtu}",
            VethPlan::MTU_MAX
        )),
        PortPlan::Veth(_) => None,
    }
}

fn veth(at: &At<'_>, raw: &Veth, network: Option<(u16, String)>, ports: &mut Ports<'_>) -> Option<VethPlan> {
    let namespace = namespace(at, raw);
    let create = at.key("create_namespace").switch(&raw.create_namespace, false);
    let interface = at.key("interface").text(
        &raw.interface,
        Some("eth0".to_owned()),
        values::INTERFACE,
        values::interface,
    );
    let default_route = at.key("default_route").switch(&raw.default_route, true);
    let ring_size = at.key("ring_size").number(&raw.ring_size, 64..=4096u32, Some(256));
    if let Some(size) = ring_size
        && !size.is_power_of_two()
    {
        at.key("ring_size").invalid(&raw.ring_size, "a power of two from 64 to 4096");
    }
    if let Some((mtu, path)) = network
        && mtu > VethPlan::MTU_MAX
    {
        let why = format!("must be at most {}: {} is on that network", VethPlan::MTU_MAX, at.path());
        at.report().add(ConfigError::Refused { key: path, got: mtu.to_string(), why });
        return None;
    }
    if let (Some(namespace), Some(interface), Some(together)) = (&namespace, &interface, &mut ports.together)
    {
        if create == Some(true) {
            together.made.claim(namespace.clone(), &at.key("namespace"), &raw.namespace);
        }
        let got = format_args!("{interface:?} in {namespace}");
        together.interfaces.claim((namespace.clone(), interface.clone()), &at.key("interface"), got);
    }
    if create == Some(true) && !matches!(namespace, None | Some(NamespaceRef::Name(_))) {
        let rule = "false, or the namespace must be given by a name: it is made under that";
        at.key("create_namespace").invalid("true", rule);
        return None;
    }
    if let (Some(true), Some(shown)) = (create, raw.ring_size.given()) {
        at.key("ring_size").invalid(
            shown,
            "left out: with create_namespace it is that of all that are made beforehand, 256",
        );
        return None;
    }
    Some(VethPlan {
        namespace: namespace?,
        create: create?,
        interface: interface?,
        default_route: default_route?,
        ring_size: ring_size.filter(|size| size.is_power_of_two())?,
    })
}

/// By name, by path or of a process: one of them.
fn namespace(at: &At<'_>, raw: &Veth) -> Option<NamespaceRef> {
    if raw.pid.given().is_some() {
        if let Some(shown) = raw.namespace.given() {
            at.key("namespace").invalid(shown, "left out: there is pid");
            return None;
        }
        return at.key("pid").number(&raw.pid, 1..=i32::MAX as u32, None).map(NamespaceRef::Pid);
    }
    at.key("namespace").text(&raw.namespace, None, NAMESPACE, |text| {
        if text.starts_with('/') {
            let is_good = text.len() < 4096 && !text.contains('\0');
            return is_good.then(|| NamespaceRef::Path(PathBuf::from(text)));
        }
        values::name(text).filter(|name| !matches!(name.as_str(), "." | "..")).map(NamespaceRef::Name)
    })
}
