//! Very many who wait for one eventfd: whoever writes it must walk past all of them.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll;

/// As many duplicates of the descriptor, and as many epoll instances that watch each of them.
const EACH: usize = 140;

/// `EACH` × `EACH` places in the eventfd's list of those to be woken. They leave it when this is dropped.
#[derive(Debug)]
pub struct Waiters {
    _duplicates: Vec<OwnedFd>,
    _instances: Vec<OwnedFd>,
}

impl Waiters {
    /// Waits for an eventfd.
    ///
    /// # Panics
    /// If descriptors run out.
    pub fn of(event: BorrowedFd<'_>) -> Waiters {
        let duplicate = |_| event.try_clone_to_owned().expect("a descriptor");
        let duplicates: Vec<OwnedFd> = (0..EACH).map(duplicate).collect();
        let instance = |_| epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll instance");
        let instances: Vec<OwnedFd> = (0..EACH).map(instance).collect();
        for instance in &instances {
            for (number, duplicate) in (0..).zip(&duplicates) {
                let data = epoll::EventData::new_u64(number);
                epoll::add(instance, duplicate, data, epoll::EventFlags::IN).expect("one more waiter");
            }
        }
        Waiters { _duplicates: duplicates, _instances: instances }
    }
}
