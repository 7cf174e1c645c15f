//! The tenants that a worker serves: their rings, whose turn it is, and what they did wrong.
//!
//! Each ring has one user, the worker that it was attached to. A tenant that breaks the ring protocol, or sends more
//! than [`BAD_DESCRIPTORS_MAX`] bad descriptors, is put out: its rings go back to control, which hangs up and unmaps.
//! Nobody else notices.

use std::collections::VecDeque;

use peregrine_memif::{PushError, RxRing, TxRing, Violation};

use crate::counters::{DropReason, WorkerCounters};
use crate::types::EndpointId;

/// Bad descriptors after which a tenant is put out. A correct tenant sends none.
pub const BAD_DESCRIPTORS_MAX: u32 = 256;

/// Both directions of a tenant's connection.
#[derive(Debug)]
pub struct TenantRings {
    /// Packets from the tenant.
    pub rx: RxRing,
    /// Packets to the tenant.
    pub tx: TxRing,
}

/// Why a tenant is put out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It broke the ring protocol.
    Protocol(Violation),
    /// It sent too many bad descriptors.
    BadDescriptors,
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
    rx: Option<RxRing>,
    tx: TxRing,
    bad_descriptors: u32,
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
    /// Who is attached, the next one to be served in front. Never grows beyond `slots`.
    turns: VecDeque<EndpointId>,
    unflushed: Vec<EndpointId>,
    /// Somebody has a fault.
    faulty: bool,
}

impl Tenants {
    /// Room for so many endpoints; none is attached.
    pub fn new(endpoints: usize) -> Tenants {
        Tenants {
            slots: std::iter::repeat_with(|| None).take(endpoints).collect(),
            turns: VecDeque::with_capacity(endpoints),
            unflushed: Vec::with_capacity(endpoints),
            faulty: false,
        }
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
                    fault: None,
                    unflushed: false,
                });
                self.turns.push_back(id);
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
    pub fn next_turn(&mut self) -> Option<(EndpointId, RxRing)> {
        let &id = self.turns.front()?;
        let rx = self.slots.get_mut(id.index())?.as_mut()?.rx.take()?;
        self.turns.rotate_left(1);
        Some((id, rx))
    }

    /// Gives a tenant back after its turn, with the number of bad descriptors or the fault that was found.
    #[inline]
    pub fn turn_over(&mut self, id: EndpointId, rx: RxRing, result: Result<usize, Fault>) {
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
        if let Err(error) = tenant.tx.push(packet) {
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
                DropReason::TenantRingFull
            }
        }
    }

    #[cold]
    fn set_fault(&mut self, id: EndpointId, fault: Fault) {
        if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
            tenant.fault.get_or_insert(fault);
            self.faulty = true;
        }
    }

    /// Shows the tenants what was pushed: one store and at most one eventfd write each.
    #[inline]
    pub fn flush(&mut self, counters: &WorkerCounters) {
        while let Some(id) = self.unflushed.pop() {
            if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
                tenant.unflushed = false;
                // A failed wake-up is the tenant's own doing (it owns the eventfd); the packets are published.
                if let Ok(true) = tenant.tx.flush() {
                    counters.tenant_wakeups.add(1);
                }
            }
        }
    }

    /// Takes off one tenant that has a fault, if there is one.
    #[inline]
    pub fn put_out(&mut self) -> Option<Detached> {
        if !self.faulty {
            return None;
        }
        let faulty = |&id: &EndpointId| {
            let tenant = self.slots.get(id.index())?.as_ref()?;
            tenant.fault.map(|_| (id, tenant.serial))
        };
        let Some((id, serial)) = self.turns.iter().find_map(faulty) else {
            self.faulty = false;
            return None;
        };
        self.detach(id, serial)
    }
}
