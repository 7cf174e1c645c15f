//! The state file: what was declared at the control socket, kept over a restart. A change is written before it is answered: as a record at the end of
//! a journal beside the file (`FILE.journal`), or, when that has become larger than the file, as a whole, to another file that
//! then takes its place. What was before is kept as `FILE.last`, with its journal.
//!
//! What must hold: whatever happens while it is written, file and journal together are one whole state. What is not whole, or was written by
//! another version, is never read in part: the daemon does not start, and says what to do.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use peregrine_dataplane::engine::Change;
use peregrine_dataplane::plan::{Plan, PortPlan};
use peregrine_dataplane::types::{EndpointId, NetworkId};
use serde::Deserialize;
use serde_json::Value;

use super::journal::{self, Damage, Journal, Lists, Objects, Record};
use super::prepared::Prepared;
use super::stage::{Against, Stage};
use super::types::Kind;
use super::{About, Model, Runtime};
use crate::error::Error;
use crate::socket;
use crate::tenants::Coming;

/// Of `export`.
pub const FORMAT: u32 = 1;
/// Of the file, which is not all there is: who does not know the journal must not read it.
const FORMAT_WITH_JOURNAL: u32 = 2;
/// Of files that can be read.
pub const FORMATS: [u32; 2] = [FORMAT, FORMAT_WITH_JOURNAL];
/// A journal may become so large even if the file is not.
const JOURNAL_BYTES_MIN: u64 = 256 << 10;
/// What nobody has ever written: 65,534 endpoints take some 30 MiB.
const BYTES_MAX: u64 = 1 << 30;
/// It has secrets.
const MODE: u32 = 0o600;
/// What stands between the state and its check.
const CHECK: &str = ",\"check\":\"";

/// Where the state is kept.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    journal: Journal,
    /// Bytes of the file without its journal.
    bytes: u64,
    /// It must be written as a whole before it can have a journal: it is of an older format, or the journal's end is not sure.
    must_be_whole: bool,
}

/// A change that has been written, and may yet come to nothing.
#[derive(Debug)]
pub struct Written<'f> {
    file: &'f mut StateFile,
    how: How,
}

#[derive(Debug)]
enum How {
    /// In the journal, which had so many bytes before.
    Appended { before: u64 },
    /// Beside the file.
    Beside { bytes: u64 },
}

/// The state without its end, as `export` has it.
pub fn body(generation: u64, objects: &[Vec<&str>; 3]) -> String {
    body_as(FORMAT, generation, objects)
}

fn body_as(format: u32, generation: u64, [networks, ports, endpoints]: &[Vec<&str>; 3]) -> String {
    let bytes: usize =
        [networks, ports, endpoints].iter().flat_map(|list| list.iter()).map(|t| t.len() + 2).sum();
    let mut text = String::with_capacity(bytes + 128);
    text.push_str(&format!("{{\"format\":{format},\"generation\":{generation}"));
    for (key, list) in [("networks", networks), ("ports", ports), ("endpoints", endpoints)] {
        text.push_str(&format!(",\"{key}\":["));
        for (nth, object) in list.iter().enumerate() {
            // An object a line, for people and for `diff`.
            text.push_str(if nth == 0 { "\n" } else { ",\n" });
            text.push_str(object);
        }
        text.push(']');
    }
    text
}

