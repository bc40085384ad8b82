//! What guests do with each other, each part a command that a guest executes: its own kernel's sockets and its own clock.
//! Who serves prints `listening` when it does; who measures prints what came of it as a line of JSON.

use crate::cli::Workload;
use hdrhistogram::Histogram;
use hyper_switch_pvnet::guest::workload::{Pattern, Schedule, Sequence};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

/// The port on which a guest serves, TCP or UDP.
const PORT: u16 = 5_201;

/// Room for datagrams that a guest has not come to read: it may have no processor for a while, and they are to be lost
/// nowhere but on their way.
const ROOM_BYTES: usize = 8 << 20;

/// How long nothing may arrive before whoever receives gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that a stream's ends hand to the kernel, or take from it, in one call.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes of a datagram: its number, and what makes it 64 bytes in a frame.
const DATAGRAM_BYTES: usize = 22;

/// The seed of a stream's bytes.
const SEED: u64 = 1;

/// A guest's part.
#[derive(Clone, Copy, Debug, PartialEq, clap::Subcommand)]
pub enum Part {
    /// Takes a stream and measures it
    Sink,
    /// Sends a stream to a guest
    Source {
        /// The guest
        to: Ipv4Addr,
        /// For how long
        seconds: f64,
    },
    /// Answers each byte with itself
    Echo,
    /// Asks a guest that answers, byte by byte, and measures the answers
    Ask {
        /// The guest
        of: Ipv4Addr,
        /// For how long
        seconds: f64,
    },
    /// Takes datagrams until so many have come, or none comes any more
    Receive {
        /// How many are sent
        datagrams: u64,
    },
    /// Sends datagrams to a guest at an even rate
    Send {
        /// The guest
        to: Ipv4Addr,
        /// How many
        datagrams: u64,
        /// How many a second
        per_s: NonZeroU64,
    },
}

/// What a workload came to. What it does not measure is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the guests did.
    pub workload: Workload,
    /// How long it was measured, in seconds.
    pub seconds: f64,
    /// Payload that arrived, in 10^9 bits a second.
    pub throughput_gbps: Option<f64>,
    /// Requests that were answered, or datagrams that arrived, a second.
    pub transactions_per_s: Option<f64>,
    /// The median of the time from a request to its answer, in microseconds.
    pub p50_us: Option<f64>,
    /// The time within which 99 of 100 requests were answered, in microseconds.
    pub p99_us: Option<f64>,
    /// The longest time that a request took, in microseconds.
    pub max_us: Option<f64>,
    /// Datagrams that did not arrive.
    pub lost: Option<u64>,
    /// Datagrams that arrived behind a later one.
    pub reordered: Option<u64>,
}

impl Measured {
    fn new(workload: Workload, elapsed: Duration) -> Measured {
        Measured {
            workload,
            seconds: elapsed.as_secs_f64(),
            throughput_gbps: None,
            transactions_per_s: None,
            p50_us: None,
            p99_us: None,
            max_us: None,
            lost: None,
            reordered: None,
        }
    }
}

impl Part {
    /// Its name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Sink => "sink",
            Part::Source { .. } => "source",
            Part::Echo => "echo",
            Part::Ask { .. } => "ask",
            Part::Receive { .. } => "receive",
            Part::Send { .. } => "send",
        }
    }

    /// Does the part to its end, printing to `out`.
    ///
    /// # Errors
    /// A socket's; data that is not what was sent, or nothing within a bound.
    pub fn play(self, out: &mut impl Write) -> io::Result<()> {
        let any = (Ipv4Addr::UNSPECIFIED, PORT);
        let mut listening = || writeln!(out, "listening").and_then(|()| out.flush());
        let measured = match self {
            Part::Sink => {
                let listener = TcpListener::bind(any)?;
                listening()?;
                Some(sink(listener.accept()?.0)?)
            }
            Part::Source { to, seconds } => {
                source(TcpStream::connect((to, PORT))?, span(seconds)?).map(|()| None)?
            }
            Part::Echo => {
                let listener = TcpListener::bind(any)?;
                listening()?;
                echo(listener.accept()?.0).map(|()| None)?
            }
            Part::Ask { of, seconds } => Some(ask(TcpStream::connect((of, PORT))?, span(seconds)?)?),
            Part::Receive { datagrams } => {
                let socket = UdpSocket::bind(any)?;
                listening()?;
                Some(receive(&socket, datagrams)?)
            }
            Part::Send { to, datagrams, per_s } => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((to, PORT))?;
                send(&socket, datagrams, per_s).map(|()| None)?
            }
        };
        match measured {
            Some(measured) => writeln!(out, "{}", serde_json::to_string(&measured)?),
            None => Ok(()),
        }
    }
}

fn span(seconds: f64) -> io::Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(io::Error::other)
}

fn source(mut socket: TcpStream, duration: Duration) -> io::Result<()> {
    let pattern = Pattern::new(SEED);
    let (started, mut offset) = (Instant::now(), 0);
    while started.elapsed() < duration {
        offset += socket.write(pattern.run(offset, CHUNK_BYTES))? as u64;
    }
    Ok(())
}

fn sink(mut socket: TcpStream) -> io::Result<Measured> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let pattern = Pattern::new(SEED);
    let (started, mut offset) = (Instant::now(), 0);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let bytes = socket.read(&mut buffer)?;
        if bytes == 0 {
            break;
        }
        if !pattern.matches(offset, &buffer[..bytes]) {
            return Err(io::Error::other(format!("the stream is corrupt behind byte {offset}")));
        }
        offset += bytes as u64;
    }
    let measured = Measured::new(Workload::Stream, started.elapsed());
    Ok(Measured { throughput_gbps: Some(offset as f64 * 8e-9 / measured.seconds), ..measured })
}

