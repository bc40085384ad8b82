//! The answering side of the control socket: one thread, which waits for all its clients at once.
//!
//! A client can cost the daemon a bounded amount of memory for a bounded time and nothing else: their
//! number is bounded (the next ones wait in the kernel's backlog), a request has a bounded length, and who
//! does not send a whole request or take a reply in time is hung up on. While a reply waits to be taken,
//! its client is not read from.

use super::protocol::{MAX_REQUEST_BYTES, Refusal, Reply, Request};
use super::socket::CtlSocket;
use super::status::Inspect;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are read at once.
const READ_BYTES: usize = 4096;

/// How long no client is accepted after the system could not give us one more file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Clients that are served at the same time.
    clients: usize,
    /// From the connection, or the last reply, to the end of a request.
    request_time: Duration,
    /// From one sign of life to the next while a reply is taken.
    reply_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { clients: 16, request_time: Duration::from_secs(10), reply_time: Duration::from_secs(10) }
    }
}

/// The thread that answers. Dropped, it is gone, and the socket with it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to answer on `socket` with what `inspect` knows.
    ///
    /// # Errors
    /// The system gives us no thread or file descriptor.
    pub fn start(socket: CtlSocket, inspect: Arc<dyn Inspect>) -> io::Result<Server> {
        Server::start_with(socket, inspect, Limits::default())
    }

    fn start_with(socket: CtlSocket, inspect: Arc<dyn Inspect>, limits: Limits) -> io::Result<Server> {
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("ctl".to_owned()).spawn(move || {
            let service = Service { socket, inspect, limits, clients: Vec::new(), accept_after: None };
            if let Err(error) = service.run(&stopped) {
                tracing::error!("the control socket is closed, the switch goes on: {error}");
            }
        })?;
        Ok(Server { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when the counter is at its maximum, and then the thread has been told already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Service {
    socket: CtlSocket,
    inspect: Arc<dyn Inspect>,
    limits: Limits,
    clients: Vec<Client>,
    accept_after: Option<Instant>,
}

impl Service {
    fn run(mut self, stop: &OwnedFd) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.clients.retain(|client| client.deadline > now);
            self.accept_after = self.accept_after.filter(|at| *at > now);
            let accepting = self.accept_after.is_none() && self.clients.len() < self.limits.clients;

            let deadline = self.clients.iter().map(|client| client.deadline).chain(self.accept_after).min();
            let timeout = deadline.and_then(|at| Timespec::try_from(at.saturating_duration_since(now)).ok());
            let mut polled = vec![PollFd::new(stop, PollFlags::IN)];
            polled.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.awaits())));
            if accepting {
                polled.push(PollFd::new(self.socket.listener(), PollFlags::IN));
            }
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }

            let mut ready = polled.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
            if ready.next() == Some(true) {
                return Ok(());
            }
            let (inspect, limits) = (&*self.inspect, &self.limits);
            self.clients
                .retain_mut(|client| ready.next() != Some(true) || client.serve(inspect, limits).is_ok());
            if ready.next() == Some(true) {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        let accepted = self.socket.listener().accept();
        match accepted.and_then(|(stream, _)| Client::new(stream, &self.limits)) {
            Ok(client) => self.clients.push(client),
            // The client has thought better of it.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!("no client can be accepted on the control socket: {error}");
                self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
            }
        }
    }
}

/// The client is done with, for whatever reason.
struct Finished;

impl From<io::Error> for Finished {
    fn from(_: io::Error) -> Finished {
        Finished
    }
}

struct Client {
    stream: UnixStream,
    /// What came and is not answered; never much longer than a request may be.
    inbox: Vec<u8>,
    /// What is left of the reply that is on its way.
    outbox: io::Cursor<Vec<u8>>,
    /// Hang up when the outbox is empty.
    last_reply: bool,
    deadline: Instant,
}