/// The whole text of the file.
pub fn text(generation: u64, objects: &[Vec<&str>; 3]) -> String {
    let body = body_as(FORMAT_WITH_JOURNAL, generation, objects);
    let check = crc32fast::hash(body.as_bytes());
    format!("{body}{CHECK}{check:08x}\"}}\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    generation: u64,
    networks: Vec<Value>,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
    /// Looked at before this is made.
    check: String,
}

/// Enough to tell another format.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What a text says, or why it is no state.
fn read(text: &[u8]) -> Result<Contents, String> {
    let Format { format } = serde_json::from_slice(text).map_err(|error| one_line(&error))?;
    if !FORMATS.contains(&format) {
        let [first, last] = FORMATS;
        return Err(format!(
            "format = {format}: this version of peregrine reads {first} and {last}: start the one that wrote it"
        ));
    }
    let damaged = || "check: it is not what was written".to_owned();
    let end = text.len().checked_sub(CHECK.len() + 11).ok_or_else(damaged)?;
    let (body, check) = text.split_at_checked(end).ok_or_else(damaged)?;
    let want = format!("{CHECK}{:08x}\"}}\n", crc32fast::hash(body));
    if check != want.as_bytes() {
        return Err(damaged());
    }
    serde_json::from_slice(text).map_err(|error| one_line(&error))
}

fn one_line(error: &serde_json::Error) -> String {
    error.to_string().replace(char::is_control, " ")
}

impl StateFile {
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    fn failed(&self, doing: &str, error: &io::Error) -> String {
        format!("the state file {}: {doing}: {error}", self.path.display())
    }

    /// It has no journal.
    pub fn is_whole(&self) -> bool {
        self.journal.bytes() == 0 && !self.must_be_whole
    }

    /// Writes a change: its record, or the whole state after it.
    ///
    /// # Errors
    /// One line; nothing has changed then.
    pub fn write(&mut self, record: &str, whole: impl FnOnce() -> String) -> Result<Written<'_>, String> {
        let before = self.journal.bytes();
        let most = self.bytes.max(JOURNAL_BYTES_MIN);
        if self.must_be_whole || before + record.len() as u64 > most {
            return self.write_beside(&whole());
        }
        let journal = self.beside(".journal");
        if let Err(error) = self.journal.append(&journal, record) {
            self.must_be_whole = self.journal.cut(before).is_err();
            return Err(self.failed("its journal cannot be written", &error));
        }
        Ok(Written { file: self, how: How::Appended { before } })
    }

    /// Writes a state beside the one that counts.
    ///
    /// # Errors
    /// One line.
    pub fn write_beside(&mut self, text: &str) -> Result<Written<'_>, String> {
        let write = || {
            let path = self.beside(".new");
            // One that was left behind may be readable by others, or be a link.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| self.failed("it cannot be written", &error))?;
        Ok(Written { file: self, how: How::Beside { bytes: text.len() as u64 } })
    }

    /// What the file has, if it is there, and its journal: what came after that. And how many bytes of the journal are whole.
    fn read(&mut self) -> Result<Option<(Contents, usize)>, Error> {
        let refused = |why: String| self.refused(why);
        let mut text = Vec::new();
        let found = File::open(&self.path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut text));
        let others = [".last", ".journal"].map(|ending| self.beside(ending));
        match found {
            Ok(bytes) => self.bytes = bytes as u64,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match others.iter().find(|other| other.exists()) {
                    Some(other) => Err(refused(format!("it is gone, and {} is there", other.display()))),
                    None => Ok(None),
                };
            }
            Err(error) => return Err(refused(format!("it cannot be read: {error}"))),
        }
        let contents = read(&text).map_err(|why| self.refused(why))?;
        let [_, journal] = others;
        let text = Journal::text(&journal)
            .map_err(|error| self.refused(format!("its journal cannot be read: {error}")))?;
        let (records, bytes) = journal::read(&text, contents.generation)
            .map_err(|damage| self.journal_refused(&journal, &damage))?;
        Ok(Some((after(contents, records), bytes)))
    }

    /// Takes up the journal behind what is whole of it. What to say if that was not all.
    fn go_on(&mut self, format: u32, bytes: usize) -> io::Result<Option<String>> {
        self.must_be_whole = format != FORMAT_WITH_JOURNAL;
        let path = self.beside(".journal");
        let length = match fs::symlink_metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.journal = Journal::go_on(&path, bytes as u64)?;
        Ok((length > bytes as u64).then(|| {
            format!(
                "the state file's journal {}: its last record, at byte {bytes}, was not written to its end: that change was never answered, and is \
                 not there",
                path.display()
            )
        }))
    }

    /// Why the daemon does not start, and the way out.
    fn refused(&self, why: String) -> Error {
        let [last, journal, last_journal] = [".last", ".journal", ".last.journal"].map(|it| self.beside(it));
        let path = self.path.display();
        let way_out = if last.exists() {
            // What is in the journal belongs to the file.
            let and = match (last_journal.exists(), journal.exists()) {
                (true, _) => format!(" && mv {} {}", last_journal.display(), journal.display()),
                (false, true) => format!(" && rm {}", journal.display()),
                (false, false) => String::new(),
            };
            format!("to go back to what was before it: mv {} {path}{and}", last.display())
        } else {
            "to begin without it, move it away".to_owned()
        };
        Error::State { path: self.path.clone(), why, way_out }
    }

    /// It says what cannot be beside the config: the same is declared in both, or what it needs is not declared there any more. Of anything
    /// else that is wrong with it the config knows no way out.
    fn contradicted(&self, (why, against): (String, Option<Against>)) -> Error {
        let first = match against {
            None => return self.refused(why),
            Some(Against::Config) => {
                "to have it by the config, start without it there, remove it (`peregrine endpoint remove NAME`, or port, or network), and start with \
                 it again"
            }
            Some(Against::Gone) => {
                "if it was taken out of the config, put it back there; to do without it, remove what needs it then (`peregrine endpoint remove NAME`), \
                 and take it out again"
            }
        };
        match self.refused(why) {
            Error::State { path, why, way_out } => {
                Error::State { path, why, way_out: format!("{first}; {way_out}") }
            }
            other => other,
        }
    }

    fn journal_refused(&self, journal: &Path, Damage { at, why }: &Damage) -> Error {
        let path = journal.display();
        let why = format!("its journal {path}: at byte {at}: {why}");
        let way_out = format!(
            "to keep what is before that place, and lose the changes behind it: truncate -s {at} {path}"
        );
        Error::State { path: self.path.clone(), why, way_out }
    }
}

