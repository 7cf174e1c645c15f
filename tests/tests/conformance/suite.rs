//! How cases are told and run: a group of them shares one set-up; all three VTEPs go through it, the first time one of its
//! cases is asked for. So each case is a test of its own, and a daemon is started once for many.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Mutex, OnceLock};

use peregrine_tests::cores;

use crate::bench::{Bench, Not, Outcome};
use crate::known::KNOWN;
use crate::scapy::Scapy;
use crate::sut::{Kind, Setup};

/// How strongly a case is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// By a MUST of the RFC, or by its format.
    Must,
    /// By a SHOULD.
    Should,
    /// By a MAY.
    May,
    /// By nobody but us: an option, or what an operator expects.
    Option,
}

/// One statement and how it is tried.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub section: &'static str,
    pub word: Word,
    pub says: &'static str,
    pub run: fn(&mut Bench) -> Outcome,
}

/// Cases with one set-up.
#[derive(Debug)]
pub struct Group {
    pub title: &'static str,
    pub setup: &'static Setup,
    pub cases: &'static [Case],
    pub results: OnceLock<Results>,
}

/// What came of a group, by VTEP.
pub type Results = [Column; 3];

/// What came of a group with one VTEP.
#[derive(Default, Debug)]
pub struct Column {
    /// By case.
    pub outcomes: Vec<Result<(), Not>>,
    /// What tshark says of all that it sent; what the VTEP's own account says.
    pub tshark: Vec<String>,
    pub account: Vec<String>,
    /// Frames that tshark saw.
    pub captured: usize,
}

/// Tells cases and makes each a test.
#[macro_export]
macro_rules! cases {
    ($group:ident = $title:literal, $setup:ident; $($name:ident: $section:literal, $word:ident, $says:literal;)*) => {
        pub static $group: $crate::suite::Group = $crate::suite::Group {
            title: $title,
            setup: &$setup,
            cases: &[$($crate::suite::Case {
                name: stringify!($name),
                section: $section,
                word: $crate::suite::Word::$word,
                says: $says,
                run: $name,
            }),*],
            results: std::sync::OnceLock::new(),
        };
        mod case {
            $(
                #[test]
                #[ignore = "needs root: make test runs it"]
                fn $name() {
                    $crate::suite::demand(&super::$group, stringify!($name));
                }
            )*
        }
    };
}

/// How a reason begins that is this machine's, not the VTEP's.
pub const KERNEL_LACKS: &str = "this kernel is built without";

/// One after the other, whoever asks: all groups use the same cores.
static TURN: Mutex<()> = Mutex::new(());

impl Group {
    pub fn results(&self) -> &Results {
        self.results.get_or_init(|| {
            let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // On one core, so that what is sent in order comes in order through the kernel's queues.
            core_affinity::set_for_current(core_affinity::CoreId { id: cores().1 });
            let scapy = Rc::new(RefCell::new(Scapy::start()));
            Kind::ALL.map(|kind| {
                let began = std::time::Instant::now();
                let column = self.column(kind, &scapy);
                println!("{} with {kind:?}: {:?}", self.title, began.elapsed());
                column
            })
        })
    }

    fn column(&self, kind: Kind, scapy: &Rc<RefCell<Scapy>>) -> Column {
        let mut column = Column::default();
        let began = std::time::Instant::now();
        let started = catch_unwind(AssertUnwindSafe(|| Bench::start(kind, self.setup, scapy.clone())));
        let mut bench = match started.unwrap_or_else(|panic| Err(text(panic.as_ref()))) {
            Ok(bench) => {
                println!("{kind:?} runs after {:?}", began.elapsed());
                bench
            }
            Err(why) => {
                println!("{kind:?} does not run: {why}");
                let not = || match why.starts_with(KERNEL_LACKS) {
                    true => Not::Untried(why.clone()),
                    false => Not::Fail(format!("not run: {why}")),
                };
                column.outcomes = self.cases.iter().map(|_| Err(not())).collect();
                return column;
            }
        };
        for case in self.cases {
            bench.is_strange = false;
            let began = std::time::Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut bench)));
            let outcome = outcome.unwrap_or_else(|panic| Err(Not::Fail(text(panic.as_ref()))));
            println!("{kind:?} {} ({} ms): {outcome:?}", case.name, began.elapsed().as_millis());
            if outcome.is_err() {
                bench.restore();
            }
            column.outcomes.push(outcome);
        }
        let settled = catch_unwind(AssertUnwindSafe(|| bench.sut.settle()));
        column.account.extend(settled.unwrap_or_else(|panic| Err(text(panic.as_ref()))).err());
        column.captured = bench.captured.len();
        column.tshark =
            crate::judge::findings(&bench.captured, !self.setup.checksum6, &bench.net.file("sent.pcap"));
        column
    }
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    said.unwrap_or("panic").lines().next().unwrap_or("panic").to_string()
}

/// The test of one case: ours passes, unless it is known not to.
pub fn demand(group: &Group, name: &str) {
    let [ours, ..] = group.results();
    let at = group.cases.iter().position(|case| case.name == name).expect("a case");
    let known = KNOWN.iter().find(|(known, _)| *known == name);
    match (&ours.outcomes[at], known) {
        (Ok(()), None) => {}
        (Ok(()), Some(_)) => panic!("{name} is passed now: take it out of the known failures"),
        (Err(_), Some(_)) => {}
        (Err(Not::Untried(why)), None) if why.starts_with(KERNEL_LACKS) => println!("{name}: {why}"),
        (Err(not), None) => panic!("{}: {not:?}", group.cases[at].says),
    }
}
