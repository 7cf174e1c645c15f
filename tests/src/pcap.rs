//! Captures as files, and tshark's opinion of them.

use std::path::Path;
use std::process::Command;

use crate::run;

/// Writes Ethernet frames as a capture.
///
/// # Panics
/// If the file cannot be written.
pub fn write_pcap(file: &Path, frames: &[Vec<u8>]) {
    let mut bytes = Vec::new();
    let word = |bytes: &mut Vec<u8>, word: u32| bytes.extend(word.to_le_bytes());
    // Magic, version 2.4, time zone and accuracy (0), longest frame, Ethernet.
    for field in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1] {
        word(&mut bytes, field);
    }
    for (number, frame) in (0..).zip(frames) {
        let length = u32::try_from(frame.len()).expect("a frame");
        [number, 0, length, length].into_iter().for_each(|field| word(&mut bytes, field));
        bytes.extend(frame);
    }
    std::fs::write(file, bytes).expect("a capture file");
}

/// Runs tshark on a capture with all checksums checked, with more arguments; what it prints.
///
/// # Panics
/// If tshark fails.
pub fn tshark(file: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    for checked in ["ip", "udp", "tcp"] {
        command.args(["-o", &format!("{checked}.check_checksum:TRUE")]);
    }
    run(command.args(arguments))
}
