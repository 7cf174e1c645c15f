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
    /// Those before it that have not ended altogether: what waits for a file's lock in them ends after that.
    ending: Vec<Child>,
    /// Why it could not be started again, if that was told.
    failure: Option<String>,
}

impl Sealer {
    /// Starts it.
    pub fn start() -> io::Result<Sealer> {
        Ok(Sealer { process: Sealer::spawn()?, ending: Vec::new(), failure: None })
    }

    fn spawn() -> io::Result<Child> {
        let mut program = Command::new(PROGRAM);
        // A group of its own: Ctrl-C is for us, and it ends when we do.
        sealer::start(program.arg0("peregrine").arg("seal-helper").process_group(0))
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Starts another one if it has died; to be called once a second. Tells so, in a line for the log; also if that fails, once for
    /// each reason, and then tries again the next time.
    pub fn keep(&mut self) -> Option<String> {
        self.ending.retain_mut(|process| matches!(process.try_wait(), Ok(None)));
        if !sealer::is_lost() {
            return None;
        }
        let pid = self.process.id();
        let status =
            self.process.try_wait().ok().flatten().map(|status| format!(", {status}")).unwrap_or_default();
        let died = format!("the process that seals tenants' memory (seal-helper, {pid}{status}) has ended");
        match Sealer::spawn() {
            Ok(started) => {
                self.ending.push(std::mem::replace(&mut self.process, started));
                self.failure = None;
                Some(format!("{died}: started another one, process {}", self.process.id()))
            }
            Err(why) => {
                let failure = Some(why.to_string());
                if self.failure == failure {
                    return None;
                }
                self.failure = failure;
                Some(format!(
                    "{died} and cannot be started again ({why}): no tenant can connect until it can"
                ))
            }
        }
    }
}
