//! Settings set right: by `peregrine doctor --fix` for good, and by a daemon whose config says `[uplink] fix = true` for as long as it
//! runs.
//!
//! What a daemon changes is written to a file beside its control socket before it is changed, and put back when the daemon ends. After
//! a SIGKILL the next daemon at that socket finds the file and puts it back first. An interface that is gone by now is left alone, and what
//! was changed before the machine was booted is forgotten. What cannot be put back stays in the file: so does what is of another network
//! namespace, whose interfaces have the same numbers, and what another daemon uses now.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::xsk::inspect::{self, UdpFlow};
use peregrine_dataplane::xsk::{self, XskError};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::{Case, Wanted};

/// Something that can be set right while others use the interface; its link may go away for seconds.
#[derive(Clone, PartialEq, Debug)]
pub enum Mend {
    /// A feature of an interface is switched off.
    FeatureOff {
        /// The interface.
        interface: String,
        /// The feature, as the kernel names it,
        feature: &'static str,
        /// and ethtool.
        short: &'static str,
    },
    /// UDP is hashed by ports, too.
    HashByPort {
        /// The interface.
        interface: String,
        /// Over which IP.
        flow: UdpFlow,
    },
    /// The file system for BPF objects is mounted.
    MountBpffs,
}

impl Mend {
    /// The same for a shell.
    pub fn command(&self) -> String {
        match self {
            Mend::FeatureOff { interface, short, .. } => format!("ethtool -K {interface} {short} off"),
            Mend::HashByPort { interface, flow } => {
                format!("ethtool -N {interface} rx-flow-hash {} sdfn", flow.name())
            }
            Mend::MountBpffs => "mount -t bpf bpf /sys/fs/bpf".into(),
        }
    }

    /// Does it, and looks whether it is so.
    ///
    /// # Errors
    /// The kernel's.
    pub fn apply(&self) -> io::Result<()> {
        match self {
            Mend::FeatureOff { interface, feature, .. } => inspect::set_feature(interface, feature, false),
            Mend::HashByPort { interface, flow } => {
                inspect::set_flow_hash(interface, *flow, inspect::HASH_BY_PORT)
            }
            Mend::MountBpffs => {
                Ok(rustix::mount::mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None)?)
            }
        }
    }

    /// What is to be put back afterwards; nothing, if it is not about an interface.
    ///
    /// # Errors
    /// How it is now could not be found out: then it could not be put back.
    fn record(&self) -> io::Result<Option<Record>> {
        let (interface, was) = match self {
            Mend::FeatureOff { interface, feature, .. } => {
                (interface, Was::Feature { feature: (*feature).to_owned(), on: true })
            }
            Mend::HashByPort { interface, flow } => {
                let fields = inspect::flow_hash(interface, *flow)?;
                (interface, Was::Hash { flow: *flow, fields })
            }
            Mend::MountBpffs => return Ok(None),
        };
        let ifindex = xsk::interface(interface).map_err(io::Error::other)?.index;
        let namespace = inspect::network_namespace()?;
        Ok(Some(Record { interface: interface.clone(), namespace, ifindex, was }))
    }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mend::FeatureOff { interface, short, .. } => write!(f, "{interface}: {short} off"),
            Mend::HashByPort { interface, flow } => write!(f, "{interface}: {} hashed by ports", flow.name()),
            Mend::MountBpffs => f.write_str("bpf mounted at /sys/fs/bpf"),
        }
    }
}

/// How something was that was changed for the time of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Record {
    interface: String,
    /// Interfaces of another network namespace have the same numbers.
    namespace: u64,
    /// Names change, and another interface may have this one by now.
    ifindex: u32,
    was: Was,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Was {
    Feature { feature: String, on: bool },
    Hash { flow: UdpFlow, fields: u64 },
}

impl Record {
    /// Whether it is put back; if not, the interface is gone, and its settings with it.
    fn put_back(&self, file: &Path) -> io::Result<bool> {
        if self.namespace != inspect::network_namespace()? {
            let file = file.display();
            let why =
                "it is in another network namespace: start a daemon there, or, if that namespace is gone";
            return Err(io::Error::other(format!("{why}, remove {file}")));
        }
        let Some(interface) = inspect::name_of(self.ifindex)? else { return Ok(false) };
        // Our own program is not on it: it comes later, and has gone before. What one that was killed has left goes with its process.
        let program = xsk::interface(&interface).and_then(|interface| inspect::program_on(&interface));
        if let Some(why) = daemon_on(program) {
            let again = "the next end or start of this one tries again";
            return Err(io::Error::other(format!("{why}: {again}")));
        }
        match &self.was {
            Was::Feature { feature, on } => inspect::set_feature(&interface, feature, *on)?,
            Was::Hash { flow, fields } => inspect::set_flow_hash(&interface, *flow, *fields)?,
        }
        Ok(true)
    }
}

