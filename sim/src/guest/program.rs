//! What runs in a guest: it is told what came and says what is to be sent, and when.
//!
//! The server speaks first, so that a learning switch knows where it is before the client sends to it; it repeats itself
//! until the client has been heard.

use super::frame::{Says, Transport};
use crate::random::Random;
use crate::scenario::ScenarioError;
use hdrhistogram::Histogram;
use hyper_switch_pvnet::guest::GuestCounters;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;

/// What two guests do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Workload {
    /// The client sends as a TCP with that window does: slow start, additive increase, one half at a loss, everything
    /// again from the lost frame on. The server acknowledges.
    Stream {
        /// Bytes of a frame with data.
        frame_bytes: usize,
        /// Bytes that may be on their way.
        window_bytes: u64,
        /// Every so manieth frame is acknowledged at once.
        #[serde(default = "two")]
        ack_every: u32,
    },
    /// The client sends datagrams.
    Datagrams {
        /// Bytes of a frame.
        frame_bytes: usize,
        /// Frames a second; without it, as many as go.
        #[serde(default)]
        rate_per_s: Option<f64>,
    },
    /// The client sends datagrams for some time, then nothing for some time; both are drawn, exponentially.
    Bursts {
        /// Bytes of a frame.
        frame_bytes: usize,
        /// Frames a second during a burst.
        rate_per_s: f64,
        /// The mean length of a burst.
        on_us: f64,
        /// The mean length of a pause.
        off_us: f64,
    },
    /// The client asks, the server answers, the client asks again.
    Requests {
        /// Bytes of a frame, both ways.
        frame_bytes: usize,
        /// From an answer to the next question.
        #[serde(default)]
        think_us: f64,
        /// The server's VM computes something else while there is no question, so that it runs all the time. It takes
        /// an interrupt at the end of a quantum.
        #[serde(default)]
        server_computes: bool,
    },
    /// Nothing: the VM is only there.
    Idle,
}

fn two() -> u32 {
    2
}

impl Workload {
    /// Bytes of the frames that the client, or the server, sends.
    pub(crate) fn frame_bytes(&self, side: Side) -> usize {
        match (self, side) {
            (
                Workload::Stream { frame_bytes, .. } | Workload::Datagrams { frame_bytes, .. },
                Side::Client,
            )
            | (Workload::Bursts { frame_bytes, .. }, Side::Client)
            | (Workload::Requests { frame_bytes, .. }, _) => *frame_bytes,
            _ => self.short_bytes(),
        }
    }

    /// Says why nobody can do this, if so.
    pub(crate) fn check(&self) -> Result<(), ScenarioError> {
        let lengths = self.transport().frame_bytes();
        for bytes in [Side::Client, Side::Server].map(|side| self.frame_bytes(side)) {
            if !lengths.contains(&bytes) {
                let (least, most) = (*lengths.start(), *lengths.end());
                return Err(ScenarioError::FrameBytes { bytes, least, most });
            }
        }
        let (what, value) = match *self {
            Workload::Stream { window_bytes, .. } => ("the window", window_bytes as f64),
            Workload::Datagrams { rate_per_s: Some(rate), .. } => ("the rate", rate),
            Workload::Bursts { rate_per_s, on_us, off_us, .. } => {
                ("a burst's rate and lengths", rate_per_s.min(on_us).min(off_us))
            }
            Workload::Requests { think_us, .. } if think_us < 0.0 => ("the time to think", think_us),
            _ => return Ok(()),
        };
        if value > 0.0 && value.is_finite() { Ok(()) } else { Err(ScenarioError::Zero { what }) }
    }

    /// Whether that end's VM never blocks.
    pub fn computes(&self, side: Side) -> bool {
        side == Side::Server && matches!(self, Workload::Requests { server_computes: true, .. })
    }

    /// Bytes of a frame without data.
    pub(crate) fn short_bytes(&self) -> usize {
        *self.transport().frame_bytes().start()
    }

    pub(crate) fn transport(&self) -> Transport {
        if matches!(self, Workload::Stream { .. }) { Transport::Tcp } else { Transport::Udp }
    }
}

/// One end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends, or asks.
    Client,
    /// Receives, or answers.
    Server,
}

