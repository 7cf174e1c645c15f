//! What cores did, out of /proc/stat: for a case that counts processor time, and for what is said of the machine.

/// Ticks in a second (USER_HZ: the same on every architecture that Linux still runs on but alpha).
pub const TICKS: f64 = 100.0;

/// Ticks since the machine was started.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Ticks {
    /// All of them.
    pub all: u64,
    /// Work: not idle, not waiting for a disk, and not what the hypervisor took away.
    pub busy: u64,
    /// What the hypervisor took away.
    pub stolen: u64,
}

/// The file's text.
pub fn read() -> Result<String, String> {
    std::fs::read_to_string("/proc/stat").map_err(|error| format!("cannot read /proc/stat: {error}"))
}

impl Ticks {
    /// Of one core (`cpu0`), or of all together (`cpu`), whose line is
    /// `name user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user and nice.
    pub fn parse(text: &str, name: &str) -> Option<Ticks> {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
        let numbers = line.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok());
        let numbers: Vec<u64> = numbers.collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen] = numbers[..] else { return None };
        Some(Ticks { all: numbers.iter().sum(), busy: user + nice + system + irq + softirq, stolen })
    }

    /// What was added since.
    pub fn since(self, before: Ticks) -> Ticks {
        Ticks {
            all: self.all.saturating_sub(before.all),
            busy: self.busy.saturating_sub(before.busy),
            stolen: self.stolen.saturating_sub(before.stolen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_name_and_guests_count_once() {
        let text = "cpu  9 9 9 9 9 9 9 9 70 0\ncpu1 1 0 0 0 0 0 0 0 0 0\ncpu10 0 0 0 0 0 0 0 5 0 0\n\
                    cpu0 100 20 300 5000 7 11 69 400 0 0\n";
        let ticks = |name| Ticks::parse(text, name);
        assert_eq!(ticks("cpu"), Some(Ticks { all: 72, busy: 45, stolen: 9 }));
        assert_eq!(ticks("cpu0"), Some(Ticks { all: 5907, busy: 500, stolen: 400 }));
        assert_eq!(ticks("cpu1"), Some(Ticks { all: 1, busy: 1, stolen: 0 }));
        assert_eq!(ticks("cpu10"), Some(Ticks { all: 5, busy: 0, stolen: 5 }));
        assert_eq!(ticks("cpu2"), None);
        assert_eq!(Ticks::parse("cpu0 1 2 3", "cpu0"), None);
        assert_eq!(Ticks::parse("", "cpu"), None);
    }

    #[test]
    fn time_that_goes_back_is_none() {
        let [earlier, later] = [5, 8].map(|ticks| Ticks { all: 10 * ticks, busy: ticks, stolen: 0 });
        assert_eq!(later.since(earlier), Ticks { all: 30, busy: 3, stolen: 0 });
        assert_eq!(earlier.since(later), Ticks::default());
    }
}
