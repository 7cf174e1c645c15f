//! Open vSwitch with its userspace datapath: database and switch started in a host, with files of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use peregrine_control::lab::{self, Namespace, Process};

use crate::{PATIENCE, within};

/// `ovsdb-server` and `ovs-vswitchd` in a host. They end when this is dropped.
#[derive(Debug)]
pub struct OpenVswitch {
    folder: PathBuf,
    _switch: Process,
    _database: Process,
}

/// A program of Open vSwitch that finds everything in this folder.
fn told_where(mut command: Command, folder: &Path) -> Command {
    for key in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
        command.env(key, folder);
    }
    command
}

impl OpenVswitch {
    /// Starts both, with an empty configuration.
    ///
    /// # Errors
    /// Why it cannot run here, in a line.
    pub fn start(host: &Namespace, folder: &Path) -> Result<OpenVswitch, String> {
        let said = |error: lab::LabError| error.to_string();
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let file = |name: &str| folder.join(name).display().to_string();
        let mut create = told_where(Command::new("ovsdb-tool"), folder);
        create.args(["create", &file("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema"]);
        lab::run(&mut create).map_err(said)?;
        let mut command = told_where(host.command("ovsdb-server"), folder);
        command.arg(file("conf.db")).arg(format!("--remote=punix:{}", file("db.sock")));
        let database =
            Process::start(command.arg(format!("--unixctl={}", file("database.ctl")))).map_err(said)?;
        if !within(PATIENCE, || folder.join("db.sock").exists()) {
            return Err("ovsdb-server does not listen".into());
        }
        let mut command = told_where(host.command("ovs-vswitchd"), folder);
        command.arg(format!("unix:{}", file("db.sock"))).arg(format!("--unixctl={}", file("switch.ctl")));
        let mut init = told_where(Command::new("ovs-vsctl"), folder);
        lab::run(init.arg(format!("--db=unix:{}", file("db.sock"))).args(["--no-wait", "init"]))
            .map_err(said)?;
        let switch = Process::start(&mut command).map_err(said)?;
        Ok(OpenVswitch { folder: folder.to_path_buf(), _switch: switch, _database: database })
    }

    /// Changes of the configuration, each as `ovs-vsctl` takes it; done when the switch has taken them over.
    ///
    /// # Errors
    /// What `ovs-vsctl` says.
    pub fn set(&self, changes: &[String]) -> Result<String, String> {
        let mut command = told_where(Command::new("ovs-vsctl"), &self.folder);
        command.arg(format!("--db=unix:{}", self.folder.join("db.sock").display())).arg("--timeout=10");
        for change in changes {
            command.arg("--").args(change.split_whitespace());
        }
        lab::run(&mut command).map_err(|error| error.to_string())
    }

    /// A question or an order to the switch itself, as for `ovs-appctl`.
    ///
    /// # Errors
    /// What `ovs-appctl` says.
    pub fn tell(&self, words: &str) -> Result<String, String> {
        let mut command = told_where(Command::new("ovs-appctl"), &self.folder);
        command.arg("-t").arg(self.folder.join("switch.ctl")).args(words.split_whitespace());
        lab::run(&mut command).map_err(|error| error.to_string())
    }
}
