//! What a client offers during the handshake, collected and checked: its regions and its rings. Used by the server only.
//!
//! Each piece is checked as soon as it comes, so that the reason in DISCONNECT names it. Regions are mapped, and rings looked at,
//! only at CONNECT, when all is known.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Reject;
use crate::message::{AddRing, LOG2_MAX};
use crate::region::{Mapping, Regions};
use crate::ring::{RingMemory, RingPlace, Role};
use crate::rx::RxRing;
use crate::seal::Sealing;
use crate::server::ServerConfig;
use crate::sys::{self, Populate};
use crate::tx::TxRing;

/// Regions and rings so far.
#[derive(Debug)]
pub(crate) struct Offer {
    regions_max: u16,
    rings_max: u16,
    regions: Vec<(File, u64)>,
    s2m: Vec<(RingPlace, OwnedFd)>,
    m2s: Vec<(RingPlace, OwnedFd)>,
}

impl Offer {
    pub fn new(regions_max: u16, rings_max: u16) -> Self {
        Self { regions_max, rings_max, regions: Vec::new(), s2m: Vec::new(), m2s: Vec::new() }
    }

    /// ADD_REGION.
    pub fn add_region(
        &mut self,
        index: u16,
        bytes: u64,
        fd: Option<OwnedFd>,
        config: &ServerConfig,
    ) -> Result<(), Reject> {
        let file = File::from(fd.ok_or(Reject::MissingRegionFd)?);
        let due = self.regions.len() as u16;
        if index != due {
            return Err(Reject::RegionIndex { got: index, due });
        }
        if index >= self.regions_max {
            return Err(Reject::TooManyRegions { max: self.regions_max });
        }
        let known: u64 = self.regions.iter().map(|(_, bytes)| bytes).sum();
        let max = config.memory_bytes_max;
        if known.checked_add(bytes).is_none_or(|total| total > max) {
            return Err(Reject::TooMuchMemory { max });
        }
        // The seal first: a size that can still change says nothing.
        if !config.allow_unsealed && !sys::is_sealed_memory(&file) {
            return Err(Reject::RegionUnsealed);
        }
        if sys::is_sealed_against_writing(&file) {
            return Err(Reject::RegionReadOnly);
        }
        let actual = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        if bytes == 0 || actual < bytes {
            return Err(Reject::RegionSize { announced: bytes, actual });
        }
        // Such a mapping would be longer than we think: it could be neither replaced (`guard`) nor unmapped whole.
        if let Some(page) = sys::huge_page_bytes(&file)
            && !bytes.is_multiple_of(page)
        {
            return Err(Reject::RegionHugePage { bytes, page });
        }
        self.regions.push((file, bytes));
        Ok(())
    }

    /// ADD_RING.
    pub fn add_ring(&mut self, ring: AddRing, fd: Option<OwnedFd>) -> Result<(), Reject> {
        let event = fd.ok_or(Reject::MissingRingFd)?;
        let rings = if ring.s2m { &mut self.s2m } else { &mut self.m2s };
        let due = rings.len() as u16;
        if ring.index != due {
            return Err(Reject::RingIndex { got: ring.index, due });
        }
        if ring.index >= self.rings_max {
            return Err(Reject::TooManyRings { max: self.rings_max });
        }
        if ring.private_header != 0 {
            return Err(Reject::PrivateHeader);
        }
        if !(1..=LOG2_MAX).contains(&ring.log2) {
            return Err(Reject::RingSize { log2: ring.log2 });
        }
        // Anything else could block when written, which our data thread must not.
        if !sys::is_eventfd(event.as_fd()) || sys::set_nonblocking(event.as_fd()).is_err() {
            return Err(Reject::NotAnEventFd);
        }
        rings.push((RingPlace { region: ring.region, offset: ring.offset, log2: ring.log2 }, event));
        Ok(())
    }

    /// CONNECT, first part: maps all regions and has them sealed.
    ///
    /// The order matters. All files are mapped first, because the seal forbids new writable mappings (and one file may be several
    /// regions); then sealed, because until then the client can punch a page out again; then every page is made present.
    pub fn map(self, config: &ServerConfig, seal_timeout: Duration) -> Result<Mapped, Reject> {
        if self.s2m.is_empty() || self.m2s.is_empty() {
            return Err(Reject::NoRings);
        }
        let map = |(file, bytes): &(File, u64)| -> Result<Mapping, Reject> {
            let bytes = usize::try_from(*bytes).map_err(|_| Reject::RegionMap)?;
            let mut mapping = Mapping::new(file, bytes).map_err(|_| Reject::RegionMap)?;
            if config.allow_unsealed {
                mapping.guard()?;
            }
            Ok(mapping)
        };
        let mappings: Vec<Mapping> = self.regions.iter().map(map).collect::<Result<_, _>>()?;
        // A trusted client's memory is left as it is: it may want to map it again, or connect elsewhere with it.
        let sealing = if config.allow_unsealed {
            None
        } else {
            let files = self.regions.into_iter().map(|(file, _)| file).collect();
            Some(Sealing::new(&config.name, files, seal_timeout))
        };
        Ok(Mapped { mappings, sealing, s2m: self.s2m, m2s: self.m2s })
    }
}

/// An offer whose regions are mapped, and may yet have to be sealed.
#[derive(Debug)]
pub(crate) struct Mapped {
    mappings: Vec<Mapping>,
    sealing: Option<Sealing>,
    s2m: Vec<(RingPlace, OwnedFd)>,
    m2s: Vec<(RingPlace, OwnedFd)>,
}

impl Mapped {
    /// Whether [`finish`](Self::finish) can be called; waits for that `patience` at most.
    pub fn is_sealed(&mut self, patience: Duration) -> Result<bool, Reject> {
        self.sealing.as_mut().map_or(Ok(true), |sealing| sealing.is_done(patience))
    }

    /// Whether the sealer has answered since [`is_sealed`](Self::is_sealed) was called.
    pub fn is_answered(&self) -> bool {
        self.sealing.as_ref().is_some_and(Sealing::is_answered)
    }

    /// CONNECT, last part: makes every page present and the server's halves of all rings.
    pub fn finish(self, config: &ServerConfig) -> Result<(Vec<RxRing>, Vec<TxRing>), Reject> {
        let how = if config.allow_unsealed { Populate::AnyFile } else { Populate::MemoryFile };
        for mapping in &self.mappings {
            mapping.populate(how).map_err(|_| Reject::RegionPopulate)?;
        }
        let regions = Arc::new(Regions::new(self.mappings));
        let ring = |place| RingMemory::new(Arc::clone(&regions), place, Role::Server);
        let rx = self.s2m.into_iter().map(|(place, event)| {
            Ok(RxRing::server(ring(place)?, event, config.packet_bytes_max, config.chains))
        });
        let tx =
            self.m2s.into_iter().map(|(place, event)| Ok(TxRing::server(ring(place)?, event, config.chains)));
        Ok((rx.collect::<Result<_, Reject>>()?, tx.collect::<Result<_, Reject>>()?))
    }
}
