//! The tenants that a worker serves: their rings, whose turn it is, and what they did wrong.
//!
//! Each ring has one user, the worker that it was attached to. A tenant that breaks the ring protocol, or sends more
//! than [`BAD_DESCRIPTORS_MAX`] bad descriptors, is put out: its rings go back to control, which hangs up and unmaps.
//! Nobody else notices.

use std::collections::VecDeque;

use peregrine_memif::{PushError, RxRing, TxRing, Violation};

use crate::clock::cycles;
use crate::counters::{DropReason, WorkerCounters};
use crate::tables::Tables;
use crate::types::{EndpointId, NetworkId};

/// Bad descriptors after which a tenant is put out. A correct tenant sends none.
pub const BAD_DESCRIPTORS_MAX: u32 = 256;

/// A wake-up that takes longer than so many cycles (some 100 µs; a usual one takes 1) is slow.
const SLOW_WAKEUP_CYCLES: u64 = 300_000;
/// Points after which a tenant is put out: a slow wake-up gives [`SLOW_WAKEUP_POINTS`], any other takes one away, so that a
/// worker that loses its core now and then in the middle of one blames nobody.
const SLOW_WAKEUPS_MAX: u32 = 64;
const SLOW_WAKEUP_POINTS: u32 = 8;

/// Both directions of a tenant's connection: at least one ring each.
#[derive(Debug)]
pub struct TenantRings {
    /// Packets from the tenant.
    pub rx: Vec<RxRing>,
    /// Packets to the tenant.
    pub tx: Vec<TxRing>,
}

/// Why a tenant is put out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It broke the ring protocol.
    Protocol(Violation),
    /// It sent too many bad descriptors.
    BadDescriptors,
    /// Waking it takes so long, again and again, that others suffer: its eventfd has very many waiters.
    SlowWakeups,
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Fault {
        Fault::Protocol(violation)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Protocol(violation) => violation.fmt(f),
            Fault::SlowWakeups => f.write_str("waking it through its eventfd takes too long"),
            Fault::BadDescriptors => write!(f, "more than {BAD_DESCRIPTORS_MAX} bad descriptors"),
        }
    }
}

/// A tenant that is attached.
#[derive(Debug)]
struct Tenant {
    /// Tells this connection from those before it.
    serial: u64,
    /// `None` only while [`collect`](crate::stages::collect) has it in hand.
    rx: Option<Vec<RxRing>>,
    tx: Vec<TxRing>,
    bad_descriptors: u32,
    slow_wakeups: u32,
    fault: Option<Fault>,
    /// Pushed to since the last flush.
    unflushed: bool,
}

/// A tenant that was taken off its worker.
#[derive(Debug)]
pub struct Detached {
    /// Whose it was.
    pub endpoint: EndpointId,
    /// The number that it was attached with.
    pub serial: u64,
    /// To be dropped by control: that unmaps memory.
    pub rings: Option<TenantRings>,
    /// Why, if the worker did it by itself.
    pub fault: Option<Fault>,
}

/// All tenants of one worker.
#[derive(Debug)]
pub struct Tenants {
    slots: Box<[Option<Tenant>]>,
    /// By endpoint.
    networks: Box<[NetworkId]>,
    /// By network: who is attached. Each has room for all endpoints of its network, so none ever grows.
    attached: Box<[Vec<EndpointId>]>,
    /// Who is attached, the next one to be served in front. Never grows beyond `slots`.
    turns: VecDeque<EndpointId>,
    unflushed: Vec<EndpointId>,
    /// Who is to be put out.
    faulty: Vec<EndpointId>,
}

impl Tenants {
    /// Room for all endpoints; none is attached.
    pub fn new(tables: &Tables) -> Tenants {
        let endpoints = tables.endpoints.len();
        Tenants {
            slots: std::iter::repeat_with(|| None).take(endpoints).collect(),
            networks: tables.endpoints.iter().map(|endpoint| endpoint.network).collect(),
            attached: tables
                .networks
                .iter()
                .map(|network| Vec::with_capacity(network.endpoints.len()))
                .collect(),
            turns: VecDeque::with_capacity(endpoints),
            unflushed: Vec::with_capacity(endpoints),
            faulty: Vec::with_capacity(endpoints),
        }
    }

    /// The tenants of a network that are attached.
    #[inline]
    pub fn attached(&self, network: NetworkId) -> &[EndpointId] {
        self.attached.get(network.index()).map_or(&[], Vec::as_slice)
    }

    fn attached_with(&mut self, id: EndpointId) -> Option<&mut Vec<EndpointId>> {
        self.attached.get_mut(self.networks.get(id.index())?.index())
    }

