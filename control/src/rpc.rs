//! JSON-RPC 2.0, one object per line: cutting what a client sends into lines, reading requests, writing answers.
//! No I/O: bytes in, bytes out. Called by [`api`](crate::api) for each client.
//!
//! What must hold: whatever the bytes are, at most one line of them is kept, as long as a line may be, and every line gets at most
//! one answer. A line that is too long cannot be answered in order, so it ends the conversation.

use serde_json::{Value, json};

/// The longest request of anybody: 1024 rules, each with all that a rule may ask for, fit into it.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The longest request of those who may change what runs: tens of thousands of endpoints at once.
pub const LONG_LINE_BYTES_MAX: usize = 64 << 20;
/// Objects in a request, at most: each takes some 600 bytes once it is read, however short it was. As many endpoints as there can be fit.
pub const OBJECTS_MAX: usize = 1 << 18;
/// Values in a request, at most.
pub const VALUES_MAX: usize = 1 << 22;

/// JSON-RPC's error codes.
pub mod code {
    /// Not JSON.
    pub const PARSE: i64 = -32700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const NO_METHOD: i64 = -32601;
    /// The method has no such parameters.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The daemon failed.
    pub const INTERNAL: i64 = -32603;
    /// It was understood and cannot be done, as things are. In the range that JSON-RPC leaves to servers.
    pub const REFUSED: i64 = -32000;
}

/// An error that a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RpcError {
    /// One of [`code`].
    pub code: i64,
    /// One line.
    pub message: String,
    /// What programs want to know beside that.
    pub data: Option<Value>,
}

impl RpcError {
    /// With this code and text.
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: None }
    }
}

/// What a method returns.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reply {
    /// The result.
    pub result: Value,
    /// This connection is told what changes from now on.
    pub watch: Option<Watch>,
}

/// What a connection that watches is to be told.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Watch {
    /// It knows everything up to this generation of the state, once it has been told what it missed.
    pub generation: u64,
    /// The parameters of a `changed` each.
    pub missed: Vec<Value>,
}

impl From<Value> for Reply {
    fn from(result: Value) -> Reply {
        Reply { result, watch: None }
    }
}

/// Answers one line: calls `method` with its name and its parameters if the line is a request, and returns the line to send, if any is
/// due.
pub fn answer(line: &[u8], method: impl FnOnce(&str, Value) -> Result<Value, RpcError>) -> Option<Vec<u8>> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let (id, result) = match read(line) {
        Ok((name, params, id)) => {
            let result = method(&name, params);
            (id?, result)
        }
        Err((id, error)) => (id, Err(error)),
    };
    let body = match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(e) => {
            let mut error = json!({"code": e.code, "message": e.message});
            if let Some(data) = e.data {
                error["data"] = data;
            }
            json!({"jsonrpc": "2.0", "id": id, "error": error})
        }
    };
    Some(line_of(&body))
}

