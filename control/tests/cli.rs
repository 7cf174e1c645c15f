//! The command line without a daemon: needs no root.

use std::process::{Command, Output};

fn peregrine(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peregrine")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_good_config_is_told_in_one_line() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let output = peregrine(&["check", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(said.contains(": ok — 1 worker, ") && said.lines().count() == 1, "{said}");
        seen += 1;
    }
    assert!(seen > 0, "no examples in {examples}");
}

#[test]
fn all_mistakes_of_a_config_are_told_and_the_status_is_two() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "wokers = 1\n[uplink]\ninterface = \"\"\n").unwrap();
    for arguments in [&["check"][..], &["run", "-c"]] {
        let output = peregrine(&[arguments, &[file.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(
            said.lines().count() > 1 && said.lines().all(|l| l.starts_with("peregrine: error: ")),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = peregrine(&["check", "/nonexistent/x.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nonexistent/x.toml"), "{}", stderr(&output));
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    for what in ["status", "stats", "fdb"] {
        let output = peregrine(&[what, "--json", "--socket", "/nonexistent/x.sock"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(stderr(&output).contains("start it with `peregrine run -c FILE`"), "{}", stderr(&output));
    }
}

#[test]
fn what_may_be_meant_is_told_with_the_subcommands_help() {
    for (arguments, want) in [
        (
            &["status", "--jsn"][..],
            "unexpected argument '--jsn' found: a similar argument exists: '--json': see `peregrine status --help`",
        ),
        (&["fdb", "add", "--mac", "x"], "see `peregrine fdb add --help`"),
        (&["remote"], "no command is given: see `peregrine remote --help`"),
        (&["statu"], "see `peregrine --help`"),
    ] {
        let said = stderr(&peregrine(arguments));
        assert!(said.trim_end().ends_with(want) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn bad_arguments_have_status_two() {
    for arguments in [&["run"][..], &["nonsense"], &["status", "--nonsense"], &[]] {
        assert_eq!(peregrine(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
