//! How control and a worker talk: two bounded lock-free queues, orders one way and what is no longer needed the
//! other. The worker looks once a turn; it never waits, and frees no memory: that is done by control, with what
//! comes back.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::bell::{Bell, Caller};
use crate::mesh::{Links, Mesh};
use crate::tables::Tables;
use crate::tenants::{Detached, TenantRings};
use crate::types::{EndpointId, MacAddr, NetworkId, WorkerId};

/// Orders under way at most; control keeps more in a list of its own.
const CAPACITY: usize = 256;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Forward by these from now on.
    Tables(Arc<Tables>),
    /// A network has more endpoints than before: a list with room for all that are attached.
    Room {
        /// Which.
        network: NetworkId,
        /// Empty.
        room: Vec<EndpointId>,
    },
    /// Nobody has these places any more: what was noted of who had them is forgotten.
    Vacated(Vec<EndpointId>),
    /// Serve this tenant.
    Attach {
        /// Whose address it has.
        endpoint: EndpointId,
        /// Tells this connection from those before it.
        serial: u64,
        /// What it is served through.
        rings: TenantRings,
    },
    /// Stop serving this tenant, if it is still this connection.
    Detach {
        /// Whose address it has.
        endpoint: EndpointId,
        /// Which connection.
        serial: u64,
    },
    /// There are other workers from now on.
    Mesh(Box<Option<Mesh>>),
    /// There are others than before, see [`Mesh::relink`].
    Links {
        /// To those that there are; where there is none, the old one stays.
        links: Links,
        /// But for this one.
        without: WorkerId,
    },
    /// Say when all that lies in the rx rings now has been taken from them.
    Drain {
        /// Tells this order from those before it.
        number: u32,
    },
    /// Send this in a tenant's name.
    Announce(Announcement),
    /// Leave the thread, with everything.
    Leave,
}

/// A frame that says where a tenant is. It comes back, to be freed or sent again.
#[derive(Debug)]
pub(crate) struct Announcement {
    /// Who.
    pub(crate) endpoint: EndpointId,
    /// Which station of its.
    pub(crate) station: MacAddr,
    /// What to send.
    pub(crate) frame: Vec<u8>,
    /// Tells it from those for another tenant at the same place.
    pub(crate) number: u32,
    /// The worker has sent it.
    pub(crate) is_sent: bool,
}

/// What a worker gives back.
#[derive(Debug)]
pub(crate) enum Returned {
    /// Tables that it no longer looks at; dropped by control.
    #[allow(dead_code, reason = "it is sent back to be dropped elsewhere, not to be looked at")]
    Tables(Arc<Tables>),
    /// The list of them.
    #[allow(dead_code, reason = "as above")]
    Vacated(Vec<EndpointId>),
    /// A list that became too short.
    #[allow(dead_code, reason = "as above")]
    Room(Vec<EndpointId>),
    /// A tenant that it no longer serves.
    Tenant(Detached),
    /// Its ends of rings that nobody uses any more.
    #[allow(dead_code, reason = "as above")]
    Mesh(Box<Option<Mesh>>),
    /// The same.
    #[allow(dead_code, reason = "as above")]
    Links(Links),
    /// One that it sent, or could not send just now: nothing may come in, or no frame was free.
    Announced(Announcement),
    /// What lay in its rx rings when it got the order has been taken.
    Drained {
        /// Whose.
        worker: WorkerId,
        /// Which order.
        number: u32,
    },
}

/// Both queues.
#[derive(Debug)]
pub(crate) struct Mailbox {
    orders: ArrayQueue<Order>,
    returned: ArrayQueue<Returned>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// Of a worker with this bell.
    pub(crate) fn new(bell: Arc<Bell>) -> Mailbox {
        Mailbox { orders: ArrayQueue::new(CAPACITY), returned: ArrayQueue::new(CAPACITY), bell }
    }

    /// Control: sends an order. A full mailbox gives it back.
    pub(crate) fn send(&self, order: Order) -> Result<(), Order> {
        let sent = self.orders.push(order);
        self.call();
        sent
    }

    /// Control: wakes the worker, if it sleeps.
    pub(crate) fn call(&self) {
        self.bell.ring(Caller::Control);
    }

    /// The worker's.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Worker: something waits here for it. Not if there is no room for an answer: then nothing can be done about that now.
    pub(crate) fn has_order(&self) -> bool {
        !self.orders.is_empty() && self.can_return()
    }

    /// Control: every order was taken. What a worker took, it does before it looks at any frame.
    pub(crate) fn is_read(&self) -> bool {
        self.orders.is_empty()
    }

    /// Control: takes what came back.
    pub(crate) fn take_returned(&self) -> Option<Returned> {
        self.returned.pop()
    }

    /// Worker: the next order, if there is room for the answer to it.
    #[inline]
    pub(crate) fn next_order(&self) -> Option<Order> {
        if self.orders.is_empty() || self.returned.is_full() { None } else { self.orders.pop() }
    }

    /// Worker: room to give something back without having been told to.
    #[inline]
    pub(crate) fn can_return(&self) -> bool {
        !self.returned.is_full()
    }

    /// Worker: gives something back. There is room: the worker is the only one that fills it and has looked.
    #[inline]
    pub(crate) fn give_back(&self, returned: Returned) {
        if let Err(lost) = self.returned.push(returned) {
            debug_assert!(false, "no room for {lost:?}");
            std::mem::forget(lost); // freed by nobody rather than by the worker in the middle of its work
        }
    }
}
