//! The command line's side of the control socket: one question, one answer, and an end to waiting. Blocking.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::Error;
use crate::rpc::code;

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// And that of a change: it takes milliseconds, unless there are very many objects in it, or the disk of the state file is busy.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    next_id: u64,
    /// What came after the last line that was taken.
    rest: Vec<u8>,
}

impl Client {
    /// Connects to the daemon at `path`.
    pub fn connect(path: &Path) -> Result<Client, Error> {
        let path = path.to_owned();
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Client { stream, path, next_id: 1, rest: Vec::new() }),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Error::NotAllowed { path }),
            Err(_) => Err(Error::NoDaemon { path }),
        }
    }

    /// Calls a method without parameters and returns its result.
    pub fn call(&mut self, method: &str) -> Result<Value, Error> {
        self.call_with(method, &json!({}))
    }

    /// Calls a method and returns its result.
    pub fn call_with(&mut self, method: &str, params: &Value) -> Result<Value, Error> {
        self.call_within(method, params, TIMEOUT)
    }

    /// The same, for what may take longer.
    pub fn call_within(&mut self, method: &str, params: &Value, timeout: Duration) -> Result<Value, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let line = self.exchange(&format!("{request}\n"), timeout);
        let line = line.map_err(|e| self.failed(reason(&e, timeout)))?;
        let mut answer: Value =
            serde_json::from_slice(&line).map_err(|e| self.failed(format!("its answer is not JSON: {e}")))?;
        if let Some(error) = answer.get("error") {
            if let Some(lines) = error["data"]["mistakes"].as_array() {
                let lines = lines.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                return Err(Error::Mistakes { lines });
            }
            let text = error.get("message").and_then(Value::as_str).unwrap_or("an error without a text");
            if let Some(lines) = error["data"]["errors"].as_array().filter(|lines| !lines.is_empty()) {
                let lines = lines.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                return Err(Error::Refused { lines, is_invalid: error["code"] == code::INVALID_PARAMS });
            }
            return Err(self.failed(format!("it refused {method}: {text}")));
        }
        if answer.get("id").and_then(Value::as_u64) != Some(id) {
            return Err(self.failed("it answered another question".into()));
        }
        answer
            .get_mut("result")
            .map(Value::take)
            .ok_or_else(|| self.failed("its answer has no result".into()))
    }

    fn failed(&self, reason: String) -> Error {
        Error::Answer { path: self.path.clone(), reason }
    }

    /// Waits for the next line that nobody asked for, for as long as it takes.
    pub fn notification(&mut self) -> Result<Value, Error> {
        let line = self.line(None).map_err(|e| self.failed(reason(&e, Duration::ZERO)))?;
        serde_json::from_slice(&line).map_err(|e| self.failed(format!("what it tells is not JSON: {e}")))
    }

    fn exchange(&mut self, request: &str, timeout: Duration) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        self.stream.set_write_timeout(Some(timeout))?;
        // A daemon that takes no more of it has said why.
        if let Err(e) = self.stream.write_all(request.as_bytes())
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(e);
        }
        self.line(Some(deadline))
    }

    /// The next line, without its end.
    fn line(&mut self, deadline: Option<Instant>) -> io::Result<Vec<u8>> {
        let (mut line, mut piece) = (std::mem::take(&mut self.rest), vec![0; 64 * 1024]);
        let mut searched = 0;
        loop {
            if let Some(end) = line.iter().skip(searched).position(|&b| b == b'\n').map(|at| at + searched) {
                self.rest = line.split_off(end + 1);
                line.pop();
                return Ok(line);
            }
            searched = line.len();
            if line.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(left)?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => line.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn reason(error: &io::Error, timeout: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("no answer within {} s", timeout.as_secs())
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            "it closed the connection (it is stopping, or has too many clients)".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn against(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<Value, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        let result = Client::connect(&path).and_then(|mut client| client.call("status"));
        server.join().unwrap();
        result
    }

    #[test]
    fn an_answer_in_pieces_is_put_together() {
        let result = against(|mut stream| {
            for piece in ["{\"jsonrpc\":\"2.0\",\"id\":1,", "\"result\":{\"a\"", ":1}}\nrest"] {
                stream.write_all(piece.as_bytes()).unwrap();
            }
            let _ = stream.read(&mut [0; 100]);
        });
        assert_eq!(result.unwrap(), json!({"a": 1}));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = |serve: fn(UnixStream)| against(serve).unwrap_err().to_string();
        assert!(text(drop).contains("closed the connection"));
        let no_json = text(|mut s| {
            s.write_all(b"hello\n").unwrap();
            let _ = s.read(&mut [0; 100]);
        });
        assert!(no_json.contains("not JSON"), "{no_json}");
        let refused = text(|mut s| {
            s.write_all(b"{\"id\":1,\"error\":{\"code\":-1,\"message\":\"no\"}}\n").unwrap();
            let _ = s.read(&mut [0; 100]);
        });
        assert!(refused.contains("refused status: no"), "{refused}");
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_given_up() {
        let started = Instant::now();
        let error = against(|mut stream| while !matches!(stream.read(&mut [0; 100]), Ok(0) | Err(_)) {});
        assert!(error.unwrap_err().to_string().contains("no answer within 2 s"));
        assert!(started.elapsed() < TIMEOUT * 2);
    }

    #[test]
    fn no_daemon_is_told_with_what_to_do() {
        let error = Client::connect(Path::new("/nonexistent/x.sock")).unwrap_err();
        assert!(error.to_string().contains("no daemon answers at /nonexistent/x.sock"), "{error}");
        assert!(error.to_string().contains("peregrine run -c FILE"), "{error}");
    }
}
