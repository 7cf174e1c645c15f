//! Takes pairs away, in a thread of its own: the kernel waits for some 20 ms until nobody uses a device any more, and control does not. Those
//! that go at the same time go together, in one such wait.

use std::collections::HashSet;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::Pair;
use crate::underlay::netlink::Requests;

/// Pairs that go together at most.
const TOGETHER: usize = 256;

/// The thread, while it is wanted.
#[derive(Debug)]
pub struct Remover {
    /// Until it is dropped.
    queue: Option<Sender<Pair>>,
    going: Arc<Going>,
    thread: Option<JoinHandle<()>>,
}

/// Numbers of interfaces that are about to be removed.
#[derive(Debug, Default)]
struct Going {
    numbers: Mutex<HashSet<u32>>,
    gone: Condvar,
}

impl Going {
    fn lock(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remover {
    /// Begins, in the network namespace of this thread.
    ///
    /// # Errors
    /// No thread, or no netlink socket.
    pub fn start() -> io::Result<Remover> {
        let (queue, coming) = mpsc::channel::<Pair>();
        let going = Arc::new(Going::default());
        let (mut requests, its) = (Requests::open()?, Arc::clone(&going));
        let work = move || {
            while let Ok(first) = coming.recv() {
                let pairs: Vec<Pair> =
                    std::iter::once(first).chain(coming.try_iter().take(TOGETHER)).collect();
                remove(&mut requests, &pairs);
                let mut numbers = its.lock();
                pairs.iter().for_each(|pair| {
                    numbers.remove(&pair.ifindex);
                });
                its.gone.notify_all();
            }
        };
        let thread = std::thread::Builder::new().name("remover".into()).spawn(work)?;
        Ok(Remover { queue: Some(queue), going, thread: Some(thread) })
    }

    /// A pair that is to go.
    pub fn remove(&self, pair: Pair) {
        self.going.lock().insert(pair.ifindex);
        if let Some(queue) = &self.queue {
            let _ended = queue.send(pair); // with the thread, which then has removed all that it was given
        }
    }

    /// Waits until an interface is gone, if it is about to go. `false` if it is not within this time.
    pub fn wait_for(&self, ifindex: u32, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut numbers = self.going.lock();
        while numbers.contains(&ifindex) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.going.gone.wait_timeout(numbers, left);
            numbers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// All that was to go is gone afterwards.
impl Drop for Remover {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// One request for all of them: whatever is in a group goes at once. Those that cannot be put into it are most often gone.
pub(super) fn remove(requests: &mut Requests, pairs: &[Pair]) {
    if let [pair] = pairs {
        let _gone = pair.remove(requests);
        return;
    }
    let group = 0x7000_0000 | (std::process::id() & 0x0fff_ffff);
    let join = |pair: &Pair| {
        let mut message = LinkMessage::default();
        message.header.index = pair.ifindex;
        message.attributes = vec![LinkAttribute::Group(group)];
        (RouteNetlinkMessage::SetLink(message), 0)
    };
    for some in pairs.chunks(32) {
        let _gone = requests.change_all(some.iter().map(join));
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group)];
    if requests.change(RouteNetlinkMessage::DelLink(message), 0).is_err() {
        pairs.iter().for_each(|pair| drop(pair.remove(requests)));
    }
}
