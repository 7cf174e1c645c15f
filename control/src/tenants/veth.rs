//! Ports into containers: made when they carry an endpoint, and again when they are gone, as soon as there is a namespace of that name again.
//!
//! What must hold: a container that is gone, or whose namespace is not there yet, costs a look a second and no more.

use std::time::{Duration, Instant};

use peregrine_dataplane::engine::TenantRings;
use peregrine_dataplane::plan::VethPlan;
use peregrine_dataplane::xsk::XskPort;

use super::port::{Port, Role};
use super::{Coming, Peer, Rings, When};
use crate::container::{Link, Maker, Pair, is_fleeting};

/// Between two looks whether it can be made now.
const AGAIN: Duration = Duration::from_secs(1);

/// A veth pair, whether it is there or not.
#[derive(Debug)]
pub struct Veth {
    plan: VethPlan,
    /// What its container's end has, while it carries an endpoint.
    link: Option<Link>,
    pair: Option<Pair>,
    /// Opened, and not yet the tenant's.
    port: Option<XskPort>,
    next_look: Option<Instant>,
    /// It was there once: a process that had its namespace may be another one by now.
    was_there: bool,
}

impl Veth {
    /// Of a port that carries nothing.
    pub fn new(plan: &VethPlan) -> Veth {
        let plan = plan.clone();
        Veth { plan, link: None, pair: None, port: None, next_look: None, was_there: false }
    }

    /// Looked for at this moment, if it carries an endpoint and is not there.
    pub fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// It carries an endpoint from now on: made there and then.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn make(&mut self, link: &Link, maker: &mut Maker, now: Instant) -> Result<(), String> {
        let (pair, port) = maker.open(&self.plan, link, true)?;
        (self.pair, self.port, self.link) = (Some(pair), Some(port), Some(link.clone()));
        self.next_look = Some(now);
        Ok(())
    }

    /// It carries an endpoint from now on: made when it can be.
    fn want(&mut self, link: &Link) {
        self.link = Some(link.clone());
        self.next_look = Some(Instant::now());
    }

    /// Its interface has other addresses from now on; one that is not there will have them.
    ///
    /// # Errors
    /// Why not.
    pub fn refit(&mut self, link: Option<&Link>, maker: &mut Maker) -> Result<(), String> {
        let (Some(before), Some(link)) = (&self.link, link) else { return Ok(()) };
        if let Some(pair) = &self.pair {
            maker.refit(&self.plan, pair, before, link)?;
        }
        self.link = Some(link.clone());
        Ok(())
    }

    /// It carries nothing any more.
    pub fn put_away(&mut self, maker: &mut Maker) {
        self.port = None;
        self.link = None;
        self.next_look = None;
        self.was_there = false;
        self.pair.take().into_iter().for_each(|pair| maker.remove(&self.plan, pair));
    }

    /// Its interface is gone, or was closed.
    pub fn lost(&mut self, now: Instant) {
        self.port = None;
        self.next_look = self.link.as_ref().map(|_| now + AGAIN);
    }

    /// What it is.
    pub fn plan(&self) -> &VethPlan {
        &self.plan
    }

    /// Our end.
    pub fn pair(&self) -> Option<&Pair> {
        self.pair.as_ref()
    }
}

impl Port {
    /// What an endpoint that comes needs is made, or will be.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn prepare(&mut self, coming: &Coming, maker: &mut Maker, when: When) -> Result<(), String> {
        let Role::Veth(veth) = &mut self.role else { return Ok(()) };
        let Some(link) = &coming.link else { return Err("its network is not known".to_owned()) };
        match when {
            When::Now(now) => veth.make(link, maker, now),
            When::Later | When::Again => {
                veth.want(link);
                veth.was_there |= matches!(when, When::Again);
                Ok(())
            }
        }
    }

    /// What an endpoint that has come needs is made when it can be.
    pub(super) fn want(&mut self, link: &Link) {
        if let Role::Veth(veth) = &mut self.role {
            veth.want(link);
        }
    }

    /// It carries nothing any more.
    pub(super) fn put_away(&mut self, maker: &mut Maker) {
        if let Role::Veth(veth) = &mut self.role {
            veth.put_away(maker);
        }
    }

    /// Its interface is no more.
    pub(super) fn interface_gone(&mut self, maker: &mut Maker, now: Instant, rings: &mut impl Rings) {
        self.end("its interface is gone, most likely with its namespace", None, now, rings);
        if let Role::Veth(veth) = &mut self.role {
            // Its number may be another interface's one day.
            veth.pair.take().iter().for_each(|pair| maker.forget(&veth.plan, pair));
            veth.lost(now);
        }
    }

    /// Of a container: makes what is to be there, if it is time.
    pub(super) fn look(&mut self, maker: &mut Maker, now: Instant, rings: &mut impl Rings) {
        let Role::Veth(veth) = &mut self.role else { return };
        if veth.next_look.is_none_or(|at| now < at) || self.barred_until.is_some_and(|until| now < until) {
            return;
        }
        let Some(link) = veth.link.clone() else { return };
        veth.next_look = None;
        let opened = match veth.port.take() {
            Some(port) => Ok(port),
            None => {
                self.record.attempts += 1;
                let may_make = !(veth.was_there && is_fleeting(&veth.plan.namespace));
                maker.open(&veth.plan, &link, may_make).map(|(pair, port)| {
                    veth.pair = Some(pair);
                    port
                })
            }
        };
        veth.was_there |= opened.is_ok();
        let (name, interface) = (veth.plan.namespace.to_string(), veth.plan.interface.clone());
        let had = opened.and_then(|port| {
            let peer = Peer { name, interface, credentials: None, since: now, queue_pairs: 1 };
            self.have(TenantRings::port(port), peer, now, rings)
        });
        if let Err(why) = had {
            self.record.last_failure = Some(why);
            if let Role::Veth(veth) = &mut self.role {
                veth.lost(now);
            }
        }
    }
}
