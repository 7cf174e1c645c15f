//! What the processor counts while this thread works: instructions and cache misses outside the kernel, by perf_event_open(2). Used by
//! `core`. Most virtual machines count neither: then it says so, and nothing is guessed.

use perf_event::events::Hardware as Event;
use perf_event::{Builder, Counter};

/// The counters of this thread.
#[derive(Debug)]
pub struct Hardware {
    instructions: Result<Counter, String>,
    cache_misses: Result<Counter, String>,
}

impl Hardware {
    /// Asks for them; those that there are none of stay away.
    pub fn new() -> Hardware {
        let ask = |event, name| {
            Builder::new(event)
                .build()
                .map_err(|error| format!("no counter of {name} (perf_event_open: {error})"))
        };
        Hardware {
            instructions: ask(Event::INSTRUCTIONS, "instructions"),
            cache_misses: ask(Event::CACHE_MISSES, "cache misses"),
        }
    }

    /// Why something is not counted.
    pub fn missing(&self) -> Option<String> {
        let why: Vec<&str> = [&self.instructions, &self.cache_misses]
            .iter()
            .filter_map(|counter| counter.as_ref().err().map(String::as_str))
            .collect();
        (!why.is_empty()).then(|| why.join("; "))
    }

    /// What the work took: instructions and cache misses.
    pub fn count(&mut self, work: impl FnOnce()) -> (Option<u64>, Option<u64>) {
        for counter in [&mut self.instructions, &mut self.cache_misses].into_iter().flatten() {
            let _begun = counter.reset().and_then(|()| counter.enable());
        }
        work();
        let read = |counter: &mut Result<Counter, String>| {
            let counter = counter.as_mut().ok()?;
            counter.disable().ok()?;
            // 0: it never had its turn on the processor.
            counter.read().ok().filter(|count| *count > 0)
        };
        (read(&mut self.instructions), read(&mut self.cache_misses))
    }
}