    /// Begins to serve a tenant. If there is one already, or no such endpoint, the rings come back.
    #[allow(
        clippy::result_large_err,
        reason = "boxed, the worker would free memory in the middle of its work"
    )]
    pub fn attach(&mut self, id: EndpointId, serial: u64, rings: TenantRings) -> Result<(), TenantRings> {
        match self.slots.get_mut(id.index()) {
            Some(slot @ None) => {
                let TenantRings { rx, tx } = rings;
                *slot = Some(Tenant {
                    serial,
                    rx: Some(rx),
                    tx,
                    bad_descriptors: 0,
                    slow_wakeups: 0,
                    fault: None,
                    unflushed: false,
                });
                self.turns.push_back(id);
                if let Some(attached) = self.attached_with(id) {
                    attached.push(id);
                }
                Ok(())
            }
            _ => Err(rings),
        }
    }

    /// Stops serving a tenant and gives its rings up. `None` if the connection with this number is not there.
    pub fn detach(&mut self, id: EndpointId, serial: u64) -> Option<Detached> {
        let slot = self.slots.get_mut(id.index())?;
        let tenant = slot.take_if(|tenant| tenant.serial == serial)?;
        self.turns.retain(|&other| other != id);
        self.unflushed.retain(|&other| other != id);
        self.faulty.retain(|&other| other != id);
        if let Some(attached) = self.attached_with(id) {
            attached.retain(|&other| other != id);
        }
        let rings = tenant.rx.map(|rx| TenantRings { rx, tx: tenant.tx });
        Some(Detached { endpoint: id, serial, rings, fault: tenant.fault })
    }

    /// How many are attached.
    #[inline]
    pub fn served(&self) -> usize {
        self.turns.len()
    }

    /// Takes the one whose turn it is in hand, to be given back with [`turn_over`](Self::turn_over); it is then last
    /// in the row.
    #[inline]
    pub fn next_turn(&mut self) -> Option<(EndpointId, Vec<RxRing>)> {
        let &id = self.turns.front()?;
        let rx = self.slots.get_mut(id.index())?.as_mut()?.rx.take()?;
        self.turns.rotate_left(1);
        Some((id, rx))
    }

    /// Gives a tenant back after its turn, with the number of bad descriptors or the fault that was found.
    #[inline]
    pub fn turn_over(&mut self, id: EndpointId, rx: Vec<RxRing>, result: Result<usize, Fault>) {
        let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { return };
        tenant.rx = Some(rx);
        match result {
            Ok(0) => {}
            Ok(bad) => {
                tenant.bad_descriptors = tenant.bad_descriptors.saturating_add(bad as u32);
                if tenant.bad_descriptors > BAD_DESCRIPTORS_MAX {
                    self.set_fault(id, Fault::BadDescriptors);
                }
            }
            Err(fault) => self.set_fault(id, fault),
        }
    }

    /// Copies a packet into a tenant's ring. It is seen after [`flush`](Self::flush).
    ///
    /// # Errors
    /// Why it could not be: a reason to drop.
    #[inline]
    pub fn give(
        &mut self,
        to: EndpointId,
        packet: &[u8],
        counters: &WorkerCounters,
    ) -> Result<(), DropReason> {
        let Some(Some(tenant)) = self.slots.get_mut(to.index()) else { return Err(DropReason::TenantAbsent) };
        if let Err(error) = tenant.tx[0].push(packet) {
            return Err(self.refused(to, error, counters));
        }
        if !tenant.unflushed {
            tenant.unflushed = true;
            self.unflushed.push(to); // never grows: each is in it once
        }
        counters.tenant_tx.one(packet.len());
        if let Some(endpoint) = counters.endpoint(to) {
            endpoint.to_tenant.one(packet.len());
        }
        Ok(())
    }

    #[cold]
    fn refused(&mut self, id: EndpointId, error: PushError, counters: &WorkerCounters) -> DropReason {
        match error {
            PushError::Full => DropReason::TenantRingFull,
            PushError::TooLong { .. } => DropReason::TenantBufferSmall,
            PushError::TooShort => DropReason::InnerTruncated,
            PushError::BadDescriptor(_) => {
                if let Some(endpoint) = counters.endpoint(id) {
                    endpoint.bad_descriptors.add(1);
                }
                if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
                    tenant.bad_descriptors = tenant.bad_descriptors.saturating_add(1);
                    if tenant.bad_descriptors > BAD_DESCRIPTORS_MAX {
                        self.set_fault(id, Fault::BadDescriptors);
                    }
                }
                DropReason::TenantBufferInvalid
            }
            PushError::Violation(violation) => {
                self.set_fault(id, Fault::Protocol(violation));
                DropReason::TenantFault
            }
        }
    }

    #[cold]
    fn set_fault(&mut self, id: EndpointId, fault: Fault) {
        if let Some(Some(tenant)) = self.slots.get_mut(id.index())
            && tenant.fault.is_none()
        {
            tenant.fault = Some(fault);
            self.faulty.push(id); // never grows: each is in it once
        }
    }

    /// Shows the tenants what was pushed: one store and at most one eventfd write each.
    #[inline]
    pub fn flush(&mut self, counters: &WorkerCounters) {
        while let Some(id) = self.unflushed.pop() {
            let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { continue };
            tenant.unflushed = false;
            let before = cycles();
            // A failed wake-up is the tenant's own doing (it owns the eventfd); the packets are published.
            if let Ok(true) = tenant.tx[0].flush() {
                counters.tenant_wakeups.add(1);
                let slow = cycles().wrapping_sub(before) > SLOW_WAKEUP_CYCLES;
                tenant.slow_wakeups = match slow {
                    true => tenant.slow_wakeups + SLOW_WAKEUP_POINTS,
                    false => tenant.slow_wakeups.saturating_sub(1),
                };
                if tenant.slow_wakeups > SLOW_WAKEUPS_MAX {
                    self.set_fault(id, Fault::SlowWakeups);
                }
            }
        }
    }

    /// Takes off one tenant that has a fault, if there is one.
    #[inline]
    pub fn put_out(&mut self) -> Option<Detached> {
        let id = self.faulty.pop()?;
        let serial = self.slots.get(id.index())?.as_ref()?.serial;
        self.detach(id, serial)
    }
}
