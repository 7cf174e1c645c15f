//! The methods about where addresses are and which remotes there are: `fdb`, `fdb.flush`, `fdb.add`, `fdb.remove`; `remote.list`,
//! `remote.add`, `remote.remove`. Called by [`methods`](crate::methods). What they change lasts until the daemon is started again; the
//! config is not changed.

use std::net::IpAddr;

use peregrine_dataplane::engine::{AddressFilter, Engine, Member, RemoteError};
use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::types::{MacAddr, NetworkId, RemoteId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rpc::{RpcError, code, params};
use crate::status::{self, FdbStatus};

/// Remotes that one answer to `remote.list` holds at most: the rest is counted.
pub const REMOTES_LISTED_MAX: usize = 10_000;

/// Which addresses, or remotes. What is left out may be anything.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Filter {
    network: Option<String>,
    mac: Option<MacAddr>,
    remote: Option<IpAddr>,
    /// For `fdb.flush`: where to go on.
    from: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedAddress {
    network: String,
    mac: MacAddr,
    remote: IpAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    network: String,
    mac: MacAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remote {
    network: String,
    remote: IpAddr,
}

/// Does what one of these methods asks for.
///
/// # Errors
/// Wrong parameters, or it cannot be done as things are. `None`: it is no method of ours.
pub fn answer(engine: &mut Engine, method: &str, given: &Value) -> Option<Result<Value, RpcError>> {
    let given = given.clone();
    Some(match method {
        "fdb" => list(engine, given),
        "fdb.flush" => flush(engine, given),
        "fdb.add" => add(engine, given),
        "fdb.remove" => remove(engine, given),
        "remote.list" => list_remotes(engine, given),
        "remote.add" => add_remote(engine, given),
        "remote.remove" => remove_remote(engine, given),
        _ => return None,
    })
}

fn list(engine: &Engine, given: Value) -> Result<Value, RpcError> {
    let filter = read_filter(engine, "fdb", given)?.0;
    let answer: FdbStatus<'_> = status::fdb(engine, engine.plan(), &filter);
    serde_json::to_value(answer).map_err(|e| RpcError::new(code::INTERNAL, e.to_string()))
}

fn flush(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let (filter, from) = read_filter(engine, "fdb.flush", given)?;
    let flushed = engine.flush(filter, from);
    Ok(json!({ "flushed": flushed.addresses, "next": flushed.next }))
}

fn add(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let FixedAddress { network, mac, remote } = params("fdb.add", given)?;
    let id = network_id(engine.plan(), &network)?;
    let behind = remote_id(engine, remote)?;
    engine.add_address(id, mac, behind).map_err(|e| refused(&network, &e))?;
    Ok(json!({ "network": network, "mac": mac, "remote": remote }))
}

fn remove(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let Address { network, mac } = params("fdb.remove", given)?;
    let id = network_id(engine.plan(), &network)?;
    engine.remove_address(id, mac).map_err(|e| refused(&network, &e))?;
    Ok(json!({ "network": network, "mac": mac }))
}

fn list_remotes(engine: &Engine, given: Value) -> Result<Value, RpcError> {
    let (AddressFilter { network, remote, mac }, _) = read_filter(engine, "remote.list", given)?;
    if mac.is_some() {
        return Err(RpcError::new(code::INVALID_PARAMS, "remote.list: remotes have no mac"));
    }
    let mut total = 0;
    let mut remotes = Vec::new();
    let is_meant = |member: &Member| {
        network.is_none_or(|id| id == member.network) && remote.is_none_or(|id| id == member.remote)
    };
    for member in engine.members().filter(is_meant) {
        total += 1;
        if total > REMOTES_LISTED_MAX {
            continue;
        }
        remotes.push(json!({
            "network": engine.plan().network(member.network).map_or("", |network| &network.name),
            "remote": member.address,
            "standing": member.standing,
            "leaving": member.is_leaving,
            "frames": engine.frames_towards(member.remote),
        }));
    }
    let is_meant = |of: NetworkId| remote.is_none() && network.is_none_or(|id| id == of);
    for (of, address) in engine.barred().filter(|(of, _)| is_meant(*of)) {
        total += 1;
        if total <= REMOTES_LISTED_MAX {
            remotes.push(json!({
                "network": engine.plan().network(of).map_or("", |network| &network.name),
                "remote": address,
                "standing": "barred",
                "leaving": false,
                "frames": 0,
            }));
        }
    }
    Ok(json!({ "remotes": remotes, "total": total }))
}

fn add_remote(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let Remote { network, remote } = params("remote.add", given)?;
    let id = network_id(engine.plan(), &network)?;
    engine.add_remote(id, remote).map_err(|error| match error {
        RemoteError::NotUnicast(address) => {
            let rule = peregrine_config::vtep_rule(address);
            refused(&network, &format_args!("{address}: must be {rule}"))
        }
        error => refused(&network, &error),
    })?;
    Ok(json!({ "network": network, "remote": remote }))
}

fn remove_remote(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let Remote { network, remote } = params("remote.remove", given)?;
    let id = network_id(engine.plan(), &network)?;
    let fixed = engine.remove_remote(id, remote).map_err(|e| refused(&network, &e))?;
    let barred = engine.barred().any(|one| one == (id, remote));
    Ok(json!({ "network": network, "remote": remote, "fixed_removed": fixed, "barred": barred }))
}

/// Also, where a flush goes on.
fn read_filter(engine: &Engine, method: &str, given: Value) -> Result<(AddressFilter, usize), RpcError> {
    let given = if given.is_null() { json!({}) } else { given };
    let Filter { network, mac, remote, from } = params(method, given)?;
    if from.is_some() && method != "fdb.flush" {
        return Err(RpcError::new(code::INVALID_PARAMS, format!("{method} goes on from nowhere")));
    }
    let network = network.map(|name| network_id(engine.plan(), &name)).transpose()?;
    let remote = remote.map(|address| remote_id(engine, address)).transpose()?;
    Ok((AddressFilter { network, mac, remote }, from.unwrap_or(0)))
}

fn network_id(plan: &Plan, name: &str) -> Result<NetworkId, RpcError> {
    let found = plan.networks.iter().find(|(_, network)| network.name == name);
    found.map(|(id, _)| id).ok_or_else(|| {
        let names: Vec<&str> = plan.networks.values().take(8).map(|network| &*network.name).collect();
        let more = if plan.networks.len() > names.len() { ", …" } else { "" };
        let shown: String = name.chars().take(64).collect();
        let is_plain = !shown.is_empty() && shown.chars().all(|c| c.is_ascii_graphic());
        let shown = if is_plain { shown } else { format!("{shown:?}") };
        let text = format!("no network {shown}: there are {}{more}", names.join(", "));
        RpcError::new(code::REFUSED, text)
    })
}

fn remote_id(engine: &Engine, address: IpAddr) -> Result<RemoteId, RpcError> {
    engine.remote_id(address).ok_or_else(|| {
        let text = format!("{address} is no remote of any network: `peregrine remote list` shows them");
        RpcError::new(code::REFUSED, text)
    })
}

fn refused(network: &str, error: &impl std::fmt::Display) -> RpcError {
    RpcError::new(code::REFUSED, format!("network {network}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::allowed_cores;
    use std::time::{Duration, Instant};

    /// A worker on frames from memory; networks with a remote each, one endpoint, one fixed address.
    fn engine() -> Engine {
        let core = allowed_cores().unwrap().first().unwrap().0;
        let config = format!(
            "[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\nlocal = \"10.9.0.1\"\nring_size = 64\n\
             [[networks]]\nname = \"blue\"\nvni = 7\nremotes = [\"10.9.0.2\", \"10.9.0.3\"]\n\
             static_macs = [{{ mac = \"02:00:00:00:00:99\", remote = \"10.9.0.2\" }}]\n\
             [[networks]]\nname = \"green\"\nvni = 8\nremotes = [\"10.9.0.3\"]\n\
             [[endpoints]]\nname = \"web\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:01\"\nmemif = {{ socket = \"@x\" }}\n"
        );
        let plan = peregrine_config::parse(&config, "t").unwrap_or_else(|errors| panic!("{errors}"));
        Engine::replay(&plan, vec![]).unwrap()
    }

    fn ask(engine: &mut Engine, method: &str, given: Value) -> Result<Value, String> {
        answer(engine, method, &given).unwrap().map_err(|error| error.message)
    }

    fn until_gone(engine: &mut Engine) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while engine.members().any(|member| member.is_leaving) {
            assert!(Instant::now() < deadline);
            assert_eq!(engine.poll(), []);
            std::thread::yield_now();
        }
    }

    #[test]
    fn remotes_are_added_listed_and_removed() {
        let mut engine = engine();
        let of_blue = json!({"network": "blue"});
        let names = |engine: &mut Engine| -> Vec<(String, String)> {
            let list = ask(engine, "remote.list", of_blue.clone()).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            list["remotes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| (text(&r["remote"]), text(&r["standing"])))
                .collect()
        };
        let four = json!({"network": "blue", "remote": "10.9.0.4"});
        assert_eq!(ask(&mut engine, "remote.add", four.clone()).unwrap(), four);
        let pair = |address: &str, standing: &str| (address.to_owned(), standing.to_owned());
        let [two, three, last] =
            [pair("10.9.0.2", "configured"), pair("10.9.0.3", "configured"), pair("10.9.0.4", "added")];
        assert_eq!(names(&mut engine), [two.clone(), three.clone(), last]);
        assert_eq!(ask(&mut engine, "remote.list", Value::Null).unwrap()["total"], 4);
        assert_eq!(engine.plan().networks[0].remotes.len(), 3, "the plan is what runs");
        let twice = ask(&mut engine, "remote.add", four.clone()).unwrap_err();
        assert!(twice.contains("network blue: 10.9.0.4 is a remote of this network already"), "{twice}");
        assert_eq!(ask(&mut engine, "remote.remove", four.clone()).unwrap()["fixed_removed"], 0);
        until_gone(&mut engine);
        assert_eq!(names(&mut engine), [two, three.clone()]);
        let again = ask(&mut engine, "remote.remove", four).unwrap_err();
        assert!(again.contains("10.9.0.4 is no remote of this network"), "{again}");
        // While it leaves, what is behind it can still be asked for.
        let behind = json!({"remote": "10.9.0.2"});
        ask(&mut engine, "fdb", behind.clone()).unwrap();
        // One of the config, and with it what is fixed behind it.
        let two = json!({"network": "blue", "remote": "10.9.0.2"});
        let answer = ask(&mut engine, "remote.remove", two).unwrap();
        assert_eq!((&answer["fixed_removed"], &answer["barred"]), (&json!(1), &json!(false)));
        ask(&mut engine, "fdb", behind.clone()).unwrap();
        ask(&mut engine, "fdb.flush", behind).unwrap();
        until_gone(&mut engine);
        assert_eq!(names(&mut engine), [three]);
        assert_eq!(ask(&mut engine, "fdb", json!({})).unwrap()["total"], 1, "the endpoint's");
    }

    #[test]
    fn what_is_no_remote_is_refused_with_the_reason() {
        let mut engine = engine();
        for (address, reason) in [
            ("10.9.0.1", "an address of our own"),
            ("224.0.0.1", "must be a VTEP's own address, not a multicast group"),
            ("255.255.255.255", "must be a VTEP's IP address"),
            ("0.0.0.0", "must be a VTEP's IP address"),
            ("127.0.0.1", "must be a VTEP's IP address"),
            (
                "fe80::1",
                "must be an address that routers forward to: a link-local one means another host on each link",
            ),
            ("::ffff:10.9.0.9", "must be an IPv4 address as such"),
            ("2001:db8::1", "no uplink has an IPv6 address"),
            ("10.9.0.3", "is a remote of this network already"),
        ] {
            let given = json!({"network": "blue", "remote": address});
            let error = ask(&mut engine, "remote.add", given).unwrap_err();
            assert!(error.contains(reason) && !error.contains('\n'), "{address}: {error}");
        }
        let error =
            ask(&mut engine, "remote.add", json!({"network": "blu", "remote": "10.9.0.9"})).unwrap_err();
        assert_eq!(error, "no network blu: there are blue, green");
        let error = ask(&mut engine, "remote.list", json!({"network": ""})).unwrap_err();
        assert_eq!(error, "no network \"\": there are blue, green");
        for given in [json!({}), json!({"network": "blue"}), json!({"network": "blue", "remote": "x"})] {
            assert!(ask(&mut engine, "remote.add", given).unwrap_err().starts_with("remote.add: "));
        }
        assert_eq!(engine.members().count(), 3);
    }

    #[test]
    fn fixed_addresses_are_added_replaced_and_removed() {
        let mut engine = engine();
        let there = |engine: &mut Engine, mac: &str| {
            let list = ask(engine, "fdb", json!({ "mac": mac })).unwrap();
            list["entries"]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| (e["remote"].clone(), e["fixed"].clone()))
                .collect::<Vec<_>>()
        };
        let mac = "02:00:00:00:00:50";
        for remote in ["10.9.0.2", "10.9.0.3"] {
            let given = json!({"network": "blue", "mac": mac, "remote": remote});
            assert_eq!(ask(&mut engine, "fdb.add", given.clone()).unwrap(), given);
            assert_eq!(there(&mut engine, mac), [(json!(remote), json!(true))]);
        }
        assert_eq!(ask(&mut engine, "fdb.flush", json!({})).unwrap(), json!({"flushed": 0, "next": null}));
        for (given, reason) in [
            (
                json!({"network": "blue", "mac": "02:00:00:00:07:01", "remote": "10.9.0.2"}),
                "of an endpoint of this host",
            ),
            (
                json!({"network": "blue", "mac": "01:00:00:00:00:01", "remote": "10.9.0.2"}),
                "not the address of one station",
            ),
            (json!({"network": "green", "mac": mac, "remote": "10.9.0.2"}), "none of the network's"),
            (json!({"network": "blue", "mac": mac, "remote": "10.9.0.9"}), "no remote of any network"),
        ] {
            let error = ask(&mut engine, "fdb.add", given).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let blue = |mac: &str| json!({"network": "blue", "mac": mac});
        assert_eq!(ask(&mut engine, "fdb.remove", blue(mac)).unwrap(), blue(mac));
        assert_eq!(there(&mut engine, mac), []);
        assert!(ask(&mut engine, "fdb.remove", blue(mac)).unwrap_err().contains("is not known"));
        let local = ask(&mut engine, "fdb.remove", blue("02:00:00:00:07:01")).unwrap_err();
        assert!(local.contains("of an endpoint of this host"), "{local}");
        assert_eq!(there(&mut engine, "02:00:00:00:07:01").len(), 1);
    }

    #[test]
    fn there_is_room_for_so_many_later_ones_and_no_more() {
        let mut engine = engine();
        let given = |n: usize| {
            let mac = MacAddr::from_u64(0x0200_0001_0000 + n as u64);
            json!({"network": "blue", "mac": mac, "remote": "10.9.0.2"})
        };
        for n in 0..peregrine_dataplane::engine::FIXED_LATER {
            ask(&mut engine, "fdb.add", given(n)).unwrap();
        }
        assert!(ask(&mut engine, "fdb.add", given(5000)).unwrap_err().contains("no room"));
        ask(&mut engine, "fdb.add", given(7)).expect("it is there already");
        let remote =
            |n: u32| json!({"network": "green", "remote": IpAddr::from((0x0a0a_0000 + n).to_be_bytes())});
        for n in 1..1024 {
            ask(&mut engine, "remote.add", remote(n)).unwrap();
        }
        assert!(ask(&mut engine, "remote.add", remote(1024)).unwrap_err().contains("has 1024 remotes"));
        let blue =
            |n: u32| json!({"network": "blue", "remote": IpAddr::from((0x0a0a_0000 + n).to_be_bytes())});
        ask(&mut engine, "remote.add", blue(1024)).unwrap();
        let full = ask(&mut engine, "remote.add", blue(1025)).unwrap_err();
        assert!(full.contains("there are 1026 remotes, as many as there is room for"), "{full}");
        ask(&mut engine, "remote.add", blue(1)).expect("it is there, only not on this network");
        // One that is gone makes room, once it is.
        ask(&mut engine, "remote.remove", blue(1024)).unwrap();
        assert!(ask(&mut engine, "remote.add", blue(1024)).unwrap_err().contains("just being removed"));
        until_gone(&mut engine);
        ask(&mut engine, "remote.add", blue(1025)).unwrap();
    }

    #[test]
    fn parameters_that_mean_nothing_are_refused() {
        let mut engine = engine();
        for (method, given) in [
            ("fdb", json!({"from": 1})),
            ("fdb", json!({"mac": "x"})),
            ("fdb.flush", json!({"macs": []})),
            ("fdb.flush", json!({"from": -1})),
            ("remote.list", json!({"mac": "02:00:00:00:00:01"})),
        ] {
            assert!(ask(&mut engine, method, given.clone()).is_err(), "{method} {given}");
        }
        let end = json!({"from": u64::MAX});
        assert_eq!(ask(&mut engine, "fdb.flush", end).unwrap(), json!({"flushed": 0, "next": null}));
        assert!(answer(&mut engine, "fdb.flsh", &json!({})).is_none());
    }
}