fn echo(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    while socket.read(&mut byte)? > 0 {
        socket.write_all(&byte)?;
    }
    Ok(())
}

fn ask(mut socket: TcpStream, duration: Duration) -> io::Result<Measured> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let longest_ns = PATIENCE.as_nanos() as u64;
    let latencies_ns = Histogram::<u64>::new_with_bounds(1, longest_ns, 3);
    let mut latencies_ns = latencies_ns.expect("the bounds are apart, and three digits few");
    let started = Instant::now();
    while started.elapsed() < duration {
        let asked = Instant::now();
        let question = [latencies_ns.len() as u8];
        socket.write_all(&question)?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        if answer != question {
            return Err(io::Error::other(format!("answer {} is not the question", latencies_ns.len())));
        }
        latencies_ns.saturating_record(asked.elapsed().as_nanos() as u64);
    }
    let measured = Measured::new(Workload::Rr, started.elapsed());
    let us = |ns: u64| Some(ns as f64 / 1e3);
    Ok(Measured {
        transactions_per_s: Some(latencies_ns.len() as f64 / measured.seconds),
        p50_us: us(latencies_ns.value_at_quantile(0.5)),
        p99_us: us(latencies_ns.value_at_quantile(0.99)),
        max_us: us(latencies_ns.max()),
        ..measured
    })
}

fn send(socket: &UdpSocket, datagrams: u64, per_s: NonZeroU64) -> io::Result<()> {
    let mut schedule = Schedule::at_rate(Some(per_s));
    let started = Instant::now();
    for number in 0..datagrams {
        let now_ns = started.elapsed().as_nanos() as u64;
        if let Some(due_ns) = schedule.next_ns(now_ns, number) {
            thread::sleep(Duration::from_nanos(due_ns - now_ns));
        }
        let mut datagram = [0; DATAGRAM_BYTES];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&datagram)?;
    }
    Ok(())
}

fn receive(socket: &UdpSocket, datagrams: u64) -> io::Result<Measured> {
    socket.set_read_timeout(Some(PATIENCE))?;
    // Only root may have that much, as guests are; elsewhere the usual room has to do.
    let _ = set_socket_recv_buffer_size_force(socket, ROOM_BYTES);
    let mut sequence = Sequence::default();
    let (mut first, mut last) = (None, Instant::now());
    let mut datagram = [0; DATAGRAM_BYTES];
    while sequence.received() < datagrams {
        match socket.recv(&mut datagram) {
            Ok(DATAGRAM_BYTES) => {}
            Ok(bytes) => return Err(io::Error::other(format!("a datagram of {bytes} bytes"))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error),
        }
        last = Instant::now();
        first.get_or_insert(last);
        let number = datagram.first_chunk().copied().map_or(0, u64::from_be_bytes);
        sequence.note(number);
    }
    let elapsed = first.map_or(Duration::ZERO, |first| last - first);
    let rate = sequence.received() as f64 / elapsed.as_secs_f64();
    Ok(Measured {
        transactions_per_s: rate.is_finite().then_some(rate),
        throughput_gbps: rate.is_finite().then_some(rate * DATAGRAM_BYTES as f64 * 8e-9),
        lost: Some(datagrams - sequence.received()),
        reordered: Some(sequence.reordered()),
        ..Measured::new(Workload::Udp, elapsed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends of a connection within this machine.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Runs both ends at the same time.
    fn both<T>(client: impl FnOnce() -> io::Result<()> + Send, server: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let client = scope.spawn(client);
            let served = server();
            client.join().unwrap().unwrap();
            served
        })
    }

    /// A stream is measured; one with a byte that is not of it is an error that says where.
    #[test]
    fn a_stream_is_measured_and_a_corrupt_one_refused() {
        let (client, server) = connection();
        let measured = both(|| source(client, Duration::from_millis(20)), || sink(server)).unwrap();
        assert_eq!(measured.workload, Workload::Stream);
        assert!(measured.throughput_gbps > Some(0.0), "{measured:?}");

        let (mut client, server) = connection();
        let error = both(move || client.write_all(&[0; 100]), || sink(server)).unwrap_err();
        assert_eq!(error.to_string(), "the stream is corrupt behind byte 0");
    }

    /// Answers are timed; a wrong one is an error.
    #[test]
    fn requests_are_timed_and_wrong_answers_refused() {
        let (client, server) = connection();
        let measured = both(|| echo(server), || ask(client, Duration::from_millis(20))).unwrap();
        assert!(measured.transactions_per_s > Some(0.0), "{measured:?}");
        assert!(measured.p50_us > Some(0.0) && measured.p50_us <= measured.max_us, "{measured:?}");

        let (client, mut server) = connection();
        let error = both(move || server.write_all(&[7]), || ask(client, Duration::from_secs(20)));
        assert_eq!(error.unwrap_err().to_string(), "answer 0 is not the question");
    }

    /// Datagrams are counted, at the rate at which they are sent.
    #[test]
    fn datagrams_are_counted() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let per_s = NonZeroU64::new(1_000).unwrap();
        let measured = both(|| send(&sender, 21, per_s), || receive(&receiver, 21)).unwrap();
        assert_eq!((measured.lost, measured.reordered), (Some(0), Some(0)));
        assert!(measured.transactions_per_s > Some(0.0), "{measured:?}");
        sender.send(b"short").unwrap();
        assert_eq!(receive(&receiver, 1).unwrap_err().to_string(), "a datagram of 5 bytes");
    }
}
