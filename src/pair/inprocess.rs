//! VMs of this process: each a thread with guest memory, two rings and a TCP/IP stack of its own. The thread
//! itself enters the switch, as a hypercall does, and blocks in one place, until its interrupt comes.

use super::trial::{SERVER_PORT, Side, StopOnDrop, Trial, Vm};
use super::{Outcome, cannot, joined};
use crate::cli::Workload as Asked;
use crate::exit::Failure;
use crate::host::{Entrance, GuestBell, HostConfig, Runtime, now};
use crate::progress::Progress;
use crossbeam_channel::{Receiver, Sender, bounded};
use hyper_switch_controlplane::learning_switch::Config as LearningConfig;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_pvnet::guest::workload::{
    DatagramReceiver, DatagramSender, EchoServer, RequestClient, Status, StreamConfig, StreamReceiver,
    StreamSender, Workload,
};
use hyper_switch_pvnet::guest::{Guest, GuestConfig, Hypercall, Poll};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

/// Runs `trial` on a switch of its own, which nothing of an earlier trial has warmed.
pub(super) fn run(
    trial: &Trial,
    interrupted: &AtomicBool,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let config =
        HostConfig { workers: Vec::new(), guests: trial.vms().len(), learning: LearningConfig::default() };
    let runtime = &Runtime::start(&config).map_err(cannot("start the switch"))?;
    let mut before = None;
    let measured = thread::scope(|scope| {
        let (attached, attaching) = bounded(trial.vms().len());
        // Nobody talks before all are there, lest the first question be flooded past the one it is for.
        let (go, start) = bounded(0);
        let stop = StopOnDrop(trial);
        let mut threads = Vec::new();
        for vm in trial.vms() {
            let (attached, start) = (attached.clone(), start.clone());
            let spawned = thread::Builder::new()
                .name(vm.name())
                .spawn_scoped(scope, move || live(vm, trial, runtime, attached, &start));
            threads.push((vm, spawned.map_err(cannot("start the thread of a VM"))?));
        }
        drop(attached);
        // Ends when every VM is attached, or has given up and so let go of its end of the channel.
        let ready = attaching.iter().count();
        before = runtime.snapshot();
        drop(go);
        let watched = if ready == threads.len() {
            let ended = || threads.iter().any(|(_, thread)| thread.is_finished());
            trial.watch(interrupted, ended, progress)
        } else {
            Ok(None)
        };
        drop(stop);
        joined(threads)?;
        watched
    })?;
    Outcome::between(trial, measured, before, runtime.snapshot())
}

/// The life of a VM's thread, until the trial stops. The error says what went wrong in the VM.
fn live(
    vm: Vm,
    trial: &Trial,
    runtime: &Runtime,
    attached: Sender<()>,
    start: &Receiver<()>,
) -> Result<(), String> {
    let number = vm.number() as u16;
    let config = GuestConfig { seed: trial.pair_seed(vm.pair), ..GuestConfig::numbered(number) };
    let mut guest = Guest::new(config).map_err(|error| error.to_string())?;
    let bell = Arc::new(GuestBell::of_this_thread());
    let nic = guest.nic();
    let backend = VmBackend {
        memory: nic.memory().clone(),
        tx: nic.tx_layout(),
        rx: nic.rx_layout(),
        features: nic.queue_features(),
        mergeable: true,
        offloads: nic.offloads(),
    };
    let entrance = runtime.entrance().ok_or("the switch has no entrance left")?;
    let port = runtime.attach_vm(&vm.name(), backend, bell.clone()).map_err(|error| error.to_string())?;
    trial.wake_at_stop(bell.clone());
    let mut hypercall = GuestEntrance { entrance, port, bell };
    let mut work = work(vm, trial, &mut guest)?;
    // The other end of the channel is there for as long as this thread.
    let _ = attached.send(());
    drop(attached);
    // Answers when the channel is closed, which is the sign to start.
    let _ = start.recv();

    while !trial.is_stopping() {
        match guest.poll(now().0, &mut hypercall, &mut work).map_err(|fault| fault.to_string())? {
            Poll::Busy => {}
            Poll::Idle { until_ns } => {
                let timeout = until_ns.map(|until| Nanos(until).since(now()));
                hypercall.bell.wait(timeout);
                continue;
            }
        }
        if let Some(total) = work.progress()? {
            trial.arrived(vm.pair, total);
        }
    }
    Ok(())
}