/// What there is after all changes.
fn after(contents: Contents, records: Vec<Record>) -> Contents {
    if records.is_empty() {
        return contents;
    }
    let Contents { format, mut generation, networks, ports, endpoints, check } = contents;
    let mut objects = Objects::of([networks, ports, endpoints]);
    for record in records {
        generation = record.generation;
        objects.apply(record);
    }
    let [networks, ports, endpoints] = objects.lists();
    Contents { format, generation, networks, ports, endpoints, check }
}

/// The text of a change's record.
pub fn record(generation: u64, prepared: &Prepared) -> String {
    fn sorted<'p, T>(
        all: &'p BTreeMap<String, Option<T>>,
        text: impl Fn(&'p T) -> Option<&'p str>,
    ) -> (Vec<&'p str>, Vec<&'p str>) {
        let (mut gone, mut now) = (Vec::new(), Vec::new());
        for (name, object) in all {
            match object.as_ref().and_then(&text) {
                Some(text) => now.push(text),
                None => gone.push(name.as_str()),
            }
        }
        (gone, now)
    }
    let networks = sorted(&prepared.networks, |network| Some(network.text.as_str()));
    // A port that belongs to an endpoint is part of that.
    let ports = sorted(&prepared.ports, |port| (!port.is_own).then_some(port.text.as_str()));
    let endpoints = sorted(&prepared.endpoints, |endpoint| Some(endpoint.text.as_str()));
    journal::record(generation, &[networks.0, ports.0, endpoints.0], &[networks.1, ports.1, endpoints.1])
}

impl Written<'_> {
    /// The change has come to nothing. What to say if a restart may yet know it.
    pub fn undo(self) -> String {
        let How::Appended { before } = self.how else { return String::new() };
        match self.file.journal.cut(before) {
            Ok(()) => String::new(),
            Err(error) => {
                self.file.must_be_whole = true;
                let failed = self.file.failed("its journal cannot be cut again", &error);
                format!("; and a restart before the next change may make it all the same: {failed}")
            }
        }
    }

    /// It counts. A whole state takes the place of the one before, which becomes `FILE.last`. At no moment is there no file.
    ///
    /// # Errors
    /// One line.
    pub fn keep(self) -> Result<(), String> {
        let How::Beside { bytes } = self.how else { return Ok(()) };
        let path = self.file.path.clone();
        let [new, last, link, journal, last_journal] =
            [".new", ".last", ".link", ".journal", ".last.journal"].map(|ending| self.file.beside(ending));
        let replace = || {
            // It belongs to the one before the last.
            let _none = fs::remove_file(&last_journal);
            if path.exists() {
                let _left_behind = fs::remove_file(&link);
                // A second name for it; a copy, where the file system has no such thing.
                fs::hard_link(&path, &link).or_else(|_| fs::copy(&path, &link).map(drop))?;
                fs::rename(&link, &last)?;
            }
            fs::rename(&new, &path)?;
            let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
            folder.sync_all()?;
            // All that is in it is in the file now, and is passed over if this comes to nothing.
            match fs::rename(&journal, &last_journal) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            folder.sync_all()
        };
        let replaced = replace();
        self.file.must_be_whole = replaced.is_err();
        replaced.map_err(|error| self.file.failed("it cannot be replaced", &error))?;
        (self.file.journal, self.file.bytes) = (Journal::default(), bytes);
        Ok(())
    }
}

