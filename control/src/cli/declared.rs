//! `peregrine apply`, `export`, `watch` and `schema`: all that is declared at the control socket as one file, and what changes in it.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{Ask, print};
use crate::client::{CHANGE_TIMEOUT, Client};
use crate::error::Error;
use crate::model::types::Export;
use crate::render::objects as render;

/// `peregrine apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// A file with the lists `networks`, `ports` and `endpoints`, in TOML or JSON; - for standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Show what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse if something was changed since the file was exported.
    #[arg(long)]
    pub if_unchanged: bool,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// `peregrine export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// As TOML.
    #[arg(long, conflicts_with = "json")]
    pub toml: bool,
    /// Where and how.
    #[command(flatten)]
    pub ask: Ask,
}

/// `peregrine watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Begin with what came after this generation of the state.
    #[arg(long, value_name = "GENERATION")]
    pub from: Option<u64>,
    /// Where and how; with `--json` one object a line, the first of which says where it begins.
    #[command(flatten)]
    pub ask: Ask,
}

/// The longest file.
const FILE_BYTES_MAX: u64 = crate::rpc::LONG_LINE_BYTES_MAX as u64;

/// Does what `peregrine apply` says.
///
/// # Errors
/// What the daemon says, or a file that is none.
pub fn apply(args: &Apply) -> Result<(), Error> {
    let mut params = read(&args.file)?;
    let Some(keys) = params.as_object_mut() else {
        return Err(wrong(&args.file, "it is to have the lists networks, ports and endpoints".into()));
    };
    // An empty file, or half of one, is more likely a mistake than the wish to remove the rest.
    if let Some(list) = ["networks", "ports", "endpoints"].into_iter().find(|list| !keys.contains_key(*list))
    {
        let text = format!("it has no list `{list}`: write {list} = [] if there are to be none");
        return Err(wrong(&args.file, text));
    }
    if !args.if_unchanged {
        keys.remove("generation");
    } else if !keys.contains_key("generation") {
        return Err(wrong(
            &args.file,
            "it has no generation, which --if-unchanged compares: export writes it".into(),
        ));
    }
    keys.insert("dry_run".into(), args.dry_run.into());
    let mut client = Client::connect(&args.ask.socket)?;
    let answer = client.call_within("apply", &params, CHANGE_TIMEOUT).map_err(|error| match error {
        Error::Refused { lines, is_invalid } => {
            let named = |line: String| format!("{}: {line}", args.file.display());
            Error::Refused { lines: lines.into_iter().map(named).collect(), is_invalid }
        }
        other => other,
    })?;
    print(&if args.ask.json { format!("{answer}\n") } else { render::applied(&answer) })
}

/// A file in either format.
fn read(path: &Path) -> Result<Value, Error> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text),
        false => {
            std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        }
    };
    read.map_err(|e| wrong(path, e.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(path, format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    parse(&text).map_err(|reason| wrong(path, reason))
}

/// JSON begins with a brace, which TOML cannot.
fn parse(text: &str) -> Result<Value, String> {
    match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|e| e.to_string()),
        false => toml::from_str(text).map_err(|e: toml::de::Error| {
            let line = e.span().map(|at| text.get(..at.start).unwrap_or_default().matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            format!("{place}{}", e.message().replace('\n', ", "))
        }),
    }
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::File { path: path.to_owned(), reason }
}

/// Does what `peregrine export` says.
///
/// # Errors
/// What the daemon says.
pub fn export(args: &ExportArgs) -> Result<(), Error> {
    let answer = Client::connect(&args.ask.socket)?.call_within("export", &json!({}), CHANGE_TIMEOUT)?;
    if args.ask.json {
        return print(&format!("{answer}\n"));
    }
    let failed = |reason: String| Error::Answer {
        path: args.ask.socket.clone(),
        reason: format!("its export is not what it should be: {reason}"),
    };
    let export: Export = serde_json::from_value(answer).map_err(|e| failed(e.to_string()))?;
    let text = match args.toml {
        true => toml::to_string(&export).map_err(|e| failed(e.to_string()))?,
        false => serde_json::to_string_pretty(&export).map_err(|e| failed(e.to_string()))? + "\n",
    };
    print(&text)
}

/// Does what `peregrine watch` says, until the daemon ends or somebody presses Ctrl-C.
///
/// # Errors
/// What the daemon says.
pub fn watch(args: &WatchArgs) -> Result<(), Error> {
    let mut client = Client::connect(&args.ask.socket)?;
    let params = args.from.map_or_else(|| json!({}), |from| json!({ "from": from }));
    let answer = client.call_with("watch", &params)?;
    print(&if args.ask.json { format!("{answer}\n") } else { render::watching(&answer) })?;
    loop {
        let told = client.notification()?;
        if told["method"] == "changed" {
            let changed = &told["params"];
            print(&if args.ask.json { format!("{changed}\n") } else { render::changed(changed) })?;
        }
    }
}

/// Does what `peregrine schema` says: for that no daemon is needed.
///
/// # Errors
/// Nobody reads it.
pub fn schema(is_line: bool) -> Result<(), Error> {
    let schema = crate::declared::schema();
    print(&if is_line { format!("{schema}\n") } else { format!("{schema:#}\n") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_in_either_format() {
        let want = json!({"networks": [{"name": "blue", "vni": 42}], "endpoints": []});
        assert_eq!(parse("endpoints = []\n[[networks]]\nname = \"blue\"\nvni = 42\n"), Ok(want.clone()));
        assert_eq!(parse(&format!(" \n{want:#}")), Ok(want));
        assert_eq!(parse(""), Ok(json!({})));
        let error = parse("networks = 1\nports = [\n").unwrap_err();
        assert!(error.starts_with("line ") && !error.contains('\n'), "{error}");
        assert!(parse("{\"networks\": ]}").unwrap_err().contains("line 1 column"));
    }

    #[test]
    fn what_is_exported_can_be_applied() {
        let export = json!({
            "format": 1, "generation": 7, "networks": [{"name": "blue", "vni": 42, "remotes": ["10.0.0.1"]}],
            "ports": [{"name": "p", "memif": {"socket": "@x", "id": 3, "secret": "hush"}}],
            "endpoints": [{"name": "web", "network": "blue", "mac": "02:00:00:00:00:01", "port": "p"}],
        });
        let typed: Export = serde_json::from_value(export.clone()).unwrap();
        assert_eq!(parse(&toml::to_string(&typed).unwrap()), Ok(export.clone()));
        assert_eq!(parse(&serde_json::to_string_pretty(&typed).unwrap()), Ok(export));
    }
}
