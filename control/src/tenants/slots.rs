//! The ports, each in a place of its own, by which it is known to the poll set and to timers.

use super::port::Port;

/// A place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub usize);

/// All of them, with gaps.
#[derive(Debug, Default)]
pub struct Slots {
    ports: Vec<Option<Port>>,
    vacant: Vec<usize>,
}

impl Slots {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ports.len() - self.vacant.len()
    }

    /// The one in this place.
    pub fn get(&self, slot: Slot) -> Option<&Port> {
        self.ports.get(slot.0)?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Port> {
        self.ports.get_mut(slot.0)?.as_mut()
    }

    /// Puts one into a free place.
    pub fn put(&mut self, port: Port) -> Slot {
        let free = self.vacant.pop().unwrap_or(self.ports.len());
        match self.ports.get_mut(free) {
            Some(place) => *place = Some(port),
            None => self.ports.push(Some(port)),
        }
        Slot(free)
    }

    /// Takes one out.
    pub fn take(&mut self, slot: Slot) -> Option<Port> {
        let port = self.ports.get_mut(slot.0)?.take()?;
        self.vacant.push(slot.0);
        Some(port)
    }

    /// All that are there.
    pub fn values(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten()
    }

    /// Their places.
    pub fn all(&self) -> Vec<Slot> {
        (0..self.ports.len()).map(Slot).filter(|slot| self.get(*slot).is_some()).collect()
    }

    /// The first like this.
    pub fn find(&self, like: impl Fn(&Port) -> bool) -> Option<Slot> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(&like)).map(Slot)
    }
}
