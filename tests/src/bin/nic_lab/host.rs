//! On the host: the guests, as many at a time as there are cores: each waits for something most of the time. What they say that is for people is
//! printed, all of it is kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use peregrine_control::doctor::facts::meminfo_value;
use peregrine_control::lab::tethered;
use peregrine_tests::{FAR, NEAR};

use crate::guest::MARK;
use crate::kinds::Kind;

/// What begins a line by which the guest asks for something outside of it: a command of QEMU's monitor follows.
pub const REQUEST: &str = "nic-lab-monitor: ";
/// A guest that says nothing for so long will not go on: a case's patience, and a start on a busy machine.
const SILENCE: Duration = Duration::from_secs(120);
/// By then it has booted. An emulated machine's timers sometimes stop meanwhile: then it is booted once more.
const BOOT_PATIENCE: Duration = Duration::from_secs(100);
/// What one takes of the host's memory, at most.
const GUEST_KIB: u64 = 1280 << 10;
/// No guest takes longer than this.
const GUEST_PATIENCE: Duration = Duration::from_secs(600);
/// Nor all of them together longer than this: what runs then is killed, what has not begun does not begin.
const LAB_PATIENCE: Duration = Duration::from_secs(1200);
/// What the guest's kernel says of a fault of its own: a driver's, most likely, and then no case is worth much.
const FAULTS: [&str; 4] = ["BUG: ", "Oops: ", "WARNING: CPU", "Kernel panic"];
/// Lines of the console that are shown of a guest that broke off.
const LAST_LINES: usize = 30;

/// How a guest did.
#[derive(Default, Debug)]
struct Outcome {
    passed: u32,
    failed: u32,
    /// It has said something: that it begins.
    booted: bool,
    /// Why it broke off.
    broken: Option<String>,
}

/// Boots a guest for each of these kinds. `folder` holds the kernel, the initramfs, and QEMU under `root`.
pub fn run(folder: &Path, kinds: Vec<Kind>) -> ExitCode {
    let began = Instant::now();
    let at_a_time = at_a_time().min(kinds.len());
    let (waiting, sums) = (Mutex::new(kinds.into_iter()), Mutex::new((0, 0)));
    let next = || waiting.lock().expect("no panic").next();
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(kind) = next() {
                    let (passed, failed) = booted(folder, kind, began + LAB_PATIENCE);
                    let mut sums = sums.lock().expect("no panic");
                    *sums = (sums.0 + passed, sums.1 + failed);
                }
            });
        }
    });
    let (passed, failed) = *sums.lock().expect("no panic");
    println!("{MARK}{passed} passed, {failed} failed, in {:.0} s", began.elapsed().as_secs_f64());
    ExitCode::from(u8::from(failed > 0 || passed == 0))
}

/// As many as there are cores, and memory.
fn at_a_time() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo_value(&text, "MemAvailable:").unwrap_or(0) / GUEST_KIB;
    usize::try_from(available).unwrap_or(cores).clamp(1, cores)
}

/// A guest of this kind, and a second one if the first does not boot: how many cases passed, and how many failed.
fn booted(folder: &Path, kind: Kind, end: Instant) -> (u32, u32) {
    let mut outcome = guest(folder, kind, end);
    if outcome.broken.is_some() && !outcome.booted {
        println!("{MARK}{}: it did not boot, and is booted once more", kind.name());
        outcome = guest(folder, kind, end);
    }
    let Some(why) = outcome.broken else { return (outcome.passed, outcome.failed) };
    println!("{MARK}{}: FAILED: {why}", kind.name());
    (outcome.passed, outcome.failed + 1)
}

/// Boots one, reads its console to the end, and leaves nothing running.
fn guest(folder: &Path, kind: Kind, end: Instant) -> Outcome {
    if Instant::now() >= end {
        let why = format!("not begun, as the lab has taken {LAB_PATIENCE:?} already");
        return Outcome { broken: Some(why), ..Outcome::default() };
    }
    let monitor = folder.join(format!("monitor-{}", kind.name()));
    let _absent = std::fs::remove_file(&monitor);
    let mut child = match qemu(folder, kind, &monitor).spawn() {
        Ok(child) => child,
        Err(error) => return Outcome { broken: Some(format!("QEMU: {error}")), ..Outcome::default() },
    };
    let log = folder.join(format!("console-{}.log", kind.name()));
    let outcome =
        read_console(kind, &lines_of(&mut child), &log, &monitor, end.min(Instant::now() + GUEST_PATIENCE));
    let _gone = child.kill();
    let _reaped = child.wait();
    outcome
}