/// What a config declares and what is kept in its state file: the model, and the plan that the engine begins with.
///
/// # Errors
/// The file is damaged, of another version, says what cannot be beside this config, or cannot be written.
pub fn load(plan: &Plan) -> Result<(Model, Plan), Error> {
    let mut model = Model::of(plan);
    let Some(path) = &plan.state else { return Ok((model, plan.clone())) };
    socket::make_directory(path)?;
    let journal = Journal::default();
    let mut file = StateFile { path: path.clone(), journal, bytes: 0, must_be_whole: false };
    let mut beginning = Beginning(plan.clone());
    match file.read()? {
        Some((contents, bytes)) => {
            let format = contents.format;
            model = restore(model, contents, plan, &mut beginning).map_err(|why| file.contradicted(why))?;
            let cut = file.go_on(format, bytes);
            model.cut =
                cut.map_err(|error| file.refused(format!("its journal cannot be taken up: {error}")))?;
        }
        None => {
            let empty = text(0, &model.texts(None));
            let first = file.write_beside(&empty).and_then(Written::keep);
            first.map_err(|why| file.refused(why))?;
        }
    }
    model.file = Some(file);
    Ok((model, beginning.0))
}

fn restore(
    mut model: Model,
    contents: Contents,
    plan: &Plan,
    beginning: &mut Beginning,
) -> Result<Model, (String, Option<Against>)> {
    let Contents { generation, networks, ports, endpoints, .. } = contents;
    let mut stage = Stage::new(&model, plan);
    stage.declare_all([networks, ports, endpoints]);
    let prepared = stage.finish(beginning).map_err(|mistaken| (mistaken.in_one_line(), mistaken.against))?;
    model.make(prepared, beginning).map_err(|why| (why, None))?;
    model.generation = generation;
    model.log.clear();
    model.log_names = 0;
    Ok(model)
}

impl Stage<'_, '_> {
    /// Lists of objects, each at its place.
    pub fn declare_all(&mut self, lists: Lists) {
        for (kind, list) in [Kind::Network, Kind::Port, Kind::Endpoint].into_iter().zip(lists) {
            for (nth, object) in list.into_iter().enumerate() {
                self.declare(kind, &format!("{}s[{nth}]", kind.name()), object);
            }
        }
    }
}

/// A plan that no engine has yet.
struct Beginning(Plan);

/// As many as ids can name.
const NETWORKS_MAX: usize = 4096;
const ENDPOINTS_MAX: usize = 65534;

impl Runtime for Beginning {
    fn vacant_networks(&self, count: usize) -> Vec<NetworkId> {
        (self.0.networks.end()..NETWORKS_MAX).take(count).map(|place| NetworkId(place as u16)).collect()
    }

    fn vacant_endpoints(&self, count: usize) -> Vec<EndpointId> {
        (self.0.endpoints.end()..ENDPOINTS_MAX).take(count).map(|place| EndpointId(place as u16)).collect()
    }

    fn swap(&mut self, _: &[EndpointId], _: &[Coming]) -> Result<(), (usize, String)> {
        Ok(())
    }

    fn refit(&mut self, _: &Coming) -> Result<(), String> {
        Ok(())
    }

    fn hold(&mut self, _: &str, _: &PortPlan) -> Result<(), String> {
        Ok(())
    }

    fn release(&mut self, _: &PortPlan) {}

    fn attach(&mut self, _: &[Coming]) {}

    fn restore(&mut self, _: &[EndpointId], _: &[Coming], _: &[(String, PortPlan)]) -> Option<String> {
        None
    }