/// Between two hellos.
const HELLO_EVERY_NS: u64 = 20_000_000;
/// The longest that an acknowledgement waits: data that come in pairs end it sooner (RFC 1122, 4.2.3.2, allows 500 ms).
const LATE_ACK_NS: u64 = 1_000_000;
/// What nobody acknowledges is sent again: Linux's least (`TCP_RTO_MIN`).
const RETRANSMIT_NS: u64 = 200_000_000;
/// Frames that a stream begins with (RFC 6928), and has at least.
const FIRST_FRAMES: f64 = 10.0;
const LEAST_FRAMES: f64 = 2.0;

/// The longest latency that is told apart from longer ones, and its digits.
const LONGEST_NS: u64 = 10_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// What is to be sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This, with so many bytes.
    Frame(Says, usize),
    /// Nothing before this time, if time alone changes that.
    Wait(Option<u64>),
}

/// What came of a guest's work so far.
#[derive(Clone, Debug)]
pub(crate) struct Score {
    /// Frames with data, or answers, taken by what runs above the stack.
    pub(crate) taken: u64,
    /// The bytes of these frames.
    pub(crate) taken_bytes: u64,
    /// Frames that were sent again.
    pub(crate) again: u64,
    /// From question to answer.
    pub(crate) latencies_ns: Histogram<u64>,
    /// Entries and interrupts, as of the last step.
    pub(crate) counters: GuestCounters,
}

impl Score {
    fn new() -> Score {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, LATENCY_DIGITS);
        let latencies_ns = histogram.expect("the bounds are constants that suit each other");
        Score { taken: 0, taken_bytes: 0, again: 0, latencies_ns, counters: GuestCounters::default() }
    }
}

/// A program, as it runs.
pub(crate) struct Program {
    role: Role,
    frame_bytes: usize,
    short_bytes: usize,
    /// The peer has been heard.
    is_met: bool,
    pub(crate) score: Rc<RefCell<Score>>,
}

enum Role {
    Idle,
    StreamSender(StreamSender),
    StreamReceiver {
        expected: u64,
        unacked: u32,
        ack_every: u32,
        ack_by_ns: Option<u64>,
        is_missing: bool,
        hello_ns: u64,
    },
    Sender {
        schedule: Schedule,
        sent: u64,
    },
    /// Counts what comes.
    Counter {
        hello_ns: u64,
    },
    Asker {
        next_ns: Option<u64>,
        think_ns: u64,
    },
    Answerer {
        due: std::collections::VecDeque<u64>,
        hello_ns: u64,
    },
}

/// When the next datagram is due.
enum Schedule {
    Always,
    Every { ns: f64, next_ns: f64 },
    Bursts { random: Random, ns: f64, on_ns: f64, off_ns: f64, next_ns: f64, until_ns: f64 },
}

struct StreamSender {
    /// The next frame to be sent, the first that is not acknowledged, and the highest ever sent.
    next: u64,
    acked: u64,
    highest: u64,
    window_frames: f64,
    most_frames: f64,
    threshold_frames: f64,
    /// A loss before this frame is the same as the last one.
    recover: u64,
    again_ns: u64,
}

impl Program {
    /// That of one side, which may begin before it has heard the other if it `is_eager`.
    pub(crate) fn new(workload: &Workload, side: Side, random: Random, is_eager: bool) -> Program {
        let role = match (*workload, side) {
            (Workload::Idle, _) => Role::Idle,
            (Workload::Stream { frame_bytes, window_bytes, .. }, Side::Client) => {
                let most_frames = (window_bytes as f64 / frame_bytes as f64).max(LEAST_FRAMES);
                Role::StreamSender(StreamSender {
                    next: 0,
                    acked: 0,
                    highest: 0,
                    window_frames: FIRST_FRAMES.min(most_frames),
                    most_frames,
                    threshold_frames: most_frames,
                    recover: 0,
                    again_ns: u64::MAX,
                })
            }
            (Workload::Stream { ack_every, .. }, Side::Server) => Role::StreamReceiver {
                expected: 0,
                unacked: 0,
                ack_every,
                ack_by_ns: None,
                is_missing: false,
                hello_ns: 0,
            },
            (Workload::Datagrams { rate_per_s, .. }, Side::Client) => {
                let schedule = match rate_per_s {
                    None => Schedule::Always,
                    Some(rate) => Schedule::Every { ns: 1e9 / rate, next_ns: 0.0 },
                };
                Role::Sender { schedule, sent: 0 }
            }
            (Workload::Bursts { rate_per_s, on_us, off_us, .. }, Side::Client) => {
                let (ns, on_ns, off_ns) = (1e9 / rate_per_s, on_us * 1e3, off_us * 1e3);
                let schedule = Schedule::Bursts { random, ns, on_ns, off_ns, next_ns: 0.0, until_ns: 0.0 };
                Role::Sender { schedule, sent: 0 }
            }
            (Workload::Datagrams { .. } | Workload::Bursts { .. }, Side::Server) => {
                Role::Counter { hello_ns: 0 }
            }
            (Workload::Requests { think_us, .. }, Side::Client) => {
                Role::Asker { next_ns: Some(0), think_ns: (think_us * 1e3) as u64 }
            }
            (Workload::Requests { .. }, Side::Server) => {
                Role::Answerer { due: Default::default(), hello_ns: 0 }
            }
        };
        Program {
            role,
            frame_bytes: workload.frame_bytes(side),
            short_bytes: workload.short_bytes(),
            is_met: is_eager,
            score: Rc::new(RefCell::new(Score::new())),
        }
    }