/// One line that nobody asked for.
pub fn notification(method: &str, params: &Value) -> Vec<u8> {
    line_of(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}

/// The one answer to a request that cannot be taken in, which ends the conversation.
pub fn not_taken(message: &str) -> Vec<u8> {
    line_of(
        &json!({"jsonrpc": "2.0", "id": null, "error": {"code": code::INVALID_REQUEST, "message": message}}),
    )
}

fn line_of(body: &Value) -> Vec<u8> {
    let mut bytes = body.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// The parameters of a method, by name.
pub fn params<T: serde::de::DeserializeOwned>(method: &str, params: Value) -> Result<T, RpcError> {
    let invalid = |e: serde_json::Error| RpcError::new(code::INVALID_PARAMS, format!("{method}: {e}"));
    serde_json::from_value(params).map_err(invalid)
}

/// A list of them, taken out: it may be long, and is left as it is. None if it is not there, or no list.
pub fn take_list(params: &mut Value, name: &str) -> Option<Vec<Value>> {
    match params.get_mut(name)? {
        Value::Array(list) => Some(std::mem::take(list)),
        _ => None,
    }
}

/// For a method that has none.
pub fn no_params(method: &str, params: &Value) -> Result<(), RpcError> {
    let is_empty = match params {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let invalid = || RpcError::new(code::INVALID_PARAMS, format!("{method} takes no parameters"));
    is_empty.then_some(()).ok_or_else(invalid)
}

type Request = (String, Value, Option<Value>);

/// The method's name, its parameters, and the id if an answer is wanted; or the error and the id to send it with.
fn read(line: &[u8]) -> Result<Request, (Value, RpcError)> {
    let invalid = |text: &str| RpcError::new(code::INVALID_REQUEST, text);
    let count = |wanted: u8| line.iter().filter(|byte| **byte == wanted).count();
    if count(b'{') > OBJECTS_MAX || count(b',') > VALUES_MAX {
        let text = format!("more than {OBJECTS_MAX} objects or {VALUES_MAX} values: send it in parts");
        return Err((Value::Null, invalid(&text)));
    }
    let value: Value = serde_json::from_slice(line)
        .map_err(|e| (Value::Null, RpcError::new(code::PARSE, format!("not JSON: {e}"))))?;
    if value.is_array() {
        return Err((Value::Null, invalid("batches are not supported: send one request per line")));
    }
    // Taken apart, not read as a type once more: parameters may have a hundred thousand values.
    let Value::Object(mut request) = value else {
        return Err((Value::Null, invalid("a request is an object with jsonrpc, id and method")));
    };
    // `"id": null` is not the same as no id at all: the second is a notification, which gets no answer.
    let id = match request.remove("id") {
        None => None,
        Some(id @ (Value::Null | Value::String(_) | Value::Number(_))) => Some(id),
        Some(_) => return Err((Value::Null, invalid("id must be a string, a number or null"))),
    };
    let told = id.clone().unwrap_or(Value::Null);
    if request.remove("jsonrpc") != Some(Value::from("2.0")) {
        return Err((told, invalid("jsonrpc must be \"2.0\"")));
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return Err((told, invalid("method must be a string")));
    };
    match request.remove("params").unwrap_or_default() {
        params @ (Value::Null | Value::Array(_) | Value::Object(_)) => Ok((method, params, id)),
        _ => Err((told, invalid("params must be an object or an array"))),
    }
}

/// A client's bytes, until they make lines.
#[derive(Debug)]
pub struct Lines {
    /// The longest that a line may be.
    max: usize,
    bytes: Vec<u8>,
    /// Up to here there is no line feed.
    searched: usize,
}

/// What is at the front of [`Lines`].
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    /// A line, without its end.
    Line(Vec<u8>),
    /// Not a whole line yet.
    More,
    /// More bytes than a line may have.
    TooLong,
}

impl Lines {
    /// Of at most so many bytes each.
    pub fn new(max: usize) -> Lines {
        Lines { max, bytes: Vec::new(), searched: 0 }
    }

    /// The longest that a line may be.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Bytes that are kept.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// How many more bytes may be [pushed](Self::push) now.
    pub fn room(&self) -> usize {
        (self.max + 1).saturating_sub(self.bytes.len())
    }

    /// Adds what was read; never more than [`room`](Self::room) is kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes.get(..self.room()).unwrap_or(bytes));
    }

    /// Takes the next line.
    pub fn take(&mut self) -> Next {
        let unseen = self.bytes.get(self.searched..).unwrap_or_default();
        let found = unseen.iter().position(|&byte| byte == b'\n').map(|at| at + self.searched);
        match found {
            Some(end) => {
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                self.searched = 0;
                line.pop();
                Next::Line(line)
            }
            None if self.room() == 0 => Next::TooLong,
            None => {
                self.searched = self.bytes.len();
                Next::More
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Double {
        number: u32,
    }

    fn reply(line: &str) -> Option<Value> {
        let bytes = answer(line.as_bytes(), |method, params| match method {
            "version" => no_params(method, &params).map(|()| json!("1.2.3")),
            "double" => super::params::<Double>(method, params).map(|it| json!(2 * it.number)),
            other => Err(RpcError::new(code::NO_METHOD, format!("no method {other}"))),
        })?;
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 1, "one line");
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn a_request_is_answered_with_its_id() {
        let want = json!({"jsonrpc": "2.0", "id": 7, "result": "1.2.3"});
        assert_eq!(reply(r#"{"jsonrpc":"2.0","id":7,"method":"version"}"#), Some(want));
        let reply =
            reply("{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"version\",\"params\":[]}\r").unwrap();
        assert_eq!(reply["id"], "a");
    }

    #[test]
    fn parameters_are_by_name() {
        let reply = reply(r#"{"jsonrpc":"2.0","id":1,"method":"double","params":{"number":21}}"#).unwrap();
        assert_eq!(reply["result"], 42);
    }

    #[test]
    fn a_notification_gets_no_answer_and_a_null_id_does() {
        assert_eq!(reply(r#"{"jsonrpc":"2.0","method":"version"}"#), None);
        assert_eq!(reply(r#"{"jsonrpc":"2.0","method":"nonsense"}"#), None);
        assert_eq!(reply(r#"{"jsonrpc":"2.0","id":null,"method":"version"}"#).unwrap()["result"], "1.2.3");
        assert_eq!(reply("  "), None);
    }

    #[test]
    fn nonsense_gets_the_right_error() {
        let deep = "[".repeat(5000);
        for (line, want) in [
            ("{", code::PARSE),
            ("\u{0}\u{1}", code::PARSE),
            (deep.as_str(), code::PARSE),
            ("[]", code::INVALID_REQUEST),
            ("7", code::INVALID_REQUEST),
            ("{}", code::INVALID_REQUEST),
            (r#"{"jsonrpc":"1.0","id":1,"method":"version"}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":{},"method":"version"}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":"no"}"#, code::NO_METHOD),
            (r#"{"jsonrpc":"2.0","id":1,"method":"version","params":[1]}"#, code::INVALID_PARAMS),
            (r#"{"jsonrpc":"2.0","id":1,"method":"version","params":7}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":"double"}"#, code::INVALID_PARAMS),
            (r#"{"jsonrpc":"2.0","id":1,"method":"double","params":{"number":-1}}"#, code::INVALID_PARAMS),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"double","params":{"number":1,"x":1}}"#,
                code::INVALID_PARAMS,
            ),
        ] {
            assert_eq!(reply(line).unwrap()["error"]["code"], want, "{line}");
        }
        assert!(answer(b"\xff\xfe", |_, _| Ok(Value::Null)).is_some(), "not UTF-8");
    }

    #[test]
    fn what_would_be_large_once_it_is_read_is_not_read() {
        let many = |what: &str, count: usize| {
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\",\"params\":[{}0]}}",
                what.repeat(count)
            )
        };
        for line in [many("{},", OBJECTS_MAX), many("0,", VALUES_MAX)] {
            let error = reply(&line).unwrap()["error"].clone();
            assert_eq!(error["code"], code::INVALID_REQUEST, "{error}");
            assert!(error["message"].as_str().unwrap().starts_with("more than "), "{error}");
        }
        assert_eq!(reply(&many("{},", OBJECTS_MAX / 2)).unwrap()["error"]["code"], code::INVALID_PARAMS);
    }

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let mut got = Vec::new();
        for byte in b"ab\n\ncd\ne" {
            lines.push(&[*byte]);
            while let Next::Line(line) = lines.take() {
                got.push(line);
            }
        }
        assert_eq!(got, [b"ab".to_vec(), b"".to_vec(), b"cd".to_vec()]);
        assert_eq!(lines.take(), Next::More);
    }

    #[test]
    fn a_giant_line_is_bounded() {
        let mut lines = Lines::new(LINE_BYTES_MAX);
        lines.push(&vec![b'x'; LINE_BYTES_MAX]);
        assert_eq!(lines.take(), Next::More);
        lines.push(&vec![b'x'; LINE_BYTES_MAX]);
        assert_eq!((lines.take(), lines.room()), (Next::TooLong, 0));
        let mut lines = Lines::new(LINE_BYTES_MAX);
        lines.push(&[vec![b'x'; LINE_BYTES_MAX], vec![b'\n']].concat());
        assert!(matches!(lines.take(), Next::Line(l) if l.len() == LINE_BYTES_MAX));
    }
}
