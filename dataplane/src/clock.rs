//! Two clocks that cost next to nothing to read: cycles, for how busy a worker is, and seconds, for ageing. And the other
//! instruction that the language has no word for: a prefetch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The processor's time-stamp counter, or nanoseconds where there is none: good for differences on one core.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction; it touches no memory.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Asks the processor to have the value's first cache line near. Nothing where there is no such instruction.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, a hint that reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// How many [`cycles`] pass in a second, measured over some milliseconds by who asks first. Called at start only.
pub fn cycles_per_second() -> u64 {
    static MEASURED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *MEASURED.get_or_init(measure)
}

fn measure() -> u64 {
    const SAMPLE: Duration = Duration::from_millis(5);
    let (start, first) = (Instant::now(), cycles());
    while start.elapsed() < SAMPLE {
        std::hint::spin_loop();
    }
    let (elapsed, passed) = (start.elapsed(), cycles().wrapping_sub(first));
    u64::try_from(u128::from(passed) * 1_000_000_000 / elapsed.as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// Seconds since the engine started: written by control, read by the workers, which so need no system call for it.
#[derive(Clone, Debug)]
pub struct Seconds {
    start: Instant,
    now_s: Arc<AtomicU32>,
}

impl Seconds {
    /// Starts at zero.
    pub fn start() -> Seconds {
        Seconds { start: Instant::now(), now_s: Arc::default() }
    }

    /// The second that was last written.
    #[inline]
    pub fn now(&self) -> u32 {
        self.now_s.load(Ordering::Relaxed)
    }

    /// Writes the second in which we are. Control does so several times a second.
    pub fn tick(&self) {
        self.now_s
            .store(u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

/// Processor time that this thread has used, in nanoseconds. A system call: not for each frame.
pub fn thread_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
