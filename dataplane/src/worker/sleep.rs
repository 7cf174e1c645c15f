//! What a worker sleeps on, and how it lies down and gets up. On a thread that may sleep (`idle`) it watches by one epoll all that can
//! bring it work, from the moment at which it has it, so that to lie down and to get up costs the same however many tenants there are:
//!
//! | work comes from | what tells so |
//! |---|---|
//! | an uplink's queue, an urgent one too | its AF_XDP socket |
//! | a container | its port's AF_XDP socket |
//! | a memif tenant | the eventfd of its ring, for which it is asked when it becomes quiet, or before the sleep |
//! | another worker | the worker's bell, after a burst was put into a ring |
//! | control: an order, a pause | the same bell |
//! | the kernel, which sends and completes; a container whose ring was full | nothing: the sleep is short then |
//!
//! What must hold: everything is looked at once more after the bell says that the worker sleeps, and each tenant after it was asked to call.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::Worker;
use crate::bell::Caller;
use crate::clock::thread_time_ns;
use crate::mesh::Mesh;
use crate::plan::PlaceId;
use crate::sys;
use crate::tenants::{Detached, EventKind, Tenants};
use crate::turns::PACKETS_PER_LOOK;
use crate::types::EndpointId;

/// Quiet tenants that are looked at now and then after a sleep: a call may have been lost.
const QUIET_LOOKS: usize = 256;

/// Events taken at once; those beyond are there the next time.
const EVENTS: usize = 64;

/// What an event is of: one of these, or a tenant, by the number of its endpoint from there on.
const BELL: u64 = 0;
const UPLINK: u64 = 1;
const TENANTS: u64 = 2;

/// How long a worker can sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleep {
    /// There is something to do.
    No,
    /// Nothing but packets of tenants that could not be taken lately.
    Refused,
    /// Something is to be looked at after a time.
    Short,
    /// Until it is called.
    Long,
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Woken {
    /// Something that the worker watches has called.
    pub(crate) has_events: bool,
    /// Nobody called its thread: the time was over.
    pub(crate) is_over: bool,
    /// Some of the quiet tenants are to be looked at.
    pub(crate) looks: bool,
}

/// What it watches.
#[derive(Debug)]
pub(super) struct Events(OwnedFd);

impl Events {
    fn new(bell: BorrowedFd<'_>) -> io::Result<Events> {
        let events = Events(epoll::create(CreateFlags::CLOEXEC)?);
        events.watch(bell, BELL, EventFlags::IN | EventFlags::ET)?;
        Ok(events)
    }

    fn watch(&self, fd: BorrowedFd<'_>, what: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(what), flags)?)
    }

    /// False if the system has no room for it: then it is looked at when nobody has called. Of one that is put out anyway nothing, or nothing
    /// more, is watched: each of its eventfds could take as long as all that is forgiven.
    fn watch_tenant(&self, id: EndpointId, tenants: &mut Tenants) -> bool {
        let mut is_watched = true;
        tenants.set_watched(id, 0);
        for nth in 0.. {
            let Some((fd, kind)) = tenants.event_of(id, nth) else { break };
            let flags = match kind {
                // Each signal counts once, and nobody has to read the tenant's eventfd.
                EventKind::Shared => EventFlags::IN | EventFlags::ET,
                EventKind::Socket => EventFlags::IN,
            };
            let before = thread_time_ns();
            is_watched &= self.watch(fd, TENANTS + id.index() as u64, flags).is_ok();
            tenants.set_watched(id, nth + 1);
            if kind == EventKind::Shared {
                tenants.charge(id, thread_time_ns().saturating_sub(before));
            }
        }
        is_watched
    }
}

impl Worker {
    /// Control, before it sits down on a thread, which may sleep at times, or not. With thousands of tenants it takes milliseconds to watch
    /// all, and to close what it has watched until now, which is returned: that can wait until it runs, and the others do.
    pub(crate) fn watch(&mut self, may_sleep: bool) -> Option<OwnedFd> {
        if may_sleep == self.events.is_some() {
            return None;
        }
        let events = if may_sleep { self.watch_all() } else { None };
        std::mem::replace(&mut self.events, events).map(|Events(epoll)| epoll)
    }

    /// Before its first turn on a thread.
    pub(crate) fn sit_down(&mut self, now: u64) {
        self.last_end = now;
        self.worked_at = now;
        self.leaves = false;
        let may_sleep = self.events.is_some();
        if may_sleep == self.tenants.are_to_call() {
            return;
        }
        self.tenants.let_call(may_sleep);
        self.mailbox.bell().allow(may_sleep);
        sys::barrier_on_all_threads();
    }