/// The virtual machine: two NICs of a kind on one hub, each behind a port of its own.
fn qemu(folder: &Path, kind: Kind, monitor: &Path) -> Command {
    let root = folder.join("root/usr");
    let unpacked = root.join("bin/qemu-system-x86_64");
    // Nothing was unpacked where this machine has the newest one.
    let program = if unpacked.is_file() { unpacked } else { PathBuf::from("qemu-system-x86_64") };
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", root.join("lib/x86_64-linux-gnu"));
    for data in ["share/qemu", "share/seabios"] {
        command.arg("-L").arg(root.join(data));
    }
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    command.args(kind.machine());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    command.arg("-kernel").arg(folder.join("kernel")).arg("-initrd").arg(folder.join("initramfs"));
    let cases = std::env::var("NIC_LAB_CASES").ok().filter(|names| !names.is_empty());
    let cases = cases.map(|names| format!(" nic_lab_cases={names}"));
    let line = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr";
    command.arg("-append").arg(format!(
        "{line} {} nic_lab={}{}",
        kind.boot_words(),
        kind.name(),
        cases.unwrap_or_default()
    ));
    for (number, (name, mac)) in [("far", FAR.2), ("near", NEAR.2)].into_iter().enumerate() {
        command.args(["-netdev", &format!("hubport,id=hub-{name},hubid=0")]);
        let bus = if name == "near" { kind.near_bus() } else { "pcie.0" };
        let port = format!("pcie-root-port,id=port-{name},bus={bus},chassis={number},slot={number}");
        command.args(["-device", &port]);
        command.args([
            "-device",
            &format!("{},id={name},bus=port-{name},netdev=hub-{name},mac={mac},romfile=", kind.device()),
        ]);
    }
    let mut command = tethered(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it writes, to either stream, line by line.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                    return;
                }
            }
        });
    }
    lines
}

fn read_console(
    kind: Kind,
    lines: &Receiver<String>,
    log: &Path,
    monitor: &Path,
    deadline: Instant,
) -> Outcome {
    let mut kept = File::create(log).ok();
    let mut last: Vec<String> = Vec::new();
    let mut outcome = Outcome::default();
    let mut fault = None;
    let boot_deadline = deadline.min(Instant::now() + BOOT_PATIENCE);
    let why = loop {
        let end = if outcome.booted { deadline } else { boot_deadline };
        let patience = SILENCE.min(end.saturating_duration_since(Instant::now()));
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => break format!("silent for {patience:?}, or too slow"),
            Err(RecvTimeoutError::Disconnected) => break "the guest broke off".into(),
        };
        let _full = kept.as_mut().map(|file| writeln!(file, "{line}"));
        if let Some(request) = line.strip_prefix(REQUEST) {
            if let Err(error) = ask_monitor(monitor, request) {
                break format!("QEMU's monitor, `{request}`: {error}");
            }
        } else if line.starts_with(MARK) {
            println!("{line}");
            outcome.booted = true;
            if let Some((passed, failed)) = end_of(&line) {
                (outcome.passed, outcome.failed) = (passed, failed);
                match fault.take() {
                    Some(fault) => break format!("its kernel said: {fault}"),
                    None => return outcome,
                }
            }
        } else if FAULTS.iter().any(|start| line.contains(start)) {
            fault.get_or_insert(line.clone());
        }
        last.push(line);
        if last.len() > LAST_LINES {
            last.remove(0);
        }
    };
    last.iter().for_each(|line| println!("{MARK}{}:    {line}", kind.name()));
    outcome.broken = Some(format!("{why}; its console is in {}", log.display()));
    outcome
}

/// `nic-lab: KIND end: N passed, M failed`.
fn end_of(line: &str) -> Option<(u32, u32)> {
    let (passed, failed) = line.split(" end: ").nth(1)?.split_once(", ")?;
    Some((passed.strip_suffix(" passed")?.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

fn ask_monitor(monitor: &Path, request: &str) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(monitor)?;
    stream.write_all(format!("{request}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_guest_is_known() {
        assert_eq!(end_of("nic-lab: igb end: 12 passed, 1 failed"), Some((12, 1)));
        assert_eq!(end_of("nic-lab: igb ping: ok (the end: near)"), None);
    }
}