/// A guest's thread's way into the switch, and its interrupt.
struct GuestEntrance {
    entrance: Entrance,
    port: PortId,
    bell: Arc<GuestBell>,
}

impl Hypercall for GuestEntrance {
    fn transmit(&mut self) {
        self.entrance.transmit(self.port);
    }

    fn receive(&mut self) {
        self.entrance.receive(self.port);
    }

    fn take_interrupt(&mut self) -> bool {
        self.bell.take()
    }

    fn frames_wait(&mut self) -> bool {
        self.entrance.frames_wait(self.port)
    }
}

/// A workload that can be asked how it goes.
trait Work: Workload {
    /// How much has arrived, if this end counts. The error says what went wrong.
    fn progress(&self) -> Result<Option<u64>, String>;
}

fn work<'t>(vm: Vm, trial: &'t Trial, guest: &mut Guest) -> Result<Box<dyn Work + 't>, String> {
    let server = Vm { side: Side::Server, ..vm };
    let server = SocketAddrV4::new(GuestConfig::numbered(server.number() as u16).ip, SERVER_PORT);
    let stream = StreamConfig { seed: trial.pair_seed(vm.pair), ..StreamConfig::default() };
    let stack = guest.stack();
    let made: Result<Box<dyn Work + 't>, _> = match (trial.workload, vm.side) {
        (Asked::Stream, Side::Client) => {
            StreamSender::new(stack, server, None, stream).map(|work| Box::new(work) as _)
        }
        (Asked::Stream, Side::Server) => {
            StreamReceiver::new(stack, SERVER_PORT, stream).map(|work| Box::new(work) as _)
        }
        (Asked::Rr, Side::Client) => {
            let record = move |latency_ns| trial.answered_in(vm.pair, latency_ns);
            RequestClient::new(stack, server, None, record).map(|work| Box::new(work) as _)
        }
        (Asked::Rr, Side::Server) => EchoServer::new(stack, SERVER_PORT).map(|work| Box::new(work) as _),
        (Asked::Udp, Side::Client) => {
            let datagram_bytes = trial.datagram_bytes();
            DatagramSender::new(stack, server, datagram_bytes, None).map(|work| Box::new(work) as _)
        }
        (Asked::Udp, Side::Server) => {
            DatagramReceiver::new(stack, SERVER_PORT).map(|work| Box::new(work) as _)
        }
    };
    made.map_err(|error| error.to_string())
}

/// A connection that has no end of its own must not have one.
fn open(status: Status) -> Result<(), String> {
    match status {
        Status::Running => Ok(()),
        Status::Done => Err("the peer closed the connection".to_owned()),
        Status::Broken => Err("the connection broke".to_owned()),
    }
}

impl Work for StreamSender {
    fn progress(&self) -> Result<Option<u64>, String> {
        open(self.status()).map(|()| None)
    }
}

impl Work for StreamReceiver {
    fn progress(&self) -> Result<Option<u64>, String> {
        match self.corrupt_at() {
            Some(offset) => Err(format!("the stream is corrupt from byte {offset} on")),
            None => open(self.status()).map(|()| Some(self.received_bytes())),
        }
    }
}

impl<R: FnMut(u64)> Work for RequestClient<R> {
    fn progress(&self) -> Result<Option<u64>, String> {
        open(self.status()).map(|()| Some(self.completed()))
    }
}

impl Work for EchoServer {
    fn progress(&self) -> Result<Option<u64>, String> {
        open(self.status()).map(|()| None)
    }
}

impl Work for DatagramSender {
    fn progress(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }
}

impl Work for DatagramReceiver {
    fn progress(&self) -> Result<Option<u64>, String> {
        match (self.reordered(), self.malformed()) {
            (0, 0) => Ok(Some(self.received())),
            (reordered, 0) => Err(format!("{reordered} datagrams came out of order")),
            (_, malformed) => Err(format!("{malformed} datagrams came damaged")),
        }
    }
}
