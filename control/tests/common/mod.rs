//! Two network namespaces with a wire between them, removed when the test ends, however it ends.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod bench;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);
const PREFIX: &str = "pgctl";

/// `here` has `ov0` with 10.9.0.1/24, `there` has `ov1` with 10.9.0.2/24, and they are the two ends of a veth.
pub struct Net {
    pub here: String,
    pub there: String,
}

impl Net {
    pub fn new() -> Net {
        remove_left_behind();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("{PREFIX}-{}-{number}-{side}", std::process::id());
        let net = Net { here: name("here"), there: name("there") };
        for namespace in [&net.here, &net.there] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("link add ov0 netns {} type veth peer name ov1 netns {}", net.here, net.there));
        net.here("addr add 10.9.0.1/24 dev ov0");
        net.there("addr add 10.9.0.2/24 dev ov1");
        net.here("link set ov0 up");
        net.there("link set ov1 up");
        net
    }

    /// `ip` in our namespace.
    pub fn here(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.here))
    }

    /// `ip` in the other one.
    pub fn there(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.there))
    }

    /// Moves this thread, and what it starts, into `here`.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.here)).expect("our namespace");
        rustix::thread::move_into_link_name_space(
            file.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .expect("root");
    }

    /// A command in `here`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.here, program]);
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.here, &self.there] {
            let _gone = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// What a test run that was killed could not remove.
fn remove_left_behind() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        if let (Some(PREFIX), Some(pid)) = (parts.next(), parts.next())
            && !std::path::Path::new("/proc").join(pid).exists()
        {
            let _gone = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Runs `ip`, which must succeed.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Says what a test leaves out on this machine, and why; `make test` lists it at the end. Not by a macro: what those print is shown of tests
/// that fail only.
pub fn left_out(what: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "\nleft out: {what}");
}

/// Standard output and error.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Tries until it holds; panics with `what` after `seconds`.
pub fn until(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
    }
}
