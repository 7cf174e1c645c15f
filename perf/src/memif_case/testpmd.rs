//! DPDK's testpmd on both ends of a memif ring, driven over its prompt. Both are started once, for all runs:
//!
//! ```text
//! dpdk-testpmd --lcores=0@R,1@S --main-lcore=1 EAL --vdev=net_memif0,role=server,MEMIF -- --forward-mode=rxonly APP
//! dpdk-testpmd --lcores=0@R,1@S --main-lcore=0 EAL --vdev=net_memif0,role=client,MEMIF -- --forward-mode=txonly APP
//!   EAL    --no-pci --no-shconf --no-telemetry, and --in-memory -m128 (huge pages) or --no-huge -m512 where none are free
//!   MEMIF  id=0,socket=NAME,bsize=2048,rsize=10
//!   APP    -i --nb-cores=1 --total-num-mbufs=16384 --mbcache=512 --burst=32
//! ```
//! R and S are the receiver's and the sender's core. A main lcore only reads its prompt, so it may lie on the other
//! program's core; the one other lcore polls, alone on its own. The server is there first: a client connects once.
//!
//! Nothing that was tried makes it faster: bursts of 64 and 128 packets and larger caches of packet buffers
//! (`--mbcache`) give the same rate. With `zero-copy=yes --single-file-segments` its rate is the same at 64 bytes. At 1500
//! it is higher where the cores are far apart, because txonly then writes the headers only, and the receiver has the
//! rest of these buffers in its cache already: no copy that any program with packets of its own could save.
//!
//! Nothing stays in the file system: the socket is abstract, and DPDK's own folder is gone as soon as both run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use peregrine_control::doctor::facts::meminfo_value;
use peregrine_control::lab;

use super::{BUFFER_BYTES, BURST, Cores, RING_LOG2, Run, Times};
use crate::environment::CpuTime;

const PROGRAM: &str = "dpdk-testpmd";
/// How long it may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at the link, which says nothing by itself.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Both ends, connected.
pub struct Testpmd {
    receiver: Prompt,
    sender: Prompt,
    threads: [String; 2],
}

impl Testpmd {
    /// Starts both; neither forwards yet.
    pub fn start(cores: Cores) -> Result<Testpmd, String> {
        if !installed() {
            return Err(format!("{PROGRAM} is not installed: `make setup` installs it (Debian: dpdk-dev)"));
        }
        let folder =
            tempfile::tempdir().map_err(|error| format!("cannot make a temporary folder: {error}"))?;
        let command = |role, mode| command(role, mode, cores, folder.path());
        let mut receiver = Prompt::start(&mut command("server", "rxonly"))?;
        receiver.answer("show port info 0", "MAC address")?;
        let mut sender = Prompt::start(&mut command("client", "txonly"))?;
        sender.wait_for_link()?;
        let threads = [receiver.polling_thread(cores.receiver)?, sender.polling_thread(cores.sender)?];
        Ok(Testpmd { receiver, sender, threads })
    }

    /// One run.
    pub fn measure(&mut self, bytes: usize, times: Times) -> Result<Run, String> {
        self.sender.say(&format!("set txpkts {bytes}"))?;
        self.receiver.answer("start", "rxonly packet forwarding packets/burst=")?;
        self.sender.answer("start", &format!("packet len={bytes} - nb packet segments=1"))?;
        thread::sleep(times.warm_up);
        let (before, start) = (self.cpu_times()?, self.received()?);
        thread::sleep(times.window);
        let (after, end) = (self.cpu_times()?, self.received()?);
        self.sender.answer("stop", "Done.")?;
        self.receiver.answer("stop", "Done.")?;
        let shares = after.iter().zip(&before).map(|(after, before)| after.share_since(before));
        Ok(Run {
            packets: end.0.saturating_sub(start.0),
            seconds: end.1.duration_since(start.1).as_secs_f64(),
            core_share: shares.fold(1.0, f64::min),
        })
    }

    /// What the receiver has got since it started, and when it said so.
    fn received(&mut self) -> Result<(u64, Instant), String> {
        let line = self.receiver.answer("show port stats 0", "RX-packets:")?;
        let now = Instant::now();
        let packets = rx_packets(&line).ok_or_else(|| format!("{PROGRAM} counts `{}`", line.trim()))?;
        self.receiver.wait_for("Tx-pps:")?;
        Ok((packets, now))
    }

    fn cpu_times(&self) -> Result<Vec<CpuTime>, String> {
        self.threads.iter().map(|thread| CpuTime::read(thread)).collect()
    }
}

fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file())
}

