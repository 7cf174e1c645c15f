//! Texts that stand for something: names, addresses, durations, modes. Each returns `None` for what it is not; the
//! rule that says what would be right stands beside it.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use peregrine_dataplane::plan::{IdleMode, PlacementMode};
use peregrine_dataplane::tables::Remote;
use peregrine_dataplane::types::MacAddr;
use peregrine_memif::SocketAddr;

use crate::raw::Field;

pub const NAME: &str = "1 to 63 letters, digits, '_', '.' or '-'";

/// A network's or endpoint's name.
pub fn name(text: &str) -> Option<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ((1..=63).contains(&text.len()) && text.bytes().all(good)).then(|| text.to_owned())
}

pub const INTERFACE: &str = "the name of an interface: 1 to 15 bytes, without spaces, '/' and ':'";

/// An interface name that the kernel would take (`dev_valid_name`).
pub fn interface(text: &str) -> Option<String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    let good = (1..=15).contains(&text.len()) && !text.contains(bad) && text != "." && text != "..";
    good.then(|| text.to_owned())
}

pub const MAC: &str = "a station's Ethernet address, such as \"02:00:00:00:00:01\" (not multicast, not zero)";

/// The Ethernet address of one station.
pub fn station_mac(text: &str) -> Option<MacAddr> {
    text.parse().ok().filter(|mac: &MacAddr| !mac.is_group() && !mac.is_zero())
}

pub const VTEP: &str = "a VTEP's IP address, such as \"192.0.2.1\" or \"2001:db8::1\" (not multicast, broadcast, loopback or unspecified)";
const VTEP_GROUP: &str =
    "a VTEP's own address, not a multicast group: broadcast goes to each of `remotes` by itself";
const VTEP_LINK_LOCAL: &str =
    "an address that routers forward to: a link-local one means another host on each link";
const MAPPED: &str = "an IPv4 address as such, without \"::ffff:\"";

/// The address of a VTEP: what may be one while the dataplane runs.
pub fn vtep(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|ip| Remote::may_be(*ip))
}

/// The rule for [`vtep`] that helps most against what was given.
pub fn vtep_rule(given: &Field<String>) -> &'static str {
    given.value().and_then(|text| text.parse().ok()).map_or(VTEP, vtep_rule_of)
}

/// The same for an address.
pub fn vtep_rule_of(ip: IpAddr) -> &'static str {
    match ip {
        ip if ip.is_multicast() => VTEP_GROUP,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => VTEP_LINK_LOCAL,
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => MAPPED,
        _ => VTEP,
    }
}

pub const ADDRESS: &str =
    "a station's IP address, such as \"10.42.0.1\" (not multicast, broadcast, loopback or unspecified)";

/// The IP address of a tenant.
pub fn station_ip(text: &str) -> Option<IpAddr> {
    // A link-local one is as good as any: a network is one link.
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    text.parse().ok().filter(|ip| Remote::may_be(*ip) || is_link_local(ip))
}

/// The rule for [`station_ip`] that helps most against what was given.
pub fn station_rule(given: &Field<String>) -> &'static str {
    match given.value().and_then(|text| text.parse().ok()) {
        Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => MAPPED,
        _ => ADDRESS,
    }
}

pub const AGEING: &str = "a duration from \"1s\" to \"24h\", such as \"300s\" or \"5m\"";

/// How long learned addresses live.
pub fn ageing(text: &str) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    duration(text).filter(|d| (Duration::from_secs(1)..=DAY).contains(d))
}

pub const IDLE: &str = "\"busy\" or \"adaptive\"";

/// What a worker does while there is nothing to do.
pub fn idle(text: &str) -> Option<IdleMode> {
    [IdleMode::Busy, IdleMode::Adaptive].into_iter().find(|mode| mode.name() == text)
}

pub const IDLE_AFTER: &str = "a duration from \"1us\" to \"1s\", such as \"50us\" or \"2ms\"";

/// How long a worker looks for work in vain before it waits.
pub fn idle_after(text: &str) -> Option<Duration> {
    duration(text).filter(|d| (Duration::from_micros(1)..=Duration::from_secs(1)).contains(d))
}

/// A whole number of microseconds, milliseconds, seconds, minutes or hours.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.bytes().position(|b| !b.is_ascii_digit())?;
    let (digits, unit) = text.split_at_checked(unit_at)?;
    let microseconds = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60 * 1_000_000,
        "h" => 3600 * 1_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(microseconds).map(Duration::from_micros)
}

pub const SOCKET_PATH: &str = "an absolute path of at most 107 bytes, without \"..\"";

/// The path of a unix socket. One socket has one path here, so that sharing is seen: `..` is refused, and paths
/// compare by their components.
pub fn socket_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let good = path.is_absolute()
        && text.parse::<SocketAddr>().is_ok()
        && path.file_name().is_some()
        && !text.ends_with(['/', '.'])
        && !path.components().any(|part| part == Component::ParentDir)
        && !text.contains(char::is_control);
    good.then(|| path.to_owned())
}

pub const STATE_PATH: &str = "an absolute path of at most 4000 bytes, without \"..\"";

/// The path of a file beside which others are put, with names that are a little longer.
pub fn state_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let good = path.is_absolute()
        && text.len() <= 4000
        && path.file_name().is_some_and(|name| name.len() <= 240)
        && !text.ends_with(['/', '.'])
        && !path.components().any(|part| part == Component::ParentDir)
        && !text.contains(char::is_control);
    good.then(|| path.to_owned())
}

pub const SOCKET: &str =
    "an absolute path of at most 107 bytes, without \"..\", or \"@name\" for an abstract socket";

/// Where a memif server listens: we or the tenant.
pub fn memif_socket(text: &str) -> Option<SocketAddr> {
    if text.starts_with('@') {
        return text.parse().ok().filter(|_| !text.contains(char::is_control));
    }
    socket_path(text).map(SocketAddr::Path)
}

pub const MODE: &str = "an octal text from \"0000\" to \"0777\", such as \"0660\"";

/// Permission bits.
pub fn mode(text: &str) -> Option<u32> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let bits = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    bits.filter(|bits| *bits <= 0o777)
}

pub const PLACEMENT: &str = "\"balanced\", \"run-to-completion\", \"static\" or \"static-hashed\"";

/// How steps are spread over workers.
pub fn placement(text: &str) -> Option<PlacementMode> {
    PlacementMode::ALL.into_iter().find(|mode| mode.name() == text)
}

pub const OWNER: &str = "a number from 0 to 4294967294";

/// A user or group; the number beyond means "nobody" to chown(2).
pub fn owner(number: i64) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX)
}

pub const SECRET: &str = "1 to 24 bytes without NUL; leave the key out for no secret";

/// What the client must know. A NUL would end it early in C programs, and empty would be no secret at all.
pub fn secret(text: &str) -> Option<Vec<u8>> {
    ((1..=24).contains(&text.len()) && !text.contains('\0')).then(|| text.as_bytes().to_vec())
}