impl Client {
    fn new(stream: UnixStream, limits: &Limits) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let deadline = Instant::now() + limits.request_time;
        Ok(Client { stream, inbox: Vec::new(), outbox: io::Cursor::default(), last_reply: false, deadline })
    }

    fn unsent(&self) -> &[u8] {
        let sent = usize::try_from(self.outbox.position()).unwrap_or(usize::MAX);
        self.outbox.get_ref().get(sent..).unwrap_or_default()
    }

    fn awaits(&self) -> PollFlags {
        if self.has_work() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Whether a reply is on its way, or a request is here that has none yet.
    fn has_work(&self) -> bool {
        !self.unsent().is_empty() || self.request_end().is_some()
    }

    /// Where the first request in the inbox ends, its newline included.
    fn request_end(&self) -> Option<usize> {
        self.inbox.iter().take(MAX_REQUEST_BYTES + 1).position(|byte| *byte == b'\n').map(|at| at + 1)
    }

    /// Does what can be done without waiting: one read or some writes, and at most one answer, so that
    /// who sends many requests at once takes turns with the other clients.
    fn serve(&mut self, inspect: &dyn Inspect, limits: &Limits) -> Result<(), Finished> {
        if self.has_work() {
            self.write(limits)?;
        } else {
            self.read()?;
        }
        if self.unsent().is_empty() {
            let Some(reply) = self.next_reply(inspect) else { return Ok(()) };
            self.outbox = io::Cursor::new(reply);
            self.deadline = Instant::now() + limits.reply_time;
            self.write(limits)?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Finished> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Finished),
            Ok(count) => {
                self.inbox.extend_from_slice(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) => retry(&error),
        }
    }

    fn write(&mut self, limits: &Limits) -> Result<(), Finished> {
        while !self.unsent().is_empty() {
            match (&self.stream).write(self.unsent()) {
                Ok(0) => return Err(Finished),
                Ok(count) => self.outbox.set_position(self.outbox.position() + count as u64),
                Err(error) => return retry(&error),
            }
            self.deadline = Instant::now() + limits.reply_time;
        }
        self.outbox = io::Cursor::default();
        self.deadline = Instant::now() + limits.request_time;
        if self.last_reply { Err(Finished) } else { Ok(()) }
    }

    /// The answer to the first request in the inbox, if that is whole or too long.
    fn next_reply(&mut self, inspect: &dyn Inspect) -> Option<Vec<u8>> {
        let result = match self.request_end() {
            Some(end) => {
                let line: Vec<u8> = self.inbox.drain(..end).collect();
                Request::from_line(&line).and_then(|request| inspect.answer(request.cmd))
            }
            None if self.inbox.len() > MAX_REQUEST_BYTES => {
                // Where the next request would start is unknown, so there is none.
                self.last_reply = true;
                let message = format!("the request has more than {MAX_REQUEST_BYTES} bytes");
                Err(Refusal::new(message, r#"send one line, for example {"cmd":"ports"}"#))
            }
            None => return None,
        };
        // Strings, numbers and lists of these can always be written; if not, the client is hung up on.
        let mut reply = serde_json::to_vec(&Reply::from(result)).unwrap_or_default();
        self.last_reply |= reply.is_empty();
        reply.push(b'\n');
        Some(reply)
    }
}

fn retry(error: &io::Error) -> Result<(), Finished> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
        _ => Err(Finished),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::super::protocol::{Answer, Query};
    use super::super::status::{FlowStatus, MacStatus, PortStatus, StatsReport};
    use super::*;
    use crate::exit::FailureKind;
    use std::io::{BufRead, BufReader};
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    /// A daemon whose flow table is large, whose control plane is dead, and which is otherwise idle.
    struct Fake {
        flows: usize,
    }

    impl Inspect for Fake {
        fn ports(&self) -> Result<Vec<PortStatus>, Refusal> {
            Ok(vec![])
        }
        fn flows(&self) -> Result<Vec<FlowStatus>, Refusal> {
            let flow = FlowStatus {
                id: 7,
                matches: "in_port=1".into(),
                actions: "output:2".into(),
                packets: u64::MAX,
                bytes: 0,
                idle_ms: None,
                age_ms: 0,
            };
            Ok(vec![flow; self.flows])
        }
        fn macs(&self) -> Result<Vec<MacStatus>, Refusal> {
            Err(Refusal::new("the control plane does not answer", "it is being restarted; ask again"))
        }
        fn stats(&self) -> Result<StatsReport, Refusal> {
            Ok(StatsReport { pid: std::process::id(), ..StatsReport::default() })
        }
    }

    struct Daemon {
        path: PathBuf,
        server: Server,
        _folder: TempDir,
    }

    fn daemon(limits: Limits) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = CtlSocket::bind(&path).unwrap();
        let server = Server::start_with(socket, Arc::new(Fake { flows: 20_000 }), limits).unwrap();
        Daemon { path, server, _folder: folder }
    }

    /// A connection that fails the test rather than hang it.
    fn connect(path: &Path) -> UnixStream {
        crate::owned_socket::dial(path, Duration::from_secs(20)).unwrap()
    }

    fn read_line(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    fn assert_hung_up(stream: &UnixStream) {
        let mut rest = Vec::new();
        let read = { stream }.read_to_end(&mut rest);
        let reset = matches!(&read, Err(error) if error.kind() == ErrorKind::ConnectionReset);
        assert!(read.is_ok() || reset, "{read:?}");
    }

    /// Our own client gets an answer, a refusal with its advice, and an answer of a megabyte or two whole.
    #[test]
    fn questions_are_answered() {
        let daemon = daemon(Limits::default());
        assert_eq!(client::ask(&daemon.path, Query::Ports), Ok(Answer::Ports(vec![])));
        match client::ask(&daemon.path, Query::Flows) {
            Ok(Answer::Flows(flows)) => {
                assert_eq!(flows.len(), 20_000);
                assert_eq!(flows[0].packets, u64::MAX);
            }
            other => panic!("{other:?}"),
        }
        let refusal = client::ask(&daemon.path, Query::Macs).unwrap_err();
        assert_eq!(refusal.message, "the daemon refuses: the control plane does not answer");
        assert_eq!(refusal.help.as_deref(), Some("it is being restarted; ask again"));
    }

    /// A second daemon is refused, told which process has the socket, and the first one goes on; after its
    /// clean stop the path is free and empty.
    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let daemon = daemon(Limits::default());
        let failure = CtlSocket::bind(&daemon.path).unwrap_err();
        assert_eq!(failure.kind, FailureKind::InUse);
        let (pid, shown) = (std::process::id(), daemon.path.display());
        assert_eq!(
            failure.message,
            format!("another hyper-switch (pid {pid}) has the control socket {shown}")
        );
        assert!(client::ask(&daemon.path, Query::Ports).is_ok());

        drop(daemon.server);
        assert!(!daemon.path.exists());
        assert_eq!(client::ask(&daemon.path, Query::Ports).unwrap_err().kind, FailureKind::NoDaemon);
        CtlSocket::bind(&daemon.path).unwrap();
    }

    /// A connection carries many requests, also when they come in one piece, or one in many; what is no
    /// request is refused and the next one answered.
    #[test]
    fn a_connection_carries_many_requests() {
        let daemon = daemon(Limits::default());
        let stream = connect(&daemon.path);
        (&stream).write_all(b"{\"cmd\":\"ports\"}\nhello\n{\"cmd\":").unwrap();
        let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
        assert_eq!(lines.next().unwrap(), r#"{"version":1,"ok":{"ports":[]}}"#);
        assert!(lines.next().unwrap().starts_with(r#"{"version":1,"error":{"message":"this is no request"#));
        (&stream).write_all(b"\"ports\"}\n").unwrap();
        assert_eq!(lines.next().unwrap(), r#"{"version":1,"ok":{"ports":[]}}"#);
    }

    /// A request that never ends is refused at its bound, and its client hung up on.
    #[test]
    fn an_endless_request_is_cut_off() {
        let daemon = daemon(Limits::default());
        let stream = connect(&daemon.path);
        (&stream).write_all(&vec![b' '; MAX_REQUEST_BYTES + 1]).unwrap();
        assert!(read_line(&stream).contains("the request has more than 65536 bytes"));
        assert_hung_up(&stream);
        assert!(client::ask(&daemon.path, Query::Ports).is_ok());
    }

    /// Clients that say nothing, that stop in the middle, and that do not take their replies fill the
    /// server; each is hung up on in time, and the client behind them is served.
    #[test]
    fn idle_clients_are_hung_up_on() {
        let brief = Duration::from_millis(300);
        let daemon = daemon(Limits { clients: 3, request_time: brief, reply_time: brief });
        let silent = connect(&daemon.path);
        let half = connect(&daemon.path);
        // On a loaded machine the server may hang up before this is written.
        let _ = (&half).write_all(b"{\"cmd\":");
        let greedy = connect(&daemon.path);
        let _ = (&greedy).write_all(b"{\"cmd\":\"flows\"}\n");

        assert_eq!(client::ask(&daemon.path, Query::Ports), Ok(Answer::Ports(vec![])));
        assert_hung_up(&silent);
        assert_hung_up(&half);
        let mut hung_up = [PollFd::new(&greedy, PollFlags::RDHUP)];
        let at_most = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut hung_up, Some(&at_most)), Ok(1), "nobody hung up");
        let mut reply = Vec::new();
        (&greedy).read_to_end(&mut reply).unwrap();
        assert!(!reply.ends_with(b"\n"), "a reply that nobody took must not be waited for");
    }

    /// A stop does not wait for clients.
    #[test]
    fn a_stop_does_not_wait_for_clients() {
        let daemon = daemon(Limits::default());
        let silent = connect(&daemon.path);
        drop(daemon.server);
        assert_hung_up(&silent);
    }
}
