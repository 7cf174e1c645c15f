//! The methods of the control socket: what each takes, does and returns. Called by [`daemon`](crate::daemon) for each request; nothing
//! here waits.
//!
//! | method | parameters | result |
//! |---|---|---|
//! | `status`, `stats`, `version` | none | what runs, the counters, the daemon's version |
//! | `fdb` | `network`, `mac`, `remote`, if wanted | where addresses are: the first 10,000, and how many there are |
//! | `fdb.flush` | the same; `from`: 0, or the last answer's `next` | `flushed`: learned addresses forgotten; `next`: where to go on, `null` at the end |
//! | `fdb.add` | `network`, `mac`, `remote` | the same: the address is fixed there |
//! | `fdb.remove` | `network`, `mac` | the same: it is no longer fixed |
//! | `remote.list` | `network`, `remote`, if wanted | `remotes`: the first 10,000, each with its `standing` and whether it is `leaving`; `total` |
//! | `remote.add` | `network`, `remote` | the same |
//! | `remote.remove` | `network`, `remote` | the same, `fixed_removed`: addresses that were fixed behind it, and `barred`: the network takes any remote, but this one not until it is added. It is gone when it is listed no more |
//! | `worker.add` | `core`: a CPU; `nice`: −20 to 19, if wanted; `idle`: `busy` (default) or `adaptive` | `cores`: those in use |
//! | `worker.remove` | `core` | the same |
//! | `rules.get` | none | `rules`: those in force, each with the keys of the config's `[[rules]]`; `status`: as in `status` |
//! | `rules.set` | `rules`: a list of such, instead of all before | `count`, and `warnings` as of `peregrine check` |
//! | `rules.check` | the same | the same, and nothing is changed |
//! | `change` | `changes`: a list of steps, `{"add_network": {…}}` and so on; `dry_run`, `generation`, if wanted | all of it done or nothing: `generation`, `added`, `changed`, `removed`, `took_us` |
//! | `apply` | `networks`, `ports`, `endpoints`: all that is to be there by this socket; `dry_run`, `generation`, if wanted | the difference: `added`, `changed` with the `keys`, `removed`, the first 1000 each; `totals` |
//! | `export` | none | what `apply` takes: all that is there by this socket, with secrets |
//! | `network.list`, `port.list`, `endpoint.list` | `name`, `network`, if wanted; `after`: the last answer's `next` | `networks`, `ports` or `endpoints`: at most 10,000; `total`; `next` if there are more |
//! | `watch` | `from`: a generation, if wanted | `generation`, `version`, `resync`; from then on this connection is told each `changed` |
//! | `schema` | none | the JSON schema of these, which says what all their keys are |
//!
//! What changes something is for root, the daemon's user and the members of `control_group`, and `export` for the first two; all others may
//! look.
//!
//! What a step or an object may hold is told in [`types`](crate::model::types); how it is done, in [`model`](crate::model).

use std::path::Path;
use std::time::Instant;

use mio::Registry;
use peregrine_dataplane::engine::{Engine, WorkerError};
use peregrine_dataplane::plan::{IdleMode, Plan, WorkerPlan};
use peregrine_dataplane::types::CoreId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Peer;
use crate::declared::Declared;
use crate::forwarding;
use crate::model::Model;
use crate::model::types::{WatchAnswer, WatchRequest};
use crate::pools::Pools;
use crate::preflight;
use crate::rpc::{Reply, RpcError, Watch, code, no_params, params};
use crate::rules;
use crate::status::{self, Status, VERSION};
use crate::tenants::Tenants;
use crate::underlay::Underlay;