/// Why an interface with this program on it is to be left alone: another daemon uses it, or may. Without CAP_SYS_ADMIN no name is told.
fn daemon_on(program: Result<Option<(u32, String)>, XskError>) -> Option<String> {
    match program {
        Ok(None) => None,
        Ok(Some((_, name))) if inspect::is_ours(&name) => Some("another daemon uses it".to_owned()),
        Ok(Some((_, name))) if inspect::is_known(&name) => None, // a firewall, say
        Ok(Some((id, _))) => {
            Some(format!("another daemon may use it (the name of program {id} on it is not told)"))
        }
        Err(error) => Some(format!("another daemon may use it ({error})")),
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { interface, was, .. } = self;
        match was {
            Was::Feature { feature, on } => {
                write!(f, "{interface}: {feature} {}", if *on { "on" } else { "off" })
            }
            Was::Hash { flow, .. } => write!(f, "{interface}: {} hashed as before", flow.name()),
        }
    }
}

/// The file's text.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Settings do not outlive a boot.
    boot: String,
    records: Vec<Record>,
}

/// Of this boot; empty where nobody tells.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// What a daemon has changed. Dropping it puts everything back.
#[derive(Debug)]
pub struct Mended {
    file: PathBuf,
    records: Vec<Record>,
}

impl Mended {
    /// Puts back what a killed daemon could not, and sets right what the config wants to be. Also what was done, and what could not be, in
    /// lines for people.
    pub fn begin(plan: &Plan) -> (Mended, Vec<String>) {
        let mut file = plan.control_socket.clone().into_os_string();
        file.push(".mended");
        let file = PathBuf::from(file);
        let (mut lines, records) = left_behind(&file);
        let mut mended = Mended { file, records };
        let uplinks: Vec<_> = plan.uplinks.iter().filter(|uplink| uplink.fix).cloned().collect();
        if uplinks.is_empty() {
            return (mended, lines);
        }
        let case = Case::read(Wanted { uplinks, ..Wanted::of(plan) });
        let mends = case.examine().into_iter().filter_map(|finding| finding.mend);
        let mut recorded: Vec<(Mend, Record)> = Vec::new();
        for mend in mends {
            match mend.record() {
                Ok(Some(record)) => recorded.push((mend, record)),
                Ok(None) => {}
                Err(error) => lines.push(not_fixed(&mend, &error)),
            }
        }
        mended.records.extend(recorded.iter().map(|(_, record)| record.clone()));
        if let Err(error) = mended.write() {
            let file = mended.file.display();
            lines.push(format!("warning: nothing is fixed, because {file} cannot be written: {error}"));
            mended.records.clear();
            return (mended, lines);
        }
        for (mend, record) in recorded {
            match mend.apply() {
                Ok(()) => lines.push(format!("fixed until the end: {mend}")),
                Err(error) => {
                    mended.records.retain(|known| *known != record);
                    lines.push(not_fixed(&mend, &error));
                }
            }
        }
        (mended, lines)
    }

    fn write(&self) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        // Made anew: whoever else may write to the directory cannot lead us elsewhere; and the old one is there until the new one is whole.
        let mut new = self.file.clone().into_os_string();
        new.push(".new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let kept = Kept { boot: boot(), records: self.records.clone() };
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(serde_json::to_string(&kept).map_err(io::Error::other)?.as_bytes())?;
        std::fs::rename(&new, &self.file)
    }

    /// Puts everything back. Lines about what could not be: those records stay in the file.
    pub fn end(mut self) -> Vec<String> {
        self.put_back()
    }

    fn put_back(&mut self) -> Vec<String> {
        let (records, mut lines) = (std::mem::take(&mut self.records), Vec::new());
        if records.is_empty() {
            return lines;
        }
        for record in records {
            if let Err(error) = record.put_back(&self.file) {
                lines.push(format!("warning: not put back: {record}: {error}"));
                self.records.push(record);
            }
        }
        let _unwritten =
            if self.records.is_empty() { std::fs::remove_file(&self.file) } else { self.write() };
        self.records.clear(); // once is enough
        lines
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        let _nobody_listens = self.put_back();
    }
}

/// What the daemon before could not put back.
fn left_behind(file: &Path) -> (Vec<String>, Vec<Record>) {
    let owner = std::fs::symlink_metadata(file).map(|found| (found.is_file(), found.uid()));
    if owner.is_ok_and(|owner| owner != (true, rustix::process::geteuid().as_raw())) {
        return told(format!("warning: {} is not a file of ours: remove it", file.display()));
    }
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), Vec::new()),
        Err(error) => return told(format!("warning: {}: {error}", file.display())),
    };
    let kept: Kept = match serde_json::from_str(&text) {
        Ok(kept) => kept,
        Err(error) => {
            let file = file.display();
            return told(format!("warning: {file} is not what a daemon writes ({error}): remove it"));
        }
    };
    if kept.boot != boot() {
        let _gone = std::fs::remove_file(file);
        return told(format!("left alone, as the machine was booted since: what {} tells", file.display()));
    }
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for record in kept.records {
        match record.put_back(file) {
            Ok(true) => lines.push(format!("put back, as a killed daemon could not: {record}")),
            Ok(false) => lines.push(format!("left alone, as the interface is gone: {record}")),
            Err(error) => {
                lines.push(format!("warning: not put back: {record}: {error}"));
                failed.push(record);
            }
        }
    }
    if failed.is_empty() {
        let _gone = std::fs::remove_file(file);
    } // else the file stays; the end of this daemon tries once more
    (lines, failed)
}

