//! The control plane's thread: it answers, stops, and dies without taking anybody with it.

use crate::model::{BROADCAST, DataPlane, packet, station};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use hyper_switch_controlplane::control_plane::{AskError, ControlPlane, End};
use hyper_switch_controlplane::learning_switch::Config;
use hyper_switch_dataplane::api::{Event, FlowKey, Nanos, Request, VlanMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Both ends of the two channels, and a data plane that is run by the test between them.
struct Bench {
    plane: DataPlane,
    events: (Sender<Event>, Receiver<Event>),
    requests: (Sender<Request>, Receiver<Request>),
    start: Instant,
    is_fatal: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Bench {
        let (events, requests, is_fatal) = (unbounded(), unbounded(), Arc::default());
        let mut plane = DataPlane::new();
        plane.add_port(1, VlanMode::Transparent);
        plane.add_port(2, VlanMode::Transparent);
        Bench { plane, events, requests, start: Instant::now(), is_fatal }
    }

    /// Starts a control plane whose clock panics once the bench says so.
    fn spawn(&self) -> ControlPlane {
        let (start, is_fatal) = (self.start, self.is_fatal.clone());
        let clock = move || {
            assert!(!is_fatal.load(Ordering::Relaxed), "the clock struck");
            Nanos(u64::try_from(start.elapsed().as_nanos()).expect("a test is short"))
        };
        let (events, requests) = (self.events.1.clone(), self.requests.0.clone());
        ControlPlane::spawn(Config::default(), clock, events, requests).expect("a thread")
    }

    /// Runs the data plane until the control plane has asked for this.
    fn run_until(&mut self, is_it: impl Fn(&Request) -> bool) {
        loop {
            self.plane.events.drain(..).for_each(|event| self.events.0.send(event).expect("it is open"));
            let request = self.requests.1.recv_timeout(PATIENCE).expect("the control plane asks for it");
            let is_done = is_it(&request);
            self.plane.request(Nanos(0), request);
            if is_done {
                return;
            }
        }
    }

    fn send(&mut self, key: FlowKey) {
        self.plane.receive(Nanos(0), key);
        self.run_until(|request| matches!(request, Request::Resolve(..)));
    }
}

fn await_end(control_plane: &ControlPlane) {
    assert_eq!(control_plane.ended().recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

/// A miss is answered, what was learned can be asked for, and the thread ends when it is asked to.
#[test]
fn it_answers_and_stops() {
    let mut bench = Bench::new();
    let control_plane = bench.spawn();
    bench.send(packet(1, 0, station(1), BROADCAST));
    let macs = control_plane.macs(PATIENCE).expect("it lives");
    assert_eq!(macs.iter().map(|entry| entry.key.mac).collect::<Vec<_>>(), [station(1)]);
    assert_eq!(control_plane.is_settled(PATIENCE), Ok(true));
    assert_eq!(bench.plane.fates.len(), 1);
    assert_eq!(control_plane.stop(), End::Stopped);
}

/// A panic ends the thread, the host is told, and a new control plane takes over flows and addresses.
#[test]
fn its_death_is_told_and_survived() {
    let mut bench = Bench::new();
    let control_plane = bench.spawn();
    bench.send(packet(1, 0, station(1), BROADCAST));
    let adopted: Vec<_> = bench.plane.flows.values().map(|flow| flow.spec.clone()).collect();

    bench.is_fatal.store(true, Ordering::Relaxed);
    bench.events.0.send(Event::Barrier(0)).expect("it is open");
    await_end(&control_plane);
    assert_eq!(control_plane.macs(PATIENCE), Err(AskError::Ended));
    assert_eq!(control_plane.stop(), End::Panicked("the clock struck".into()));

    bench.is_fatal.store(false, Ordering::Relaxed);
    let control_plane = bench.spawn();
    bench.send(packet(2, 0, station(2), station(1)));
    let macs = control_plane.macs(PATIENCE).expect("it lives");
    assert_eq!(macs.len(), 2);
    let flows: Vec<_> = bench.plane.flows.values().map(|flow| flow.spec.clone()).collect();
    assert_eq!(flows.len(), 2);
    assert!(flows.starts_with(&adopted));
    assert_eq!(control_plane.stop(), End::Stopped);
}

/// It ends by itself when the data plane closes a channel, whichever.
#[test]
fn it_ends_with_the_data_plane() {
    let Bench { events, requests, .. } = Bench::new();
    let start = |events, requests| {
        ControlPlane::spawn(Config::default(), || Nanos(0), events, requests).expect("a thread")
    };
    let (to_nobody, receiver) = unbounded();
    drop(receiver);
    let (sender, from_nobody) = unbounded();
    drop(sender);
    let unheard = start(events.1.clone(), to_nobody);
    let untold = start(from_nobody, requests.0);
    for control_plane in [unheard, untold] {
        await_end(&control_plane);
        assert_eq!(control_plane.stop(), End::DataPlaneGone);
    }
}
