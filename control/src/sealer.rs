//! The process that waits for tenants' files in our stead (`peregrine_memif::sealer`): started before anything else, started again if it
//! dies. A tenant can keep it waiting for as long as it likes, and this process can still end, and be restarted.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use peregrine_memif::sealer;
use rustix::process::Pid;

/// This very program, even if its file has been replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// Our sealer.
#[derive(Debug)]
pub struct Sealer {
    process: Child,
}

impl Sealer {
    /// Starts it.
    pub fn start() -> io::Result<Sealer> {
        let mut program = Command::new(PROGRAM);
        // A group of its own: Ctrl-C is for us, and it ends when we do.
        let process = sealer::start(program.arg0("peregrine").arg("seal-helper").process_group(0))?;
        Ok(Sealer { process })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Starts another one if it has died. Tells so, in a line for the log; also if that fails, and then tries again the next time.
    pub fn keep(&mut self) -> Option<String> {
        if !sealer::is_lost() {
            return None;
        }
        let pid = self.process.id();
        // It has closed its socket: nothing to wait for unless a thread of it is stuck.
        let status =
            self.process.try_wait().ok().flatten().map(|status| format!(", {status}")).unwrap_or_default();
        let died = format!("the process that seals tenants' memory (seal-helper, {pid}{status}) has ended");
        Some(match Sealer::start() {
            Ok(started) => {
                *self = started;
                format!("{died}: started another one, process {}", self.process.id())
            }
            Err(why) => {
                format!("{died} and cannot be started again ({why}): no tenant can connect until it can")
            }
        })
    }
}