fn not_fixed(mend: &Mend, error: &io::Error) -> String {
    format!("warning: not fixed: {mend}: {error}: `{}`", mend.command())
}

fn told(line: String) -> (Vec<String>, Vec<Record>) {
    (vec![line], Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_ethtool() {
        let interface = "eth0".to_owned();
        let off = Mend::FeatureOff { interface: interface.clone(), feature: "rx-lro", short: "lro" };
        assert_eq!(
            (off.command(), off.to_string()),
            ("ethtool -K eth0 lro off".into(), "eth0: lro off".into())
        );
        let hash = Mend::HashByPort { interface, flow: UdpFlow::Udp6 };
        assert_eq!(hash.command(), "ethtool -N eth0 rx-flow-hash udp6 sdfn");
    }

    #[test]
    fn what_may_be_another_daemons_is_left_alone() {
        let with = |name: &str| daemon_on(Ok(Some((7, name.to_owned()))));
        assert_eq!((daemon_on(Ok(None)), with("firewall")), (None, None));
        assert_eq!(with("peregrine_steer").unwrap(), "another daemon uses it");
        assert!(with("unnamed").unwrap().contains("may use it (the name of program 7"));
        let source = io::ErrorKind::PermissionDenied.into();
        let refused = XskError::System { what: "asking".into(), source };
        assert!(daemon_on(Err(refused)).unwrap().starts_with("another daemon may use it (asking"));
    }

    #[test]
    fn what_could_not_be_put_back_is_not_done_and_that_is_said() {
        let off = Mend::FeatureOff { interface: "none0".into(), feature: "rx-lro", short: "lro" };
        let line = not_fixed(&off, &off.record().unwrap_err());
        assert!(line.starts_with("warning: not fixed: none0: lro off: "), "{line}");
        assert!(line.contains("none0") && line.ends_with(": `ethtool -K none0 lro off`"), "{line}");
        assert!(Mend::MountBpffs.record().unwrap().is_none());
    }

    #[test]
    fn what_a_killed_daemon_left_is_read_and_what_is_gone_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("control.sock.mended");
        assert_eq!(left_behind(&file), (Vec::new(), Vec::new()));
        let was = Was::Hash { flow: UdpFlow::Udp4, fields: 48 };
        let namespace = inspect::network_namespace().unwrap();
        assert!(namespace > 0);
        let record =
            |name: &str, ifindex| Record { interface: name.into(), namespace, ifindex, was: was.clone() };
        let records = vec![record("gone0", 0x7fff_fff7)];
        let write = |boot: String, records: &[Record]| {
            let kept = Kept { boot, records: records.to_vec() };
            std::fs::write(&file, serde_json::to_string(&kept).unwrap()).unwrap();
        };
        write(boot(), &records);
        let line = "left alone, as the interface is gone: gone0: udp4 hashed as before";
        assert_eq!(left_behind(&file), (vec![line.to_owned()], Vec::new()));
        assert!(!file.exists());
        write("another".into(), &records);
        assert!(left_behind(&file).0[0].contains("booted since") && !file.exists());
        // Nobody can choose the fields of the loopback's hash.
        let lo = [record("lo", 1)];
        write(boot(), &lo);
        let (lines, failed) = left_behind(&file);
        assert!(lines[0].contains("not put back: lo: udp4") && file.exists(), "{lines:?}");
        assert_eq!(failed, lo);
        let there = [Record { namespace: namespace + 1, ..record("gone0", 0x7fff_fff7) }];
        write(boot(), &there);
        let (lines, failed) = left_behind(&file);
        let why = "not put back: gone0: udp4 hashed as before: it is in another network namespace";
        assert!(lines[0].contains(why), "{lines:?}");
        let way_out = format!("if that namespace is gone, remove {}", file.display());
        assert!(lines[0].ends_with(&way_out), "{lines:?}");
        assert!(failed == there && file.exists());
        std::fs::write(&file, "nonsense").unwrap();
        assert!(left_behind(&file).0[0].contains("is not what a daemon writes") && file.exists());
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        assert!(left_behind(&file).0[0].contains("is not a file of ours"));
        let mut mended = Mended { file: file.clone(), records };
        mended.write().unwrap();
        assert!(!file.is_symlink(), "it is made anew, wherever the old one led");
        mended.records.clear();
    }
}
