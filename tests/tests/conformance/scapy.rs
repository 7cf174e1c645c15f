//! scapy as the maker of frames: `frames.py` runs beside the suite and builds what it is asked for.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The interpreter that Debian's scapy belongs to.
const PYTHON: &str = "/usr/bin/python3";

/// The program, and what it has built so far.
#[derive(Debug)]
pub struct Scapy {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    built: HashMap<String, Vec<u8>>,
}

impl Scapy {
    pub fn start() -> Scapy {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/frames.py");
        let mut command = Command::new(PYTHON);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let (ask, answer) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Scapy { child, ask, answer: BufReader::new(answer), built: HashMap::new() }
    }

    /// The bytes of a frame, as scapy writes what the expression says.
    pub fn frame(&mut self, expression: &str) -> Vec<u8> {
        if let Some(built) = self.built.get(expression) {
            return built.clone();
        }
        writeln!(self.ask, "{}", expression.replace('\n', " ")).expect("python3 listens");
        let mut line = String::new();
        self.answer.read_line(&mut line).expect("python3 answers");
        assert!(!line.starts_with("error"), "scapy cannot build {expression}: {}", line.trim());
        let digits = line.trim().as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let frame: Vec<u8> = digits.map(byte).collect();
        self.built.insert(expression.to_string(), frame.clone());
        frame
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
