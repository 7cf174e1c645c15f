//! What the crate's manual claims, as far as a test can read: each test that "Peers and their quirks" names is there.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

/// All Rust files under `folder`, as one text.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => fs::read_to_string(path).unwrap(),
    });
    texts.collect()
}

#[test]
fn every_test_that_the_manual_names_exists() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = fs::read_to_string(crate_folder.join("src/lib.rs")).unwrap();
    let section =
        manual.split("//! # Peers and their quirks").nth(1).unwrap().split("//! # ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("//! | ")).skip(1);
    let code = sources(&crate_folder.join("src")) + &sources(&crate_folder.join("tests"));
    let mut named = 0;
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() || last.starts_with("none: "), "no test, and no reason: {row}");
        for name in names {
            assert!(code.contains(&format!("fn {name}()")), "there is no test {name}");
            named += 1;
        }
    }
    assert!(named >= 18, "only {named} tests were read from the manual");
}
