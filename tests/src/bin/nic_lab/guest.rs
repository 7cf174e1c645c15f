//! In the guest: the cases one after the other, each in a process of its own, which is killed at its deadline.

use std::io::Read;
use std::panic::catch_unwind;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use peregrine_control::lab::tethered;
use peregrine_tests::within;

use crate::cases::{CASES, Case};
use crate::kinds::Kind;

/// What begins each line that is for people.
pub const MARK: &str = "nic-lab: ";
/// What a case says when it has passed, with a few facts.
const PASSED: &str = "passed: ";
/// No case takes longer than this, on a busy machine.
const CASE_PATIENCE: Duration = Duration::from_secs(90);

/// All cases of this kind; `nic_lab_cases=` on the kernel's command line names those that are wanted.
pub fn run(kind: Kind) -> ExitCode {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let wanted = line.split_whitespace().find_map(|word| word.strip_prefix("nic_lab_cases="));
    let is_wanted = |case: &&Case| {
        (case.kinds)(kind) && wanted.is_none_or(|names| names.split(',').any(|name| name == case.name))
    };
    println!("{MARK}{} begins", kind.name());
    let (mut passed, mut failed) = (0, 0);
    let is_known = |name: &&str| CASES.iter().any(|case| case.name == *name);
    for name in wanted.into_iter().flat_map(|names| names.split(',')).filter(|name| !is_known(name)) {
        failed += 1;
        println!("{MARK}{} {name}: FAILED: there is no such case", kind.name());
    }
    for case in CASES.iter().filter(is_wanted) {
        let began = Instant::now();
        let result = supervised(kind, case);
        let took = began.elapsed().as_secs_f64();
        let start = format!("{MARK}{} {}:", kind.name(), case.name);
        match result {
            Ok(facts) => {
                passed += 1;
                println!("{start} ok ({facts}; {took:.1} s)");
            }
            Err(said) => {
                failed += 1;
                println!("{start} FAILED after {took:.1} s");
                said.lines().for_each(|line| println!("{MARK}{}:    {line}", kind.name()));
            }
        }
    }
    println!("{MARK}{} end: {passed} passed, {failed} failed", kind.name());
    ExitCode::from(u8::from(failed > 0))
}

/// Runs a case in a process. What it found, or everything that it said.
fn supervised(kind: Kind, case: &Case) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["case", kind.name(), case.name]);
    let mut command = tethered(&command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let ended = ended_in_time(&mut child);
    if !ended {
        let _gone = child.kill();
        let _reaped = child.wait();
        // With its namespaces, or the next case finds no NICs.
        let _none = Command::new("ip").args(["-all", "netns", "delete"]).status();
    }
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    match out.lines().find_map(|line| line.strip_prefix(PASSED)) {
        Some(facts) if ended => Ok(facts.to_string()),
        _ if ended => Err(format!("{err}{out}")),
        _ => Err(format!("not within {CASE_PATIENCE:?}\n{err}{out}")),
    }
}

fn ended_in_time(child: &mut Child) -> bool {
    within(CASE_PATIENCE, || !matches!(child.try_wait(), Ok(None)))
}

/// Reads to the end; what it asks the host to do goes there at once.
fn reader(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    use std::io::{BufRead, BufReader};
    std::thread::spawn(move || {
        let mut text = String::new();
        for line in stream.into_iter().flat_map(|stream| BufReader::new(stream).lines()).map_while(Result::ok)
        {
            if line.starts_with(crate::host::REQUEST) {
                println!("{line}");
            }
            text += &line;
            text.push('\n');
        }
        text
    })
}

/// The process of one case.
pub fn run_one(kind: Kind, name: &str) -> ExitCode {
    let Some(case) = CASES.iter().find(|case| case.name == name) else {
        eprintln!("nic_lab: no case '{name}'");
        return ExitCode::from(2);
    };
    match catch_unwind(|| (case.run)(kind)) {
        Ok(facts) => {
            println!("{PASSED}{facts}");
            ExitCode::SUCCESS
        }
        // The panic has said why.
        Err(_) => ExitCode::FAILURE,
    }
}
