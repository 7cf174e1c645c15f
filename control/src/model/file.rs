//! The state file: what was declared at the control socket, kept over a restart. Written as a whole before a change is answered, to a file
//! beside it that then takes its place; what it was before is kept as `FILE.last`.
//!
//! What must hold: whatever happens while it is written, there is a whole file. One that is not whole, or that another version wrote, is
//! never read in part: the daemon does not start, and says what to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use peregrine_dataplane::engine::Change;
use peregrine_dataplane::plan::{Plan, PortPlan};
use peregrine_dataplane::types::{EndpointId, NetworkId};
use serde::Deserialize;
use serde_json::Value;

use super::stage::Stage;
use super::types::Kind;
use super::{About, Model, Runtime};
use crate::error::Error;
use crate::socket;
use crate::tenants::Coming;

/// Of the file, and of `export`.
pub const FORMAT: u32 = 1;
/// What nobody has ever written: 65,534 endpoints take some 30 MiB.
const BYTES_MAX: u64 = 1 << 30;
/// It has secrets.
const MODE: u32 = 0o600;
/// What stands between the state and its check.
const CHECK: &str = ",\"check\":\"";

/// Where the state is kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// A state that has been written, and is not yet the one that counts.
#[derive(Debug)]
pub struct Written<'f> {
    file: &'f StateFile,
}

