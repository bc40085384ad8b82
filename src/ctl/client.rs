//! The asking side of the control socket.

use super::protocol::{Answer, Outcome, Query, Reply, Request, VERSION};
use super::socket;
use crate::exit::{Failure, FailureKind};
use crate::owned_socket::dial;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

/// How long the daemon may keep us waiting, for the connection and for each part of its answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of a reply: more than a full flow table takes, and a bound for what a wrong socket may
/// send.
const MAX_REPLY_BYTES: u64 = 256 * 1024 * 1024;

/// Asks the daemon that listens at `path`.
///
/// # Errors
/// [`FailureKind::NoDaemon`] if none listens there, [`FailureKind::NotPermitted`] if it is another user's,
/// [`FailureKind::Runtime`] if it does not answer, refuses, or does not speak our protocol.
pub fn ask(path: &Path, query: Query) -> Result<Answer, Failure> {
    let line = exchange(path, query).map_err(|error| explain(path, &error))?;
    let stranger = |what: String| {
        Failure::new(
            FailureKind::Runtime,
            format!("{} does not answer as a hyper-switch: {what}", path.display()),
        )
        .with_help("name the daemon's control socket with --ctl PATH")
    };
    match serde_json::from_slice::<Reply>(&line) {
        Ok(Reply { outcome: Outcome::Error(refusal), .. }) => {
            let failure = Failure::new(FailureKind::Runtime, format!("the daemon refuses: {refusal}"));
            Err(if refusal.help.is_empty() { failure } else { failure.with_help(refusal.help) })
        }
        Ok(Reply { version: VERSION, outcome: Outcome::Ok(answer) }) if answer.is_to(query) => Ok(answer),
        Ok(Reply { version: VERSION, .. }) => Err(stranger("it answers another question".to_owned())),
        Ok(Reply { version, .. }) => Err(stranger(format!("it speaks version {version}, not {VERSION}"))),
        Err(error) => Err(stranger(error.to_string())),
    }
}

fn exchange(path: &Path, query: Query) -> io::Result<Vec<u8>> {
    let mut stream = dial(path, TIMEOUT)?;
    let mut request = serde_json::to_vec(&Request { version: VERSION, cmd: query })?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REPLY_BYTES)).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up before its answer was whole")),
    }
}

fn explain(path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied, TimedOut, WouldBlock};
    let shown = path.display();
    match error.kind() {
        NotFound | ConnectionRefused => {
            // Only who asked at the default place may have meant another default place.
            let roots = Path::new(socket::ROOT_PATH);
            let help = if path != roots && path == socket::default_path() && roots.exists() {
                format!("a daemon of root's may listen at {}: try again as root", roots.display())
            } else {
                "start one, for example: hyper-switch run --port tap:hp0 --port tap:hp1\n      \
                 or name the socket of one that runs with --ctl PATH"
                    .to_owned()
            };
            Failure::new(FailureKind::NoDaemon, format!("no daemon listens at {shown}")).with_help(help)
        }
        PermissionDenied => {
            let message = format!("the daemon at {shown} belongs to another user");
            Failure::new(FailureKind::NotPermitted, message).with_help("ask as that user, usually root")
        }
        TimedOut | WouldBlock => {
            let message = format!("the daemon at {shown} did not answer within {} s", TIMEOUT.as_secs());
            Failure::new(FailureKind::Runtime, message).with_help("its log may say why")
        }
        _ => Failure::new(FailureKind::Runtime, format!("cannot ask the daemon at {shown}: {error}")),
    }
}

impl Answer {
    fn is_to(&self, query: Query) -> bool {
        match self {
            Answer::Ports(_) => query == Query::Ports,
            Answer::Flows(_) => query == Query::Flows,
            Answer::Macs(_) => query == Query::Macs,
            Answer::Stats(_) => query == Query::Stats,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A server that takes one request and says `reply`.
    fn ask_one_that_says(reply: &'static [u8]) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert_eq!(request, "{\"version\":1,\"cmd\":\"macs\"}\n");
            (&stream).write_all(reply).unwrap();
        });
        let failure = ask(&path, Query::Macs).unwrap_err();
        server.join().unwrap();
        assert_eq!(failure.kind, FailureKind::Runtime);
        failure
    }

    /// Where nobody listens, the answer is the path and how to start a daemon.
    #[test]
    fn without_a_daemon_the_user_is_told_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let missing = ask(&path, Query::Ports).unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let dead = ask(&path, Query::Ports).unwrap_err();
        for failure in [missing, dead] {
            assert_eq!(failure.kind, FailureKind::NoDaemon);
            assert_eq!(failure.message, format!("no daemon listens at {}", path.display()));
            assert!(failure.help.is_some());
        }
    }

    /// Whatever is at the other end, its answer is judged, and never believed more than it says.
    #[test]
    fn strange_answers_are_explained() {
        for (reply, part) in [
            (&b""[..], "it hung up before its answer was whole"),
            (b"{\"version\":1,\"ok\":{\"macs\":[]", "it hung up before its answer was whole"),
            (b"220 mail.example ESMTP\n", "does not answer as a hyper-switch"),
            (b"{\"version\":2,\"ok\":{\"macs\":[]}}\n", "it speaks version 2, not 1"),
            (b"{\"version\":1,\"ok\":{\"ports\":[]}}\n", "it answers another question"),
            (b"{\"version\":1,\"error\":{\"message\":\"too busy\"}}\n", "the daemon refuses: too busy"),
        ] {
            let failure = ask_one_that_says(reply);
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