    fn check(&self, _: &Change) -> Result<(), (Option<About>, String)> {
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<(), (Option<About>, String)> {
        for (id, network) in change.networks {
            self.0.networks.set(id, network);
        }
        for (id, endpoint) in change.endpoints {
            self.0.endpoints.set(id, endpoint);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{Lists, config};
    use super::*;
    use crate::declared::change;
    use crate::model::types::ChangeAnswer;

    struct Kept {
        folder: tempfile::TempDir,
        plan: Plan,
    }

    impl Kept {
        fn new() -> Kept {
            let folder = tempfile::tempdir().unwrap();
            let plan = Plan { state: Some(folder.path().join("lib").join("state.json")), ..config() };
            Kept { folder, plan }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("lib").join("state.json")
        }

        fn beside(&self, ending: &str) -> PathBuf {
            self.folder.path().join("lib").join(format!("state.json{ending}"))
        }

        fn last(&self) -> PathBuf {
            self.beside(".last")
        }

        fn journal(&self) -> PathBuf {
            self.beside(".journal")
        }

        fn read(&self) -> String {
            fs::read_to_string(self.path()).unwrap()
        }

        /// A daemon's model, with what is kept.
        fn start(&self) -> Result<(Model, Lists), String> {
            let (model, plan) = load(&self.plan).map_err(|error| error.to_string())?;
            let lists = Lists::of(&plan).holding(&model);
            Ok((model, lists))
        }

        fn add(&self, model: &mut Model, lists: &mut Lists, n: u8) -> ChangeAnswer {
            let given = json!({"changes": [
                {"add_port": {"name": format!("p{n}"), "memif": {"socket": "@p", "id": n, "secret": "geheim"}}},
                {"add_endpoint": {"name": format!("e{n}"), "network": "blue", "mac": format!("02:00:00:00:01:{n:02x}"), "port": format!("p{n}")}},
            ]});
            change(model, &self.plan, lists, given).unwrap()
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        assert!(kept.path().exists() && !kept.last().exists());
        for n in 1..4 {
            assert_eq!(kept.add(&mut model, &mut lists, n).generation, u64::from(n));
        }
        let (again, begins) = kept.start().unwrap();
        assert_eq!((again.generation(), again.export()), (3, model.export()));
        assert_eq!(begins.picture(), lists.picture());
        assert!(
            again.since(0).is_none() && again.since(3).is_some(),
            "changes before the start are not known"
        );
        for path in [kept.path(), kept.journal()] {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        // As a whole it says the same, and needs no journal.
        model.rest().unwrap();
        assert!(!kept.journal().exists());
        let whole = kept.read();
        let (mut again, begins) = kept.start().unwrap();
        assert_eq!((again.generation(), again.export()), (3, model.export()));
        assert_eq!(begins.picture(), lists.picture());
        again.rest().unwrap();
        assert_eq!(kept.read(), whole);
    }

    #[test]
    fn the_state_before_is_the_last() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        model.rest().unwrap();
        let before = kept.read();
        kept.add(&mut model, &mut lists, 2);
        kept.add(&mut model, &mut lists, 3);
        model.rest().unwrap();
        assert_eq!(fs::read_to_string(kept.last()).unwrap(), before);
        kept.add(&mut model, &mut lists, 4);
        // Somebody has taken the file away.
        fs::remove_file(kept.path()).unwrap();
        let error = kept.start().unwrap_err();
        let way_out = format!(
            "to go back to what was before it: mv {} {} && mv {} {}",
            kept.last().display(),
            kept.path().display(),
            kept.beside(".last.journal").display(),
            kept.journal().display()
        );
        assert!(error.contains("it is gone, and ") && error.ends_with(&way_out), "{error}");
        fs::rename(kept.last(), kept.path()).unwrap();
        // A journal that is another file's.
        let error = kept.start().unwrap_err();
        assert!(error.contains("at byte 0: generation 4 follows, and 2 should"), "{error}");
        fs::rename(kept.beside(".last.journal"), kept.journal()).unwrap();
        assert_eq!(kept.start().unwrap().0.generation(), 3);
    }

    #[test]
    fn a_journal_that_ends_too_early_is_cut_and_one_that_is_damaged_is_refused_with_its_place() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        let (one, after_one) = (fs::read(kept.journal()).unwrap(), model.export());
        kept.add(&mut model, &mut lists, 2);
        let two = fs::read(kept.journal()).unwrap();
        // Killed in the middle of the second.
        fs::write(kept.journal(), &two[..two.len() - 9]).unwrap();
        let (mut model, mut lists) = kept.start().unwrap();
        assert_eq!(model.export(), after_one);
        let said = model.cut().unwrap();
        assert!(said.contains(&format!("at byte {}, was not written to its end", one.len())), "{said}");
        assert_eq!(fs::read(kept.journal()).unwrap(), one);
        kept.add(&mut model, &mut lists, 2);
        assert_eq!(fs::read(kept.journal()).unwrap(), two);
        assert!(kept.start().unwrap().0.cut().is_none());
        let mut other = two;
        other[one.len() / 2] ^= 1;
        fs::write(kept.journal(), other).unwrap();
        let error = kept.start().unwrap_err();
        let expected = format!(
            "its journal {0}: at byte 0: it is not what was written: to keep what is before that place, and lose the changes behind it: \
             truncate -s 0 {0}",
            kept.journal().display()
        );
        assert!(error.ends_with(&expected), "{error}");
    }

    #[test]
    fn what_is_refused_after_all_leaves_the_journal() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        let (before, length) = (model.export(), fs::metadata(kept.journal()).unwrap().len());
        let file = model.file.as_mut().unwrap();
        let written = file.write("a record", || unreachable!()).unwrap();
        assert_eq!(written.undo(), "");
        assert_eq!(fs::metadata(kept.journal()).unwrap().len(), length);
        assert_eq!(kept.start().unwrap().0.export(), before);
    }

    #[test]
    fn a_journal_that_is_large_enough_becomes_part_of_the_file() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        let mut times = 0;
        for round in 0..12 {
            let had = fs::metadata(kept.journal()).map_or(0, |it| it.len());
            let step = if round == 0 { "add_port" } else { "set_port" };
            let port = |n: u32| json!({"name": format!("port-number-{n:040}"), "memif": {"socket": "@p", "id": n + 1000 * (round % 2)}});
            let steps: Vec<Value> = (0..300).map(|n| json!({step: port(n)})).collect();
            change(&mut model, &kept.plan, &mut lists, json!({"changes": steps})).unwrap();
            let has = fs::metadata(kept.journal()).map_or(0, |it| it.len());
            assert!(has <= JOURNAL_BYTES_MIN, "{has}");
            times += u32::from(has < had);
        }
        assert!(times > 0, "it was never written as a whole");
        let (again, _) = kept.start().unwrap();
        assert_eq!((again.generation(), again.export()), (12, model.export()));
    }

    #[test]
    fn what_was_written_before_there_were_journals_is_read() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        model.rest().unwrap();
        let body = model.export();
        let body = body.strip_suffix('}').unwrap();
        let old = format!("{body}{CHECK}{:08x}\"}}\n", crc32fast::hash(body.as_bytes()));
        assert!(old.contains("\"format\":1"));
        fs::write(kept.path(), old).unwrap();
        let (mut model, mut lists) = kept.start().unwrap();
        assert_eq!(model.generation(), 1);
        // Who does not know the journal must not begin without it.
        kept.add(&mut model, &mut lists, 2);
        assert!(kept.read().contains("\"format\":2") && !kept.journal().exists());
        kept.add(&mut model, &mut lists, 3);
        assert!(kept.journal().exists());
        assert_eq!(kept.start().unwrap().0.export(), model.export());
    }

