//! The house rules that a compiler does not check: which crate may use which, where `unsafe` may stand, what the
//! path of a frame may not touch, and that ARCHITECTURE.md names every file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All Rust files under `folder`, with their text, paths relative to the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// What a crate's `[dependencies]` name of ours (not its dev-dependencies).
fn our_dependencies(folder: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = text.split("\n[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
    let names = section.lines().filter_map(|line| line.strip_prefix("peregrine-"));
    names.map(|rest| rest.split(['.', ' ', '=']).next().unwrap().to_string()).collect()
}

#[test]
fn crates_use_only_what_the_design_allows() {
    for (folder, allowed) in [
        ("dataplane/memif", &[][..]),
        ("dataplane", &["memif"]),
        ("config", &["dataplane", "memif"]),
        ("control", &["config", "dataplane", "memif"]),
        ("pktgen", &["dataplane", "memif"]),
        ("perf", &["config", "control", "dataplane", "memif", "pktgen"]),
    ] {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| name.to_string()).collect();
        let used = our_dependencies(folder);
        assert!(used.is_subset(&allowed), "{folder} uses {used:?}; allowed are {allowed:?}");
    }
}

#[test]
fn unsafe_stays_behind_the_fence() {
    let fence = [
        "dataplane/memif/src/",
        "dataplane/src/sys.rs",
        "dataplane/src/xsk/",
        "dataplane/src/frame.rs",
        "dataplane/src/ring.rs",
        "dataplane/src/clock.rs",
    ];
    for folder in ["dataplane/src", "config/src", "control/src", "pktgen/src", "perf/src", "tests/src"] {
        for (name, text) in sources(folder) {
            let inside = fence.iter().any(|start| name.starts_with(start));
            let code = text.lines().map(|line| line.split("//").next().unwrap_or(""));
            let uses = code.filter(|line| {
                let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
                words.any(|word| word == "unsafe")
            });
            assert!(inside || uses.count() == 0, "{name} says `unsafe` outside the fence: {fence:?}");
        }
    }
}

/// The modules that know no I/O and no neighbour above them.
#[test]
fn the_lower_rooms_know_nothing_of_the_upper_ones() {
    let upper = ["crate::engine", "crate::worker", "crate::xsk", "crate::sys", "crate::mailbox"];
    let io = ["std::fs", "std::io", "std::thread", "std::process", "libc::", "println!", "eprintln!"];
    for (name, text) in sources("dataplane/src") {
        let code: String = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or("")
            .lines()
            .fold(String::new(), |all, line| all + line.split("//").next().unwrap_or("") + "\n");
        let is = |prefix: &str| name.starts_with(&format!("dataplane/src/{prefix}"));
        let forbidden: Vec<&str> =
            if ["wire/", "tables.rs", "fdb.rs", "types.rs", "frame.rs", "ring.rs", "placement.rs", "mesh.rs"]
                .iter()
                .any(|prefix| is(prefix))
            {
                [&upper[..], &io, &["crate::stages", "crate::tenants", "peregrine_memif"]].concat()
            } else if is("stages/") || is("tenants.rs") {
                [&upper[..], &io].concat()
            } else {
                continue;
            };
        for word in forbidden {
            assert!(!code.contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn the_architecture_names_every_file_of_the_engine_and_every_crate() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (name, _) in sources("dataplane/src").into_iter().chain(sources("dataplane/memif/src")) {
        let file =
            name.trim_start_matches("dataplane/").trim_start_matches("src/").trim_start_matches("memif/src/");
        let listed = file.ends_with("tests.rs")
            || name.contains("/tests/")
            || text.contains(file.rsplit('/').next().unwrap());
        assert!(listed, "ARCHITECTURE.md does not name {name}");
    }
    for folder in ["dataplane/", "memif/", "bpf/", "config/", "control/", "pktgen/", "perf/", "tests/"] {
        assert!(text.contains(folder), "ARCHITECTURE.md does not name {folder}");
    }
}

#[test]
fn nothing_unfinished_is_left_in_the_sources() {
    let marks = ["todo!(", "unimplemented!(", concat!("FIX", "ME"), concat!("XX", "X")];
    for folder in ["dataplane", "config", "control/src", "pktgen/src", "perf/src", "tests"] {
        for (name, text) in sources(folder) {
            if name.ends_with("tidy.rs") {
                continue;
            }
            for mark in marks {
                assert!(!text.contains(mark), "{name} has {mark}");
            }
        }
    }
}

#[test]
fn the_documents_are_finished() {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(!text.contains("@@"), "{name} has a place that was to be filled in");
    }
}

/// Tests that need root say so in one way, so that the runner finds them.
#[test]
fn ignored_tests_are_those_that_need_root() {
    for folder in ["dataplane", "config", "control", "pktgen", "tests"] {
        for (name, text) in sources(folder) {
            for line in text.lines().filter(|line| line.trim_start().starts_with("#[ignore")) {
                assert!(line.contains("needs root: make test runs it"), "{name}: {line}");
            }
        }
    }
}
