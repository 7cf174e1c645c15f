//! What is made before it is wanted, so that an endpoint takes it in microseconds: here all pools of the daemon are owned, and told of in
//! `status`. The [daemon](crate::daemon) starts them; who takes from them is told where they are.
//!
//! What must hold: no part is used twice, and an empty pool is no error: then the part is made when it is wanted.

use peregrine_dataplane::plan::Plan;
use peregrine_memif::{ClientConfig, RegionPool};
use serde::Serialize;

use crate::container::PoolCounts;
use crate::error::Error;

/// All pools.
#[derive(Debug, Default)]
pub struct Pools {
    regions: Option<RegionPool>,
}

/// How the pools stand.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PoolsStatus {
    /// Memory for tenants that we connect to.
    pub memif_regions: PoolStatus,
    /// Network namespaces with an interface; `null` until one is wanted.
    pub containers: Option<PoolCounts>,
}

/// How a pool stands.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PoolStatus {
    /// As many are made; 0 if there is no pool.
    pub size: usize,
    /// Those that are there.
    pub ready: usize,
    /// How often one was there when it was wanted.
    pub hits: u64,
    /// How often none was, and it was made.
    pub misses: u64,
    /// How often one of another size was wanted than the pool has, and it was made.
    pub others: u64,
    /// Why the next one cannot be made now; it is tried every second.
    pub failure: Option<String>,
}

impl Pools {
    /// Those that a plan wants. They are filled from now on, by threads of their own.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(plan: &Plan) -> Result<Pools, Error> {
        let size = plan.pools.memif_regions;
        let start = || RegionPool::start(&usual(), size.into());
        let regions = (size > 0).then(start).transpose();
        let regions = regions.map_err(|error| Error::System {
            doing: "start the pool of memif regions",
            source: std::io::Error::other(error),
        })?;
        Ok(Pools { regions })
    }

    /// Memory for tenants that we connect to.
    pub fn regions(&self) -> Option<&RegionPool> {
        self.regions.as_ref()
    }

    /// How they stand. That of containers is with who makes these.
    pub fn status(&self, containers: Option<PoolCounts>) -> PoolsStatus {
        let regions = self.regions.as_ref().map(RegionPool::status).unwrap_or_default();
        PoolsStatus {
            containers,
            memif_regions: PoolStatus {
                size: regions.size,
                ready: regions.ready,
                hits: regions.hits,
                misses: regions.misses,
                others: regions.others,
                failure: regions.failure,
            },
        }
    }
}

/// What the config's defaults give.
fn usual() -> ClientConfig {
    ClientConfig { forbid_seals: true, ..ClientConfig::default() }
}

#[cfg(test)]
mod tests {
    use peregrine_dataplane::plan::MemifRole;

    use super::*;

    #[test]
    fn the_pool_has_what_the_configs_defaults_give() {
        let text = "control_socket = \"/run/p.sock\"\n[pools]\nmemif_regions = 2\n[[workers]]\ncore = 0\n\
             [uplink]\ninterface = \"eth0\"\nlocal = \"192.0.2.1\"\n[[networks]]\nname = \"blue\"\nvni = 7\n\
             [[endpoints]]\nname = \"e\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:00:01\"\n\
             memif = { socket = \"@t\", role = \"client\" }\n";
        let plan = peregrine_config::parse(text, "t").unwrap();
        let memif = &plan.endpoints.values().next().unwrap().port.memif().unwrap();
        let MemifRole::Client { ring_log2, buffer_bytes, .. } = memif.role else { panic!("{memif:?}") };
        let usual = usual();
        assert_eq!(
            (usual.ring_log2, usual.buffer_bytes, usual.queue_pairs),
            (ring_log2, buffer_bytes, memif.queue_pairs)
        );
        let status = Pools::start(&plan).unwrap().status(None).memif_regions;
        assert_eq!((status.size, status.hits, status.misses), (2, 0, 0));
        assert_eq!(Pools::start(&Plan::default()).unwrap().status(None).memif_regions.size, 0);
    }
}
