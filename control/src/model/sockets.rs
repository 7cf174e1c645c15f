//! The sockets' part of a change: opened before the engine does its part, so that hardly anything is left to fail after it
//! (what it would refuse is known before); closed afterwards.

use peregrine_dataplane::types::EndpointId;

use super::prepared::Prepared;
use super::{About, Runtime};

impl Prepared {
    fn go_first(&self) -> Vec<EndpointId> {
        self.close_first.iter().map(|coming| coming.id).collect()
    }

    /// Everything that comes is open, or all is as it was.
    pub(super) fn open(&self, runtime: &mut impl Runtime) -> Result<(), String> {
        let go = self.go_first();
        if self.goes_first {
            // What is to be another one has to go first.
            let _cannot_fail = runtime.swap(&go, &[]);
            self.release.iter().for_each(|(_, port)| runtime.release(port));
        }
        for (held, (path, (name, port))) in self.hold.iter().enumerate() {
            if let Err(why) = runtime.hold(name, port) {
                return Err(format!("{path}: {why}{}", self.go_back(runtime, held, &[])));
            }
        }
        let go = if self.goes_first { &[] } else { &go[..] };
        match runtime.swap(go, &self.come) {
            Ok(()) => self.refit(runtime),
            Err((index, why)) => {
                let about = self.come.get(index).map(|coming| About::Endpoint(coming.id));
                let back = self.go_back(runtime, self.hold.len(), &[]);
                Err(format!("{}: {why}{back}", self.path_of(about)))
            }
        }
    }

    /// The last of what may fail.
    fn refit(&self, runtime: &mut impl Runtime) -> Result<(), String> {
        for (done, (_, after)) in self.refit.iter().enumerate() {
            if let Err(why) = runtime.refit(after) {
                let path = self.path_of(Some(About::Endpoint(after.id)));
                return Err(format!("{path}: {why}{}", self.close_after(runtime, done)));
            }
        }
        Ok(())
    }

    /// The engine wants none of it: all is as it was. What to say if that failed.
    pub(super) fn close_again(&self, runtime: &mut impl Runtime) -> String {
        self.close_after(runtime, self.refit.len())
    }

    /// The same where so many only have got their other addresses.
    fn close_after(&self, runtime: &mut impl Runtime, refitted: usize) -> String {
        for (before, _) in self.refit.iter().take(refitted) {
            let _best_effort = runtime.refit(before); // as it was a moment ago
        }
        let come: Vec<EndpointId> = self.come.iter().map(|coming| coming.id).collect();
        self.go_back(runtime, self.hold.len(), &come)
    }

    fn go_back(&self, runtime: &mut impl Runtime, held: usize, come: &[EndpointId]) -> String {
        self.hold.iter().take(held).for_each(|(_, (_, port))| runtime.release(port));
        let were_closed = self.goes_first || !come.is_empty();
        let before = if were_closed { &self.close_first[..] } else { &[] };
        let hold = if self.goes_first { &self.release[..] } else { &[] };
        let failed = runtime.restore(come, before, hold);
        failed
            .map(|why| format!(" (and what was there before could not be opened again: {why})"))
            .unwrap_or_default()
    }

    /// The rest of what goes.
    pub(super) fn close(&self, runtime: &mut impl Runtime) {
        let _cannot_fail = runtime.swap(&self.close, &[]);
        if !self.goes_first {
            self.release.iter().for_each(|(_, port)| runtime.release(port));
        }
    }
}
