//! What the guests are made to do, step by step: each step waits for what it needs, with a deadline.

use super::guest::Guest;
use super::workload::Measured;
use crate::exit::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much longer than planned a step may take: guests are slow to start a program, and share their cores.
const MARGIN: Duration = Duration::from_secs(60);

/// Echo requests of a ping.
const PINGS: u32 = 10;

/// What came of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Requests that were sent.
    pub sent: u32,
    /// Requests that were answered.
    pub received: u32,
    /// The shortest round trip, in milliseconds.
    pub min_ms: f64,
    /// The mean round trip, in milliseconds.
    pub avg_ms: f64,
    /// The longest round trip, in milliseconds.
    pub max_ms: f64,
}

/// Waits until the guest reaches `address`: until its link and the switch's learning have come so far.
///
/// # Errors
/// It does not in time.
pub fn reach(guest: &mut Guest, address: &str) -> Result<(), Failure> {
    guest.run(&format!("until ping -c 1 -W 1 {address} >/dev/null; do :; done"), MARGIN).map(drop)
}

/// Has the guest ping `address`.
///
/// # Errors
/// Nothing answers.
pub fn ping(guest: &mut Guest, address: &str) -> Result<Ping, Failure> {
    let printed = guest.run(&format!("ping -c {PINGS} -i 0.1 -W 5 {address}"), MARGIN)?;
    parse_ping(&printed).ok_or_else(|| unreadable("ping", &printed))
}

/// A stream from one guest to the other, at `address`.
///
/// # Errors
/// It breaks, or bytes arrive that were not sent.
pub fn stream(
    from: &mut Guest,
    to: &mut Guest,
    address: &str,
    duration: Duration,
) -> Result<Measured, Failure> {
    served(to, "sink", duration, |within| {
        from.run(&format!("hyper-switch guest source {address} {}", duration.as_secs_f64()), within)
    })
    .and_then(|(sunk, _)| measured(&sunk))
}

/// Requests of one guest and answers of the other, at `address`.
///
/// # Errors
/// The connection breaks, or an answer is wrong.
pub fn requests(
    from: &mut Guest,
    to: &mut Guest,
    address: &str,
    duration: Duration,
) -> Result<Measured, Failure> {
    served(to, "echo", duration, |within| {
        from.run(&format!("hyper-switch guest ask {address} {}", duration.as_secs_f64()), within)
    })
    .and_then(|(_, asked)| measured(&asked))
}

/// So many datagrams from one guest to the other, at `address`, `per_s` a second.
///
/// # Errors
/// A socket's. Losses are a result.
pub fn datagrams(
    from: &mut Guest,
    to: &mut Guest,
    address: &str,
    datagrams: u64,
    per_s: u64,
) -> Result<Measured, Failure> {
    let duration = Duration::from_secs(datagrams.div_ceil(per_s.max(1)));
    served(to, &format!("receive {datagrams}"), duration, |within| {
        from.run(&format!("hyper-switch guest send {address} {datagrams} {per_s}"), within)
    })
    .and_then(|(received, _)| measured(&received))
}

/// Has `server` do its part of a workload of this duration, and once it listens the client its own. Answers what both
/// printed.
fn served(
    server: &mut Guest,
    part: &str,
    duration: Duration,
    client: impl FnOnce(Duration) -> Result<String, Failure>,
) -> Result<(String, String), Failure> {
    let within = duration + MARGIN;
    server.begin(&format!("hyper-switch guest {part}"))?;
    server.prints("listening", MARGIN)?;
    let asked = client(within)?;
    Ok((server.finish(part, within)?, asked))
}

fn measured(printed: &str) -> Result<Measured, Failure> {
    serde_json::from_str(printed).map_err(|_| unreadable("a workload", printed))
}

fn unreadable(what: &str, printed: &str) -> Failure {
    Failure::new(FailureKind::Runtime, format!("a guest printed of {what} what makes no sense: {printed:?}"))
}

/// What busybox's or iputils' ping says at the end.
fn parse_ping(printed: &str) -> Option<Ping> {
    let counts = printed.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = counts.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let (sent, received) = (numbers.next()?, numbers.next()?);
    let times = printed.lines().find(|line| line.contains("min/avg/max"))?;
    let mut times = times.rsplit_once("= ")?.1.split(['/', ' ']).map_while(|ms| ms.parse().ok());
    let (min_ms, avg_ms, max_ms) = (times.next()?, times.next()?, times.next()?);
    Some(Ping { sent, received, min_ms, avg_ms, max_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both programs' words are read, and what is cut off is not taken for a result.
    #[test]
    fn pings_are_read() {
        let busybox = "10 packets transmitted, 9 packets received, 10% packet loss\n\
                       round-trip min/avg/max = 0.5/1.25/3.0 ms";
        let iputils = "10 packets transmitted, 9 received, 10% packet loss, time 907ms\n\
                       rtt min/avg/max/mdev = 0.5/1.25/3.0/0.9 ms";
        let ping = Ping { sent: 10, received: 9, min_ms: 0.5, avg_ms: 1.25, max_ms: 3.0 };
        assert_eq!([busybox, iputils].map(parse_ping), [Some(ping); 2]);
        assert_eq!(parse_ping("10 packets transmitted, 0 packets received, 100% packet loss"), None);
        assert_eq!(parse_ping(&busybox[..busybox.len() - 8]), None);
    }
}