fn command(role: &str, mode: &str, cores: Cores, folder: &Path) -> Command {
    let Cores { receiver, sender } = cores;
    // The lcore that does not poll.
    let main = if role == "server" { 1 } else { 0 };
    let id = std::process::id();
    let mut command = Command::new("stdbuf");
    // Or its answers would stay in its buffer.
    command.args(["-oL", PROGRAM]).env("RUNTIME_DIRECTORY", folder);
    command.arg(format!("--lcores=0@{receiver},1@{sender}")).arg(format!("--main-lcore={main}"));
    command.args(["--no-pci", "--no-shconf", "--no-telemetry"]);
    command.args(if has_huge_pages() { ["--in-memory", "-m128"] } else { ["--no-huge", "-m512"] });
    command.arg(format!("--file-prefix={role}"));
    command.arg(format!(
        "--vdev=net_memif0,role={role},id=0,socket=peregrine-perf-{id}-testpmd,bsize={BUFFER_BYTES},rsize={RING_LOG2}"
    ));
    command.args(["--", "-i", "--nb-cores=1", "--total-num-mbufs=16384", "--mbcache=512"]);
    command.arg(format!("--forward-mode={mode}")).arg(format!("--burst={BURST}"));
    command
}

/// Free huge pages for both programs: 128 MiB each.
pub fn has_huge_pages() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let figure = |key| meminfo_value(&text, key);
    let kilobytes = figure("HugePages_Free:").zip(figure("Hugepagesize:")).map(|(free, size)| free * size);
    kilobytes.is_some_and(|kilobytes| kilobytes >= 2 * 128 * 1024)
}

/// The count in a line of `show port stats`.
fn rx_packets(line: &str) -> Option<u64> {
    line.split_once("RX-packets:")?.1.split_whitespace().next()?.parse().ok()
}

/// One testpmd and what it prints. It ends with its standard input, and is killed when this is dropped or we die.
struct Prompt {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Prompt {
    fn start(command: &mut Command) -> Result<Prompt, String> {
        let mut command = lab::tethered(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("cannot start setpriv: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{PROGRAM} has no standard input or output"));
        };
        let (sender, lines) = channel();
        // The thread ends with the program's standard output.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Prompt { child, input, lines })
    }

    fn say(&mut self, words: &str) -> Result<(), String> {
        let said = writeln!(self.input, "{words}").and_then(|()| self.input.flush());
        said.map_err(|error| format!("{PROGRAM} has ended: {error}"))
    }

    /// Says something, and returns the line of the answer in which `part` is.
    fn answer(&mut self, words: &str, part: &str) -> Result<String, String> {
        self.say(words)?;
        self.wait_for(part)
    }

    fn wait_for(&mut self, part: &str) -> Result<String, String> {
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return Ok(line),
                Ok(line) => last = line,
                Err(_) => {
                    return Err(format!("{PROGRAM} did not say `{part}`; its last line: {}", last.trim()));
                }
            }
        }
    }

    /// A client starts before the server has answered it.
    fn wait_for_link(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while !self.answer("show port info 0", "Link status:")?.contains("up") {
            if Instant::now() >= end {
                return Err(format!("{PROGRAM}'s client is not connected after {PATIENCE:?}"));
            }
            thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    /// The folder in `/proc` of the thread that polls, which may run on this core only.
    fn polling_thread(&self, core: usize) -> Result<String, String> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let entries = std::fs::read_dir(&tasks).map_err(|error| format!("cannot read {tasks}: {error}"))?;
        for entry in entries.flatten() {
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if is_worker_on(&status, core) {
                return Ok(entry.path().display().to_string());
            }
        }
        Err(format!("{PROGRAM} has no thread that polls on core {core} alone"))
    }
}

/// Whether a thread's `status` is that of an lcore that forwards, bound to this core. Its name is `rte-worker-1` or, in
/// later versions, `dpdk-worker1`.
fn is_worker_on(status: &str, core: usize) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default()
    };
    field("Name:").contains("-worker") && field("Cpus_allowed_list:") == core.to_string()
}

impl Drop for Prompt {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As testpmd 22.11 prints it.
    const STATS: &str = "
testpmd> show port stats 0

  ######################## NIC statistics for port 0  ########################
  RX-packets: 19861493   RX-missed: 0          RX-bytes:  1271135552
  RX-errors: 0
  RX-nombuf:  0         
  TX-packets: 7          TX-errors: 0          TX-bytes:  0

  Throughput (since last show)
  Rx-pps:      6091001          Rx-bps:   3118592592
  Tx-pps:            0          Tx-bps:            0
  ############################################################################
";

    #[test]
    fn the_received_packets_are_read_from_the_statistics() {
        let counts: Vec<u64> = STATS.lines().filter_map(rx_packets).collect();
        assert_eq!(counts, [19_861_493]);
        assert_eq!(rx_packets("  RX-packets: many   RX-missed: 0"), None);
    }

    #[test]
    fn the_thread_that_polls_is_known_by_its_name_and_its_core() {
        let status = "Name:\trte-worker-1\nState:\tR (running)\nCpus_allowed:\t2\nCpus_allowed_list:\t1\n";
        assert!(is_worker_on(status, 1));
        assert!(!is_worker_on(status, 0));
        assert!(!is_worker_on(&status.replace("\t1\n", "\t0-1\n"), 1));
        assert!(is_worker_on(&status.replace("rte-worker-1", "dpdk-worker1"), 1));
        assert!(!is_worker_on(&status.replace("rte-worker-1", "eal-intr-thread"), 1));
    }
}