    /// A frame of the peer came.
    pub(crate) fn received(&mut self, now_ns: u64, says: Says, bytes: usize) {
        self.is_met = true;
        let score = &mut *self.score.borrow_mut();
        match (&mut self.role, says) {
            (Role::StreamReceiver { expected, unacked, ack_by_ns, is_missing, .. }, Says::Data(number)) => {
                if number == *expected {
                    *expected += 1;
                    *is_missing = false;
                    score.taken += 1;
                    score.taken_bytes += bytes as u64;
                } else {
                    // Something is missing, or came twice: the sender is told at once.
                    *is_missing = number > *expected;
                    *ack_by_ns = Some(0);
                }
                *unacked += 1;
                ack_by_ns.get_or_insert(now_ns + LATE_ACK_NS);
            }
            (Role::StreamSender(sender), Says::Acked(number)) => sender.acked(now_ns, number),
            (Role::StreamSender(sender), Says::Missing(number)) => sender.missing(now_ns, number),
            (Role::Counter { .. }, Says::Data(_)) => {
                score.taken += 1;
                score.taken_bytes += bytes as u64;
            }
            (Role::Answerer { due, .. }, Says::Question(at_ns)) => {
                score.taken += 1;
                score.taken_bytes += bytes as u64;
                due.push_back(at_ns);
            }
            (Role::Asker { next_ns, think_ns }, Says::Answer(at_ns)) => {
                score.taken += 1;
                score.taken_bytes += bytes as u64;
                score.latencies_ns.saturating_record(now_ns.saturating_sub(at_ns));
                *next_ns = Some(now_ns + *think_ns);
            }
            _ => {}
        }
    }

    /// What is to be sent now.
    pub(crate) fn next(&mut self, now_ns: u64) -> Next {
        let (bytes, short) = (self.frame_bytes, self.short_bytes);
        let is_met = self.is_met;
        let hello = |hello_ns: u64| match is_met {
            true => Next::Wait(None),
            false if hello_ns <= now_ns => Next::Frame(Says::Hello, short),
            false => Next::Wait(Some(hello_ns)),
        };
        match &mut self.role {
            Role::Idle => Next::Wait(None),
            Role::StreamReceiver { expected, unacked, ack_every, ack_by_ns, is_missing, hello_ns } => {
                match ack_by_ns {
                    _ if *unacked >= *ack_every || ack_by_ns.is_some_and(|by| by <= now_ns) => {
                        let says =
                            if *is_missing { Says::Missing(*expected) } else { Says::Acked(*expected) };
                        Next::Frame(says, short)
                    }
                    Some(by) => Next::Wait(Some(*by)),
                    None => hello(*hello_ns),
                }
            }
            Role::Counter { hello_ns } => hello(*hello_ns),
            Role::Answerer { due, hello_ns } => match due.front() {
                Some(at_ns) => Next::Frame(Says::Answer(*at_ns), bytes),
                None => hello(*hello_ns),
            },
            // A client waits until it has heard the server, so that its frames are not flooded.
            _ if !is_met => Next::Wait(None),
            Role::StreamSender(sender) => match sender.next(now_ns) {
                Ok(number) => Next::Frame(Says::Data(number), bytes),
                Err(until_ns) => Next::Wait(until_ns),
            },
            Role::Sender { schedule, sent } => match schedule.due(now_ns) {
                None => Next::Frame(Says::Data(*sent), bytes),
                until_ns => Next::Wait(until_ns),
            },
            Role::Asker { next_ns, .. } => match *next_ns {
                Some(at_ns) if at_ns <= now_ns => Next::Frame(Says::Question(now_ns), bytes),
                until_ns => Next::Wait(until_ns),
            },
        }
    }