/// The state without its end.
pub fn body(generation: u64, [networks, ports, endpoints]: &[Vec<&str>; 3]) -> String {
    let bytes: usize =
        [networks, ports, endpoints].iter().flat_map(|list| list.iter()).map(|t| t.len() + 2).sum();
    let mut text = String::with_capacity(bytes + 128);
    text.push_str(&format!("{{\"format\":{FORMAT},\"generation\":{generation}"));
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
    let body = body(generation, objects);
    let check = crc32fast::hash(body.as_bytes());
    format!("{body}{CHECK}{check:08x}\"}}\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(rename = "format")]
    _format: u32,
    generation: u64,
    networks: Vec<Value>,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
    #[serde(rename = "check")]
    _check: String,
}

/// Enough to tell another format.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What a text says, or why it is no state.
fn read(text: &[u8]) -> Result<Contents, String> {
    let Format { format } = serde_json::from_slice(text).map_err(|error| one_line(&error))?;
    if format != FORMAT {
        return Err(format!(
            "format = {format}: this version of peregrine reads {FORMAT}: start the one that wrote it"
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

    /// Writes a state beside the one that counts.
    ///
    /// # Errors
    /// One line.
    pub fn write_beside(&self, text: &str) -> Result<Written<'_>, String> {
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
        Ok(Written { file: self })
    }

    /// The state that is kept, if there is one.
    fn read(&self) -> Result<Option<Contents>, String> {
        let last = self.beside(".last");
        let mut text = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut text)) {
            Ok(_) => read(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound && last.exists() => {
                Err(format!("it is gone, and {} is there", last.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("it cannot be read: {error}")),
        }
    }

    /// Why the daemon does not start, and the way out.
    fn refused(&self, why: String) -> Error {
        let last = self.beside(".last");
        let way_out = if last.exists() {
            format!("to go back by one change: mv {} {}", last.display(), self.path.display())
        } else {
            "to begin without it, move it away".to_owned()
        };
        Error::State { path: self.path.clone(), why, way_out }
    }
}

impl Written<'_> {
    /// It takes the place of the one before, which becomes `FILE.last`. At no moment is there no file.
    ///
    /// # Errors
    /// One line.
    pub fn replace(self) -> Result<(), String> {
        let StateFile { path } = self.file;
        let (new, last, link) =
            (self.file.beside(".new"), self.file.beside(".last"), self.file.beside(".link"));
        let replace = || {
            if path.exists() {
                let _left_behind = fs::remove_file(&link);
                // A second name for it; a copy, where the file system has no such thing.
                fs::hard_link(path, &link).or_else(|_| fs::copy(path, &link).map(drop))?;
                fs::rename(&link, &last)?;
            }
            fs::rename(&new, path)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        replace().map_err(|error| self.file.failed("it cannot be replaced", &error))
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
    let file = StateFile { path: path.clone() };
    let mut beginning = Beginning(plan.clone());
    match file.read().map_err(|why| file.refused(why))? {
        Some(contents) => {
            model = restore(model, contents, plan, &mut beginning).map_err(|why| file.refused(why))?;
        }
        None => {
            let empty = text(0, &model.texts(None));
            let first = file.write_beside(&empty).and_then(Written::replace);
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
) -> Result<Model, String> {
    let Contents { generation, networks, ports, endpoints, .. } = contents;
    let mut stage = Stage::new(&model, plan);
    stage.declare_all(networks, ports, endpoints);
    let prepared = stage.finish(beginning).map_err(|mistaken| mistaken.in_one_line())?;
    model.make(prepared, beginning)?;
    model.generation = generation;
    model.log.clear();
    model.log_names = 0;
    Ok(model)
}

impl Stage<'_, '_> {
    /// Lists of objects, each at its place.
    pub fn declare_all(&mut self, networks: Vec<Value>, ports: Vec<Value>, endpoints: Vec<Value>) {
        for (kind, list) in [(Kind::Network, networks), (Kind::Port, ports), (Kind::Endpoint, endpoints)] {
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

        fn last(&self) -> PathBuf {
            self.folder.path().join("lib").join("state.json.last")
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
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(kept.path()).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_state_before_is_the_last() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        let before = kept.read();
        kept.add(&mut model, &mut lists, 2);
        assert_eq!(fs::read_to_string(kept.last()).unwrap(), before);
        fs::rename(kept.last(), kept.path()).unwrap();
        assert_eq!(kept.start().unwrap().0.generation(), 1);
        // Only the one before: somebody has taken the other away.
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 2);
        fs::remove_file(kept.path()).unwrap();
        let error = kept.start().unwrap_err();
        assert!(
            error.contains("it is gone, and ") && error.contains("to go back by one change: mv "),
            "{error}"
        );
    }

    #[test]
    fn a_part_of_it_is_never_read() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
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
        let whole = kept.read();
        fs::write(kept.path(), whole.replace("\"format\":1", "\"format\":2")).unwrap();
        let error = kept.start().unwrap_err();
        assert!(error.contains("format = 2: this version of peregrine reads 1"), "{error}");
        fs::write(kept.path(), whole.replace("e1", "e9")).unwrap();
        assert!(kept.start().unwrap_err().contains("check: it is not what was written"));
        // Another hand has made it whole.
        let state = |objects: &[Vec<&str>; 3]| fs::write(kept.path(), text(3, objects)).unwrap();
        let mine = "{\"name\":\"web\",\"network\":\"blue\",\"mac\":\"02:00:00:00:00:01\",\"memif\":{\"socket\":\"@x\"}}";
        state(&[vec![], vec![], vec![mine]]);
        let error = kept.start().unwrap_err();
        assert!(
            error
                .contains("endpoints[0].name = \"web\": the config has an endpoint of this name: to go back"),
            "{error}"
        );
        state(&[vec!["{\"name\":\"n\",\"vni\":0}"], vec!["{}"], vec![]]);
        let error = kept.start().unwrap_err();
        assert!(
            error.contains("networks[0].vni = 0: must be a number from 1 to 16777215 (and 2 more)"),
            "{error}"
        );
    }

    #[test]
    fn a_change_that_cannot_be_kept_is_not_made() {
        let kept = Kept::new();
        let (mut model, mut lists) = kept.start().unwrap();
        kept.add(&mut model, &mut lists, 1);
        let before = (model.export(), lists.picture());
        // What is written first cannot be: a folder has its name.
        let new = kept.path().with_file_name("state.json.new");
        fs::create_dir(&new).unwrap();
        let given = json!({"changes": [{"remove_endpoint": "e1"}]});
        let error = change(&mut model, &kept.plan, &mut lists, given).unwrap_err();
        assert!(error.message.contains("it cannot be written: "), "{}", error.message);
        assert_eq!((model.export(), lists.picture()), before);
        fs::remove_dir(&new).unwrap();
        kept.add(&mut model, &mut lists, 2);
    }
}
