//! The thread that runs a [`LearningSwitch`] between the data plane's events and its requests.
//!
//! It sleeps until an event, a question or the switch's own deadline comes, so an idle switch never wakes
//! it. Requests are sent in the order in which they were made. The receiver of the requests has to go on
//! receiving while it sends events, or the request channel be unbounded; otherwise each side could wait
//! for the other.
//!
//! A panic ends the thread and nothing else: the data plane forwards on, [`ControlPlane::ended`] tells the
//! host, and a new control plane on the same channels takes over ([`crate::learning_switch`], restart).

use crate::learning_switch::{Config, LearningSwitch};
use crate::mac::MacEntry;
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};
use hyper_switch_dataplane::api::{Event, Nanos, Request};
use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A running control plane. Dropping it asks its thread to end, without waiting for that.
#[derive(Debug)]
pub struct ControlPlane {
    questions: Sender<Question>,
    ended: Receiver<Infallible>,
    thread: JoinHandle<End>,
}

/// How a control plane came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Stopped,
    /// The data plane closed a channel: that of the events, or that of the requests when one was to be sent.
    DataPlaneGone,
    /// It panicked, with this message. A new one may take over.
    Panicked(String),
}

/// Why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The control plane has ended, by itself or in a panic.
    #[error("the control plane has ended")]
    Ended,
    /// It did not answer in time.
    #[error("the control plane did not answer within {0:?}")]
    TimedOut(Duration),
}

type Question = Box<dyn FnOnce(&LearningSwitch) + Send>;

impl ControlPlane {
    /// Starts a control plane on a thread named `control-plane`. `clock` is the host's monotonic clock,
    /// the one of the times in the data plane's flow records.
    ///
    /// # Errors
    ///
    /// When the operating system does not grant a thread.
    pub fn spawn(
        config: Config,
        clock: impl Fn() -> Nanos + Send + 'static,
        events: Receiver<Event>,
        requests: Sender<Request>,
    ) -> io::Result<ControlPlane> {
        // Handed over, not queued: a question that nobody will take any more must not seem to be asked.
        let (questions, asked) = bounded(0);
        let (alive, ended) = bounded(0);
        let thread = Builder::new().name("control-plane".into()).spawn(move || {
            let _alive: Sender<Infallible> = alive;
            run(LearningSwitch::new(config), clock, &events, &requests, &asked)
        })?;
        Ok(ControlPlane { questions, ended, thread })
    }

    /// The addresses that are known, by VLAN and address.
    ///
    /// # Errors
    ///
    /// When the control plane has ended, or does not answer within `timeout`.
    pub fn macs(&self, timeout: Duration) -> Result<Vec<MacEntry>, AskError> {
        self.ask(timeout, |switch| switch.macs().collect())
    }

    /// Whether the flows of the data plane are known, and every correction of them is visible to every
    /// core ([`LearningSwitch::is_settled`]).
    ///
    /// # Errors
    ///
    /// As [`ControlPlane::macs`].
    pub fn is_settled(&self, timeout: Duration) -> Result<bool, AskError> {
        self.ask(timeout, LearningSwitch::is_settled)
    }

    /// A channel that never has a message, and is disconnected when the control plane has ended, for
    /// whatever reason: to be waited for by the host that restarts it.
    pub fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }

    /// Asks the control plane to end and waits until it has. Says how it ended, if it had before.
    pub fn stop(self) -> End {
        drop(self.questions);
        self.thread.join().unwrap_or_else(|panic| End::Panicked(message_of(panic.as_ref())))
    }

    fn ask<T: Send + 'static>(
        &self,
        timeout: Duration,
        question: impl FnOnce(&LearningSwitch) -> T + Send + 'static,
    ) -> Result<T, AskError> {
        let (answer, answered) = bounded(1);
        let late = after(timeout);
        // Who asked may have given up waiting: then nobody misses the answer.
        let question: Question = Box::new(move |switch| drop(answer.send(question(switch))));
        select! {
            send(self.questions, question) -> sent => sent.map_err(|_| AskError::Ended)?,
            recv(late) -> _ => return Err(AskError::TimedOut(timeout)),
        }
        select! {
            recv(answered) -> answer => answer.map_err(|_| AskError::Ended),
            recv(late) -> _ => Err(AskError::TimedOut(timeout)),
        }
    }
}

fn run(
    mut switch: LearningSwitch,
    clock: impl Fn() -> Nanos,
    events: &Receiver<Event>,
    requests: &Sender<Request>,
    questions: &Receiver<Question>,
) -> End {
    let mut out = Vec::new();
    loop {
        let now = clock();
        switch.tick(now, &mut out);
        for request in out.drain(..) {
            if requests.send(request).is_err() {
                return End::DataPlaneGone;
            }
        }
        let timer = switch.next_deadline().map_or_else(never, |deadline| after(deadline.since(now)));
        select! {
            recv(events) -> event => match event {
                Ok(event) => switch.handle(clock(), event, &mut out),
                Err(_) => return End::DataPlaneGone,
            },
            recv(questions) -> question => match question {
                Ok(question) => question(&switch),
                Err(_) => return End::Stopped,
            },
            recv(timer) -> _ => {}
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