/// What the methods look at and change.
#[derive(Debug)]
pub struct Methods<'d> {
    /// The config.
    pub plan: &'d Plan,
    /// The workers.
    pub engine: &'d mut Engine,
    /// The tenants' connections.
    pub tenants: &'d mut Tenants,
    /// What was made beforehand.
    pub pools: &'d Pools,
    /// What is declared.
    pub model: &'d mut Model,
    /// Where the tenants' sockets are watched.
    pub registry: &'d Registry,
    /// The next hops.
    pub underlay: &'d Underlay,
    /// The cores that this process could use at its start.
    pub usable: &'d [CoreId],
    /// Since when packets are forwarded.
    pub started: Instant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddWorker {
    core: usize,
    nice: Option<i8>,
    #[serde(default)]
    idle: IdleMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveWorker {
    core: usize,
}

impl Methods<'_> {
    /// Does what a request of this peer asks for.
    ///
    /// # Errors
    /// For the client: no such method, wrong parameters, it may not, or it cannot be done as things are.
    pub fn answer(
        &mut self,
        peer: &Peer,
        method: &str,
        given: Value,
        now: Instant,
    ) -> Result<Reply, RpcError> {
        may(peer, method)?;
        match method {
            "watch" => self.watch(given),
            _ => self.value(method, given, now).map(Reply::from),
        }
    }

    fn value(&mut self, method: &str, mut given: Value, now: Instant) -> Result<Value, RpcError> {
        let Methods { plan, model, engine, tenants, registry, .. } = self;
        let mut declared = Declared { plan, model, engine, tenants, registry };
        if let Some(answer) = declared.answer(method, &mut given, now) {
            return answer;
        }
        match method {
            "worker.add" => return self.add_worker(params(method, given)?),
            "worker.remove" => return self.remove_worker(params(method, given)?),
            "rules.set" => return rules::set(self.engine, given),
            "rules.check" => return rules::check(self.engine, given),
            "status" | "stats" | "version" | "rules.get" => no_params(method, &given)?,
            other => {
                if let Some(answer) = forwarding::answer(self.engine, method, &given) {
                    return answer;
                }
                let text = format!(
                    "no method {other:.32}: there are status, stats, fdb, version, fdb.flush, fdb.add, fdb.remove, remote.list, remote.add, remote.remove, worker.add, worker.remove, rules.get, rules.set, rules.check, change, apply, export, network.list, port.list, endpoint.list, watch and schema"
                );
                return Err(RpcError::new(code::NO_METHOD, text));
            }
        }
        match method {
            "status" => to_value(&self.status(&self.plan.control_socket, now)),
            "stats" => to_value(&self.engine.stats()),
            "rules.get" => Ok(rules::get(self.engine)),
            _ => Ok(Value::from(VERSION)),
        }
    }

    fn status<'a>(&'a self, control_socket: &'a Path, now: Instant) -> Status<'a> {
        let Methods { plan, engine, tenants, pools, underlay, started, .. } = self;
        Status {
            version: VERSION,
            pid: std::process::id(),
            placement: plan.placement,
            uptime_seconds: now.saturating_duration_since(*started).as_secs(),
            control_socket,
            uplinks: status::uplinks(engine.uplinks(), plan, underlay),
            workers: status::workers(engine),
            rules: engine.rules_status(),
            networks: status::networks(engine.plan()),
            endpoints: status::endpoints(engine.plan(), engine.has_queues_by_class(), tenants, now),
            next_hops: status::next_hops(underlay),
            classes: status::classes(&plan.classes),
            urgent_quota: plan.classes.urgent_quota,
            handshakes: tenants.handshakes(),
            pools: pools.status(tenants.pool()),
        }
    }

    fn watch(&self, given: Value) -> Result<Reply, RpcError> {
        let WatchRequest { from } = params("watch", if given.is_null() { json!({}) } else { given })?;
        let generation = self.model.generation();
        let missed = match from {
            Some(from) => {
                self.model.since(from).map(|changes| changes.map(to_value).collect()).transpose()?
            }
            None => Some(Vec::new()),
        };
        let answer = WatchAnswer { generation, version: VERSION.to_owned(), resync: missed.is_none() };
        let watch = Watch { generation, missed: missed.unwrap_or_default() };
        Ok(Reply { result: to_value(&answer)?, watch: Some(watch) })
    }

    fn add_worker(&mut self, AddWorker { core, nice, idle }: AddWorker) -> Result<Value, RpcError> {
        let core = CoreId(core);
        if !self.usable.contains(&core) {
            let usable = preflight::ranges(self.usable);
            return Err(refused(format!("core {}: this process may use cores {usable}", core.0)));
        }
        if nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            let text = "worker.add: nice is from -20 (highest priority) to 19".to_string();
            return Err(RpcError::new(code::INVALID_PARAMS, text));
        }
        if self.engine.cores().contains(&core) {
            return Err(refused(WorkerError::Taken(core).to_string()));
        }
        self.engine.add_worker(&WorkerPlan { core, nice, idle }).map_err(|e| refused(e.to_string()))?;
        Ok(self.cores())
    }

    fn remove_worker(&mut self, RemoveWorker { core }: RemoveWorker) -> Result<Value, RpcError> {
        self.engine.remove_worker(CoreId(core)).map_err(|e| refused(e.to_string()))?;
        Ok(self.cores())
    }

    /// Those in use from now on; this thread keeps off them.
    fn cores(&self) -> Value {
        let cores = self.engine.cores();
        preflight::leave_workers_alone(self.usable, &cores, None);
        json!({ "cores": cores })
    }
}

/// What anybody may do who can open the socket.
const READING: [&str; 12] = [
    "status",
    "stats",
    "version",
    "fdb",
    "remote.list",
    "rules.get",
    "rules.check",
    "network.list",
    "port.list",
    "endpoint.list",
    "watch",
    "schema",
];

/// Whether this peer may do that.
fn may(peer: &Peer, method: &str) -> Result<(), RpcError> {
    let (is_allowed, who) = match method {
        "export" => (peer.is_owner, "root and the daemon's user may see secrets"),
        _ if READING.contains(&method) => (true, ""),
        _ => (
            peer.may_change,
            "root, the daemon's user and members of the config's control_group may change what runs",
        ),
    };
    let text = || format!("{method:.32}: only {who}, and this is uid {}", peer.uid);
    is_allowed.then_some(()).ok_or_else(|| refused(text()))
}

fn refused(text: String) -> RpcError {
    RpcError::new(code::REFUSED, text)
}

fn to_value(value: &impl serde::Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|e| RpcError::new(code::INTERNAL, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_only_look_cannot_change_anything() {
        let peer = |is_owner, may_change| Peer { pid: 1, uid: 1000, is_owner, may_change };
        let (reader, member, owner) = (peer(false, false), peer(false, true), peer(true, true));
        let may = |peer: &Peer, method| may(peer, method).is_ok();
        for method in READING {
            assert!(may(&reader, method), "{method}");
        }
        for method in ["change", "apply", "worker.add", "rules.set", "fdb.flush", "remote.remove", "nonsense"]
        {
            assert!(!may(&reader, method) && may(&member, method), "{method}");
        }
        assert!(!may(&member, "export") && may(&owner, "export"));
    }
}
