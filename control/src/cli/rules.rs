//! `peregrine rules`: the rules of the running daemon shown and replaced.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use peregrine_config::{RuleTable, rules_file, rules_toml};
use serde_json::{Value, json};

use super::{Ask, print, show_with};
use crate::client::Client;
use crate::error::Error;
use crate::render;

/// What happens to the rules.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Show the rules in force.
    List(List),
    /// Replace all rules, while packets flow: none is lost, and in each class they keep their order.
    ///
    /// It returns when the new rules are in force. The config is not changed: after a restart its rules hold.
    Set(File),
    /// Tell what would be wrong with rules for the running daemon, and change nothing.
    Check(File),
}

/// Which way they are shown.
#[derive(Debug, Args)]
pub struct List {
    /// Print them as a file for `rules set`.
    #[arg(long, conflicts_with = "json")]
    pub toml: bool,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// Rules to be taken.
#[derive(Debug, Args)]
pub struct File {
    /// A file with nothing but `[[rules]]` as in a config; `rules = []` for none.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// So long new rules may take until all workers go by them; it is some ten milliseconds where all is well.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Does what it says.
///
/// # Errors
/// [`Error`]: mistakes in the file, or what the daemon says.
pub fn execute(command: &RulesCommand) -> Result<(), Error> {
    match command {
        RulesCommand::List(List { toml: true, ask }) => {
            let mut answer = Client::connect(&ask.socket)?.call("rules.get")?;
            let tables: Result<Vec<RuleTable<'_>>, _> = serde_json::from_value(answer["rules"].take());
            let tables = tables.map_err(|error| Error::Answer {
                path: ask.socket.clone(),
                reason: format!("its rules are not what they should be: {error}"),
            })?;
            print(&rules_toml(&tables))
        }
        RulesCommand::List(List { ask, .. }) => show_with(ask, "rules.get", &json!({}), render::rules),
        RulesCommand::Check(File { file, ask }) => {
            let answer = send(&mut Client::connect(&ask.socket)?, "rules.check", file)?;
            print(&answer_text(ask, &answer, |count| format!("{}: ok — {count}\n", file.display())))
        }
        RulesCommand::Set(File { file, ask }) => {
            let mut client = Client::connect(&ask.socket)?;
            let mut answer = send(&mut client, "rules.set", file)?;
            let status = settle(&mut client, ask)?;
            if let Some(reason) = status["not_early"].as_str() {
                warn(&format!("no rule is followed from the driver on: {reason}"));
            }
            answer["status"] = status;
            print(&answer_text(ask, &answer, |count| format!("{count} in force\n")))
        }
    }
}

/// Sends a file's rules, and prints the warnings that come back.
fn send(client: &mut Client, method: &str, file: &Path) -> Result<Value, Error> {
    let rules = rules_file(file).map_err(Error::Config)?;
    let named = |error| match error {
        Error::Mistakes { lines } => {
            let line = |line: String| format!("{}: {line}", file.display());
            Error::Mistakes { lines: lines.into_iter().map(line).collect() }
        }
        other => other,
    };
    let answer = client.call_with(method, &json!(rules)).map_err(named)?;
    for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        warn(warning);
    }
    Ok(answer)
}

fn warn(text: &str) {
    let _nobody_reads = writeln!(io::stderr(), "peregrine: warning: {text}");
}

/// Waits until all workers go by the last rules.
fn settle(client: &mut Client, ask: &Ask) -> Result<Value, Error> {
    let deadline = Instant::now() + SETTLE_PATIENCE;
    loop {
        let status = client.call("status")?["rules"].take();
        if status["step"] == "settled" {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let seconds = SETTLE_PATIENCE.as_secs();
            let why = status["not_early"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
            return Err(Error::Answer {
                path: ask.socket.clone(),
                reason: format!(
                    "it has the new rules, but they have not settled within {seconds} s, step {}{why}: `peregrine status` tells when they have",
                    status["step"]
                ),
            });
        }
        std::thread::sleep(LOOK);
    }
}

fn answer_text(ask: &Ask, answer: &Value, human: impl FnOnce(String) -> String) -> String {
    if ask.json {
        return format!("{answer}\n");
    }
    human(render::rules_count(&answer["count"]))
}
