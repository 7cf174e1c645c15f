//! The journal beside the state file: what has changed since that was written as a whole, a record for each change. So a change costs what it
//! is, however much is declared. Used by `file`.
//!
//! A record is a line: how many bytes it has, their CRC-32, and JSON, all of it text:
//!
//! ```text
//! 000000a5 1c291ca3 {"generation":7,"gone":{"networks":[],"ports":[],"endpoints":["e1"]},"networks":[],"ports":[],"endpoints":[{…}]}
//! ```
//!
//! What must hold: a record that is not whole is cut off only where it is the last, for then nobody was told that its change was made. Whatever
//! else is not as it was written is an error with its place.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// It has secrets.
const MODE: u32 = 0o600;
/// Of a record, before its JSON.
const HEAD_BYTES: usize = 18;
/// What nobody has ever written.
const BYTES_MAX: u64 = 1 << 30;

/// Names, of each kind.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    networks: Vec<String>,
    ports: Vec<String>,
    endpoints: Vec<String>,
}

/// One change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it made.
    pub generation: u64,
    gone: Names,
    networks: Vec<Value>,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

/// Lists of objects as they are declared, of each kind.
pub type Lists = [Vec<Value>; 3];

/// Objects that are changed one by one, found by their names.
pub struct Objects([ByName; 3]);

#[derive(Default)]
struct ByName {
    objects: Vec<Option<Value>>,
    places: HashMap<String, usize>,
}

/// A journal that does not say what was written into it.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// The first byte of the record.
    pub at: usize,
    /// What is wrong.
    pub why: String,
}

/// The text of a record: for each kind what is gone, and the objects that have come or become others.
pub fn record(generation: u64, gone: &[Vec<&str>; 3], now: &[Vec<&str>; 3]) -> String {
    let name = |name: &&str| Value::from(*name).to_string();
    let names = |list: &[&str]| list.iter().map(name).collect::<Vec<_>>().join(",");
    let [networks, ports, endpoints] = gone.each_ref().map(|list| names(list));
    let mut body = format!(
        "{{\"generation\":{generation},\"gone\":{{\"networks\":[{networks}],\"ports\":[{ports}],\"endpoints\":[{endpoints}]}}"
    );
    for (key, list) in ["networks", "ports", "endpoints"].iter().zip(now) {
        body.push_str(&format!(",\"{key}\":[{}]", list.join(",")));
    }
    body.push('}');
    format!("{:08x} {:08x} {body}\n", body.len(), crc32fast::hash(body.as_bytes()))
}

/// The JSON of the record that begins here, if it is whole, and how many bytes the record has.
fn whole(text: &[u8]) -> Option<(&[u8], usize)> {
    let (head, rest) = text.split_at_checked(HEAD_BYTES)?;
    let head = std::str::from_utf8(head).ok()?;
    let (length, rest_of_head) = head.split_once(' ')?;
    let check = rest_of_head.strip_suffix(' ')?;
    let (body, rest) = rest.split_at_checked(usize::from_str_radix(length, 16).ok()?)?;
    let is_right = length.len() == 8
        && rest.first() == Some(&b'\n')
        && format!("{:08x}", crc32fast::hash(body)) == check;
    is_right.then_some((body, HEAD_BYTES + body.len() + 1))
}

/// All records of a journal that come after a generation, and how many of its bytes are whole: the others are one record that was not written
/// to its end.
pub fn read(text: &[u8], mut generation: u64) -> Result<(Vec<Record>, usize), Damage> {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let damage = |why: String| Damage { at, why };
        let Some((body, bytes)) = whole(rest) else {
            // JSON has no line breaks here, so no record is in another one.
            let is_followed = (1..rest.len()).any(|at| rest.get(at..).is_some_and(|it| whole(it).is_some()));
            return match is_followed {
                true => Err(damage("it is not what was written".into())),
                false => Ok((records, at)),
            };
        };
        let record: Record = serde_json::from_slice(body).map_err(|error| damage(error.to_string()))?;
        // Those that the file has already were left by a daemon that was killed when it had just written it.
        if record.generation > generation {
            if record.generation != generation + 1 {
                let (next, found) = (generation + 1, record.generation);
                return Err(damage(format!("generation {found} follows, and {next} should")));
            }
            generation = record.generation;
            records.push(record);
        }
        at += bytes;
    }
    Ok((records, at))
}

impl Objects {
    /// As a file has them.
    pub fn of(lists: Lists) -> Objects {
        Objects(lists.map(|list| {
            let mut all = ByName::default();
            list.into_iter().for_each(|object| all.put(object));
            all
        }))
    }

    /// After a change.
    pub fn apply(&mut self, record: Record) {
        let Record { gone, networks, ports, endpoints, .. } = record;
        let gone = [gone.networks, gone.ports, gone.endpoints];
        for ((all, gone), now) in self.0.iter_mut().zip(gone).zip([networks, ports, endpoints]) {
            gone.iter().for_each(|name| all.remove(name));
            now.into_iter().for_each(|object| all.put(object));
        }
    }

    /// What is there in the end.
    pub fn lists(self) -> Lists {
        self.0.map(|all| all.objects.into_iter().flatten().collect())
    }
}