    /// What [`next`](Program::next) answered was sent.
    pub(crate) fn sent(&mut self, now_ns: u64, says: Says) {
        match (&mut self.role, says) {
            (Role::StreamSender(sender), Says::Data(_)) => {
                self.score.borrow_mut().again += u64::from(sender.next < sender.highest);
                sender.next += 1;
                sender.highest = sender.highest.max(sender.next);
                if sender.again_ns == u64::MAX {
                    sender.again_ns = now_ns + RETRANSMIT_NS;
                }
            }
            (Role::StreamReceiver { unacked, ack_by_ns, .. }, Says::Acked(_) | Says::Missing(_)) => {
                (*unacked, *ack_by_ns) = (0, None);
            }
            (Role::Sender { schedule, sent }, Says::Data(_)) => {
                *sent += 1;
                schedule.sent(now_ns);
            }
            (Role::Asker { next_ns, .. }, Says::Question(_)) => *next_ns = None,
            (Role::Answerer { due, .. }, Says::Answer(_)) => drop(due.pop_front()),
            (
                Role::StreamReceiver { hello_ns, .. }
                | Role::Counter { hello_ns }
                | Role::Answerer { hello_ns, .. },
                Says::Hello,
            ) => *hello_ns = now_ns + HELLO_EVERY_NS,
            _ => {}
        }
    }
}

impl StreamSender {
    /// The number of the next frame; or when there is one, if time alone makes it so.
    fn next(&mut self, now_ns: u64) -> Result<u64, Option<u64>> {
        self.time_out(now_ns);
        if (self.next - self.acked) as f64 + 1.0 <= self.window_frames {
            return Ok(self.next);
        }
        Err((self.again_ns != u64::MAX).then_some(self.again_ns))
    }

    fn acked(&mut self, now_ns: u64, number: u64) {
        if number <= self.acked {
            return;
        }
        let news = (number - self.acked) as f64;
        self.acked = number;
        self.next = self.next.max(number);
        self.window_frames +=
            if self.window_frames < self.threshold_frames { news } else { news / self.window_frames };
        self.window_frames = self.window_frames.min(self.most_frames);
        self.again_ns = if self.acked == self.next { u64::MAX } else { now_ns + RETRANSMIT_NS };
    }

    fn missing(&mut self, now_ns: u64, number: u64) {
        self.acked(now_ns, number);
        if number < self.acked || number < self.recover {
            return;
        }
        self.recover = self.next;
        self.threshold_frames = (self.window_frames / 2.0).max(LEAST_FRAMES);
        self.window_frames = self.threshold_frames;
        self.next = number;
        self.again_ns = now_ns + RETRANSMIT_NS;
    }

    /// The time for an acknowledgement is over.
    fn time_out(&mut self, now_ns: u64) {
        if self.again_ns <= now_ns {
            self.threshold_frames = (self.window_frames / 2.0).max(LEAST_FRAMES);
            self.window_frames = LEAST_FRAMES;
            self.recover = self.next;
            self.next = self.acked;
            self.again_ns = u64::MAX;
        }
    }
}

impl Schedule {
    /// When the next frame is due, if not now.
    fn due(&mut self, now_ns: u64) -> Option<u64> {
        let later = |at_ns: f64| (at_ns > now_ns as f64).then(|| at_ns.ceil() as u64);
        match self {
            Schedule::Always => None,
            Schedule::Every { next_ns, .. } => later(*next_ns),
            Schedule::Bursts { random, on_ns, off_ns, next_ns, until_ns, .. } => {
                while *next_ns >= *until_ns {
                    let start = *until_ns + random.exponential(*off_ns);
                    *until_ns = start + random.exponential(*on_ns);
                    *next_ns = next_ns.max(start);
                }
                later(*next_ns)
            }
        }
    }

    fn sent(&mut self, now_ns: u64) {
        match self {
            Schedule::Always => {}
            // What could not be sent in time is not made up for beyond one interval.
            Schedule::Every { ns, next_ns } | Schedule::Bursts { ns, next_ns, .. } => {
                *next_ns = (*next_ns + *ns).max(now_ns as f64);
            }
        }
    }
}