    #[test]
    fn a_part_of_it_is_never_read() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        model.rest().unwrap();
        let whole = kept.read();
        for length in 0..whole.len() {
            let error = read(&whole.as_bytes()[..length]).err();
            assert!(error.is_some(), "{length} of {} bytes", whole.len());
        }
        for index in 0..whole.len() {
            let mut other = whole.clone().into_bytes();
            other[index] ^= 1;
            assert!(read(&other).is_err(), "{index}");
        }
        fs::write(kept.path(), &whole[..whole.len() - 30]).unwrap();
        let error = kept.start().unwrap_err();
        assert!(
            error.starts_with(&format!("the state file {}: EOF while parsing", kept.path().display())),
            "{error}"
        );
        assert!(error.contains(" at line ") && error.contains("mv "), "{error}");
        assert_eq!(error.lines().count(), 1);
        // As it was in the file.
        fs::write(kept.path(), whole).unwrap();
        kept.start().unwrap();
    }

    #[test]
    fn what_another_version_wrote_and_what_the_config_contradicts_is_refused_with_its_place() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        model.rest().unwrap();
        let whole = kept.read();
        fs::write(kept.path(), whole.replace("\"format\":2", "\"format\":3")).unwrap();
        let error = kept.start().unwrap_err();
        assert!(error.contains("format = 3: this version of peregrine reads 1 and 2"), "{error}");
        fs::write(kept.path(), whole.replace("e1", "e9")).unwrap();
        assert!(kept.start().unwrap_err().contains("check: it is not what was written"));
        // Another hand has made it whole.
        let state = |objects: &[Vec<&str>; 3]| fs::write(kept.path(), text(3, objects)).unwrap();
        let mine = "{\"name\":\"web\",\"network\":\"blue\",\"mac\":\"02:00:00:00:00:01\",\"memif\":{\"socket\":\"@x\"}}";
        state(&[vec![], vec![], vec![mine]]);
        let error = kept.start().unwrap_err();
        let way_out = "to have it by the config, start without it there, remove it (`peregrine endpoint remove NAME`, or port, or network), and start \
                       with it again; to go back to what was before it: mv ";
        let both = "endpoints[0].name = \"web\": the config has an endpoint of this name: ";
        assert!(error.contains(&format!("{both}{way_out}")), "{error}");
        let other = mine.replace("\"web\"", "\"other\"");
        state(&[vec![], vec![], vec![&other]]);
        let error = kept.start().unwrap_err();
        let both =
            "endpoints[0].mac = \"02:00:00:00:00:01\": must be unique: that of endpoint web is the same: ";
        assert!(error.contains(&format!("{both}{way_out}")), "{error}");
        state(&[vec!["{\"name\":\"n\",\"vni\":0}"], vec!["{}"], vec![]]);
        let error = kept.start().unwrap_err();
        assert!(
            error.contains(
                "networks[0].vni = 0: must be a number from 1 to 16777215 (and 2 more): to go back to "
            ),
            "{error}"
        );
        let by_config = |error: &str| error.contains("by the config");
        assert!(!by_config(&error), "the config has nothing to do with it: {error}");
        // What it needs is not in the config any more.
        for (gone, at) in [("blue", "network = \"red\""), ("\"memif\":{\"socket\":\"@x\"}", "port = \"p9\"")]
        {
            let with = if gone == "blue" { "red" } else { "\"port\":\"p9\"" };
            let needs = other.replace("00:01", "00:77").replace(gone, with);
            state(&[vec![], vec![], vec![&needs]]);
            let error = kept.start().unwrap_err();
            let way_out = "if it was taken out of the config, put it back there; to do without it, remove what needs it";
            assert!(error.contains(&format!("endpoints[0].{at}")), "{error}");
            assert!(error.contains(way_out) && !by_config(&error), "{error}");
        }
        // Nor that two objects of the file are the same.
        let [first, second] =
            ["one", "two"].map(|name| other.replace("other", name).replace("00:01", "00:77"));
        state(&[vec![], vec![], vec![&first, &second.replace("@x", "@y")]]);
        let error = kept.start().unwrap_err();
        assert!(error.contains("must be unique: that of endpoint one") && !by_config(&error), "{error}");
    }

    #[test]
    fn a_change_that_cannot_be_kept_is_not_made() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        let before = (model.export(), lists.picture());
        // What is written first cannot be: a folder has its name.
        let new = kept.beside(".new");
        fs::create_dir(&new).unwrap();
        model.file.as_mut().unwrap().must_be_whole = true;
        let given = json!({"changes": [{"remove_endpoint": "e1"}]});
        let error = change(&mut model, &kept.plan, &mut lists, given).unwrap_err();
        assert!(error.message.contains("it cannot be written: "), "{}", error.message);
        assert_eq!((model.export(), lists.picture()), before);
        fs::remove_dir(&new).unwrap();
        kept.add(&mut model, &mut lists, 2);
        // Nor can its journal.
        let before = (model.export(), lists.picture());
        fs::create_dir(kept.journal()).unwrap();
        let given = json!({"changes": [{"remove_endpoint": "e1"}]});
        let error = change(&mut model, &kept.plan, &mut lists, given).unwrap_err();
        assert!(error.message.contains("its journal cannot be written: "), "{}", error.message);
        assert_eq!((model.export(), lists.picture()), before);
        fs::remove_dir(kept.journal()).unwrap();
        kept.add(&mut model, &mut lists, 3);
        assert_eq!(kept.start().unwrap().0.export(), model.export());
    }
}