impl ByName {
    fn put(&mut self, object: Value) {
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        match self.places.get(&name).and_then(|place| self.objects.get_mut(*place)) {
            // Two of one name are a mistake, which is found later.
            Some(before) if !name.is_empty() => *before = Some(object),
            _ => {
                self.places.insert(name, self.objects.len());
                self.objects.push(Some(object));
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(object) = self.places.remove(name).and_then(|place| self.objects.get_mut(place)) {
            *object = None;
        }
    }
}

/// The journal's file, open for what comes next.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    /// Bytes of whole records.
    bytes: u64,
}

impl Journal {
    /// The text of one that may be there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(path: &Path) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        match OpenOptions::new().read(true).custom_flags(nofollow()).open(path) {
            Ok(file) => file.take(BYTES_MAX).read_to_end(&mut text).map(|_| text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
            Err(error) => Err(error),
        }
    }

    /// Goes on behind so many bytes of one that is there; what comes after them is gone then.
    ///
    /// # Errors
    /// It cannot be opened or cut.
    pub fn go_on(path: &Path, bytes: u64) -> io::Result<Journal> {
        let file = OpenOptions::new().write(true).custom_flags(nofollow()).open(path)?;
        if file.metadata()?.len() != bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(Journal { file: Some(file), bytes })
    }

    /// Bytes of whole records.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a record, so that it lasts.
    ///
    /// # Errors
    /// It cannot be written; it may be there in part, until [`cut`](Self::cut).
    pub fn append(&mut self, path: &Path, record: &str) -> io::Result<()> {
        let (file, is_new) = match self.file.take() {
            Some(file) => (file, false),
            None => (new(path)?, true),
        };
        let file = self.file.insert(file);
        file.write_all_at(record.as_bytes(), self.bytes)?;
        file.sync_data()?;
        if is_new {
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        }
        self.bytes += record.len() as u64;
        Ok(())
    }

    /// Only so many bytes are left of it.
    ///
    /// # Errors
    /// They may all be there after a restart.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(bytes)?;
        file.sync_data()?;
        self.bytes = bytes;
        Ok(())
    }
}

/// One that was left behind may be readable by others, or be a link.
fn new(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)
}

/// A link is not followed.
fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Vec<u8>, [usize; 3]) {
        let none = || [const { Vec::new() }; 3];
        let one = record(1, &none(), &[vec!["{\"name\":\"n\",\"vni\":1}"], vec![], vec![]]);
        let two = record(2, &none(), &[vec![], vec![], vec!["{\"name\":\"e\\n\"}", "{\"name\":\"f\"}"]]);
        let three =
            record(3, &[vec![], vec![], vec!["e\n"]], &[vec!["{\"name\":\"n\",\"vni\":2}"], vec![], vec![]]);
        let text = [one.as_str(), &two, &three].concat().into_bytes();
        (text, [one.len(), one.len() + two.len(), one.len() + two.len() + three.len()])
    }

    #[test]
    fn records_make_one_state_of_another() {
        let (text, ends) = three();
        let (records, bytes) = read(&text, 0).unwrap();
        assert_eq!((records.len(), bytes), (3, ends[2]));
        let mut objects = Objects::of([const { Vec::new() }; 3]);
        records.into_iter().for_each(|record| objects.apply(record));
        let [networks, ports, endpoints] = objects.lists();
        assert_eq!(networks, [serde_json::json!({"name": "n", "vni": 2})]);
        assert_eq!((ports.len(), endpoints), (0, vec![serde_json::json!({"name": "f"})]));
        // Those that the file has are passed over.
        assert_eq!(read(&text, 2).unwrap().0.len(), 1);
        assert_eq!(read(&text, 3).unwrap().0.len(), 0);
        assert_eq!(read(&text, 9).unwrap().0.len(), 0);
    }

    #[test]
    fn only_the_last_record_may_be_torn() {
        let (text, ends) = three();
        for length in 0..=text.len() {
            let (records, bytes) = read(&text[..length], 0).unwrap();
            let whole = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(
                (records.len(), bytes),
                (whole, if whole == 0 { 0 } else { ends[whole - 1] }),
                "{length}"
            );
        }
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] ^= 1;
            let found = read(&other, 0);
            if at < ends[1] {
                let begin = if at < ends[0] { 0 } else { ends[0] };
                assert_eq!(found.err().map(|damage| damage.at), Some(begin), "{at}");
            } else {
                assert_eq!(found.unwrap().1, ends[1], "{at}");
            }
        }
        // A file system may have made room for what was not written.
        let torn = [&text[..ends[1]], &[0; 300]].concat();
        assert_eq!(read(&torn, 0).unwrap().1, ends[1]);
    }

    #[test]
    fn a_record_that_is_missing_is_noticed() {
        let (text, ends) = three();
        let damage = read(&text[ends[0]..], 0).unwrap_err();
        assert_eq!(damage, Damage { at: 0, why: "generation 2 follows, and 1 should".into() });
        let gap = [&text[..ends[0]], &text[ends[1]..]].concat();
        let damage = read(&gap, 0).unwrap_err();
        assert_eq!((damage.at, damage.why.as_str()), (ends[0], "generation 3 follows, and 2 should"));
    }
}