    /// `None` if the system has no descriptors for it: then it does not sleep.
    fn watch_all(&mut self) -> Option<Events> {
        let events = Events::new(self.mailbox.bell().fd()?).ok()?;
        for socket in self.uplink.sockets() {
            events.watch(socket.fd(), UPLINK, EventFlags::IN).ok()?;
            if let Some(urgent) = socket.urgent_fd() {
                events.watch(urgent, UPLINK, EventFlags::IN).ok()?;
            }
        }
        for id in self.tenants.ids() {
            self.counters.unwatched.add(u64::from(!events.watch_tenant(id, &mut self.tenants)));
        }
        Some(events)
    }

    /// A tenant has come.
    pub(super) fn watch_tenant(&mut self, id: EndpointId) {
        let Some(events) = &self.events else { return };
        self.counters.unwatched.add(u64::from(!events.watch_tenant(id, &mut self.tenants)));
    }

    /// A tenant has gone: its eventfd may be open elsewhere, and would call here for ever.
    pub(super) fn forget_tenant(&mut self, detached: &mut Detached) {
        let Some(Events(epoll)) = &self.events else { return };
        for (fd, kind) in detached.rings.watched_events() {
            let before = thread_time_ns();
            let _was_no_room = epoll::delete(epoll, fd);
            if kind == EventKind::Shared {
                self.tenants.charge(detached.endpoint, thread_time_ns().saturating_sub(before));
            }
        }
        self.tenants.give_account(detached);
    }

    /// When it last moved a frame, in cycles.
    #[inline]
    pub(crate) fn worked_at(&self) -> u64 {
        self.worked_at
    }

    /// What is readable when there is work.
    pub(crate) fn events(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(|events| events.0.as_fd())
    }

    /// It need not lie down: there is something to do, or nothing to sleep on. That costs little; tenants are not looked at.
    pub(crate) fn has_work(&mut self) -> bool {
        self.events.is_none()
            || self.mailbox.has_order()
            || self.drains.is_some()
            || self.leaves
            || self.tenants.has_faulty() && self.mailbox.can_return()
            || self.mesh.as_mut().is_some_and(Mesh::has_work)
            || self.uplink.has_arrived()
    }

    /// Asks everybody to call, and looks once more; [`get_up`](Self::get_up) is to follow. Packets of tenants that could not be taken in
    /// many turns need not be looked at again now.
    pub(crate) fn lie_down(&mut self, has_looked_enough: bool) -> Sleep {
        if self.events.is_none() {
            return Sleep::No;
        }
        self.mailbox.bell().lie_down();
        let calm = self.tenants.ask_all_to_call();
        if self.has_work() {
            return Sleep::No;
        }
        if calm.is_pending && !has_looked_enough {
            return Sleep::Refused;
        }
        let is_owed = calm.is_pending
            || calm.is_owed
            || !self.mailbox.can_return()
            || !self.uplink.has_sent_all()
            || self.pool.all_under_way() > 0
            || self.mesh.as_ref().is_some_and(Mesh::is_waiting);
        if is_owed { Sleep::Short } else { Sleep::Long }
    }

    /// After [`lie_down`](Self::lie_down): how its sleep ended, if it has slept.
    pub(crate) fn get_up(&mut self, slept: Option<Woken>) {
        let caller = self.mailbox.bell().get_up();
        let Some(Woken { has_events, is_over, looks }) = slept else { return };
        let now = crate::clock::cycles();
        let asleep = now.wrapping_sub(self.last_end);
        self.last_end = now;
        self.counters.cycles_total.add(asleep);
        self.counters.cycles_slept.add(asleep);
        self.counters.sleeps.add(1);
        self.by_class.forget_looks();
        let (uplink, tenants) = if has_events { self.take_events() } else { (false, false) };
        let woken = &self.counters.woken;
        woken.uplink.add(u64::from(uplink));
        woken.tenants.add(u64::from(tenants));
        woken.workers.add(u64::from(caller == Some(Caller::Worker)));
        woken.control.add(u64::from(caller == Some(Caller::Control)));
        woken.time.add(u64::from(is_over && caller.is_none()));
        if looks {
            self.tenants.note_work(QUIET_LOOKS * PACKETS_PER_LOOK);
        }
    }

    /// Lets tenants that have called have their turn. Whether an uplink has frames, and a tenant has called.
    fn take_events(&mut self) -> (bool, bool) {
        let Some(Events(epoll)) = &self.events else { return (false, false) };
        let mut room = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(epoll, &mut room, Some(&at_once)) else { return (false, false) };
        let (mut uplink, mut tenants) = (false, false);
        for event in events {
            let what = { event.data }.u64();
            uplink |= what == UPLINK;
            if let Some(endpoint) = what.checked_sub(TENANTS) {
                tenants = true;
                self.tenants.has_called(EndpointId::at(endpoint as usize));
            }
        }
        (uplink, tenants)
    }
}
