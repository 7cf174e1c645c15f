//! The command line without a daemon: needs no root.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
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
    for what in [
        &["status"][..],
        &["stats"],
        &["fdb"],
        &["network", "list"],
        &["port", "remove", "p"],
        &["endpoint", "move", "web", "p"],
        &["export"],
        &["watch"],
    ] {
        let output = peregrine(&[what, &["--json", "--socket", "/nonexistent/x.sock"]].concat());
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
    let mac = "02:00:00:00:00:01";
    let both = ["endpoint", "add", "web", "--network", "blue", "--mac", mac, "--port", "p", "--id", "3"];
    for arguments in [&["run"][..], &["nonsense"], &["status", "--nonsense"], &[], &both] {
        assert_eq!(peregrine(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// What `peregrine` asked of a daemon that gives this answer (`result` or `error`), and more lines after it; and what it made of it.
fn asked(arguments: &[&str], answer: &str, more: &str) -> (serde_json::Value, Output) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,{answer}}}\n{more}");
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    });
    let output = peregrine(&[arguments, &["--socket", path.to_str().unwrap()]].concat());
    (daemon.join().unwrap(), output)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_change_is_asked_for_with_the_keys_that_were_given() {
    let done = "\"result\":{\"generation\":3}";
    let (request, output) = asked(
        &["endpoint", "add", "web", "--network", "blue", "--mac", "02:00:00:00:00:01", "--port", "p"],
        done,
        "",
    );
    assert_eq!((&*stdout(&output), output.status.code()), ("endpoint web is on network blue\n", Some(0)));
    assert_eq!(request["method"], "change");
    let want = serde_json::json!({"changes": [{"add_endpoint":
        {"name": "web", "network": "blue", "mac": "02:00:00:00:00:01", "port": "p"}}], "dry_run": false});
    assert_eq!(request["params"], want);
    let (request, output) = asked(&["network", "remove", "a", "b", "--json", "--dry-run"], done, "");
    assert_eq!(stdout(&output), "{\"generation\":3}\n");
    let want =
        serde_json::json!({"changes": [{"remove_network": "a"}, {"remove_network": "b"}], "dry_run": true});
    assert_eq!(request["params"], want);
}

#[test]
fn a_secret_comes_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "hush\n").unwrap();
    let arguments =
        ["port", "add", "p", "--memif", "@x", "--id", "3", "--secret-file", file.to_str().unwrap()];
    let (request, _) = asked(&arguments, "\"result\":{}", "");
    let want = serde_json::json!({"name": "p", "memif": {"socket": "@x", "id": 3, "secret": "hush"}});
    assert_eq!(request["params"]["changes"][0]["add_port"], want);
}

#[test]
fn what_the_daemon_says_against_it_is_told_line_by_line() {
    for (code, status) in [(-32602, 2), (-32000, 1)] {
        let answer = format!(
            "\"error\":{{\"code\":{code},\"message\":\"x\",\"data\":{{\"errors\":[\"changes[0].add_network.vni = 0: too small\",\"two\"]}}}}"
        );
        let (_, output) = asked(&["network", "add", "blue", "--vni", "0"], &answer, "");
        assert_eq!(stderr(&output), "peregrine: error: vni = 0: too small\nperegrine: error: two\n");
        assert!(output.stdout.is_empty());
        assert_eq!(output.status.code(), Some(status));
    }
    let (_, output) = asked(&["export"], "\"error\":{\"code\":-32000,\"message\":\"only root\"}", "");
    assert!(stderr(&output).contains("it refused export: only root"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_file_is_applied_and_the_difference_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.toml");
    std::fs::write(
        &file,
        "format = 1\ngeneration = 7\nports = []\nendpoints = []\n[[networks]]\nname = \"blue\"\nvni = 42\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let answer = "\"result\":{\"added\":[{\"kind\":\"network\",\"name\":\"blue\"}],\"totals\":{\"added\":1},\"dry_run\":true}";
    let (request, output) = asked(&["apply", file, "--dry-run"], answer, "");
    let networks = serde_json::json!([{"name": "blue", "vni": 42}]);
    let want =
        serde_json::json!({"format": 1, "networks": networks, "ports": [], "endpoints": [], "dry_run": true});
    assert_eq!(request["params"], want);
    assert_eq!(
        stdout(&output),
        "+ network blue\n1 added, 0 changed, 0 removed (dry run: nothing was changed)\n"
    );
    let (request, _) = asked(&["apply", file, "--if-unchanged"], answer, "");
    assert_eq!((&request["params"]["generation"], &request["params"]["dry_run"]), (&7.into(), &false.into()));
    let half = "networks = []\nports = []\n";
    for (text, want) in [
        ("[[networks]\n", "line 1"),
        ("{\"a\": ", "EOF"),
        ("", "it has no list `networks`: write networks = []"),
        (half, "it has no list `endpoints`"),
    ] {
        let bad = dir.path().join("bad");
        std::fs::write(&bad, text).unwrap();
        let output = peregrine(&["apply", bad.to_str().unwrap()]);
        let said = stderr(&output);
        assert!(said.contains("/bad: ") && said.contains(want) && said.lines().count() == 1, "{said}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn what_changes_is_printed_until_the_daemon_ends() {
    let told = "{\"jsonrpc\":\"2.0\",\"method\":\"changed\",\"params\":{\"generation\":8,\"added\":[{\"kind\":\"port\",\"name\":\"p\"}]}}\n";
    let answer = "\"result\":{\"generation\":7,\"version\":\"1\"}";
    let (request, output) = asked(&["watch", "--from", "7"], answer, told);
    assert_eq!(request["params"]["from"], 7);
    assert_eq!(stdout(&output), "generation 7\ngeneration 8: added port p\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("it closed the connection"), "{}", stderr(&output));
    let (_, output) = asked(&["watch", "--json"], answer, told);
    assert!(stdout(&output).lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn completions_need_no_daemon() {
    let output = peregrine(&["completion", "bash"]);
    assert!(output.status.success() && stdout(&output).contains("--if-unchanged"));
}
