//! What runs in a VM of this process: a TCP/IP stack and its half of a workload, or bare frames.

use super::trial::{SERVER_PORT, Side, Trial, Vm};
use crate::cli::Workload as Asked;
use hyper_switch_pvnet::guest::doorbell::Pace;
use hyper_switch_pvnet::guest::raw::{Address, RawConfig, RawGuest};
use hyper_switch_pvnet::guest::workload::{
    DatagramReceiver, DatagramSender, EchoServer, RequestClient, Schedule, Sequence, Status, StreamConfig,
    StreamReceiver, StreamSender, Workload,
};
use hyper_switch_pvnet::guest::{Guest, GuestConfig, GuestCounters, Hypercall, Nic, Poll};
use std::net::SocketAddrV4;

/// What runs in a VM.
pub(super) enum Tenant<'t> {
    Stack { guest: Box<Guest>, work: Box<dyn Work + 't> },
    Raw { guest: Box<RawGuest>, side: Side },
}

impl<'t> Tenant<'t> {
    /// What `trial` wants of `vm`. With a pace, it rings its doorbell for batches.
    pub(super) fn new(vm: Vm, trial: &'t Trial, batching: Option<Pace>) -> Result<Tenant<'t>, String> {
        let numbered = |side| GuestConfig::numbered(Vm { side, ..vm }.number() as u16);
        if trial.workload == Asked::Raw {
            let address = |side| {
                let GuestConfig { mac, ip, .. } = numbered(side);
                Address { mac, ip }
            };
            let (own, peer) = (address(vm.side), address(vm.side.other()));
            let config = RawConfig { own, peer, frame_bytes: trial.frame_bytes, batching };
            let guest = match vm.side {
                Side::Client => RawGuest::sender(config, Schedule::at_rate(trial.rate_per_s)),
                Side::Server => RawGuest::receiver(config),
            };
            let guest = Box::new(guest.map_err(|error| error.to_string())?);
            return Ok(Tenant::Raw { guest, side: vm.side });
        }
        let mut config = GuestConfig { seed: trial.pair_seed(vm.pair), ..numbered(vm.side) };
        config.nic.batching = batching;
        let mut guest = Guest::new(config).map_err(|error| error.to_string())?;
        let server = SocketAddrV4::new(numbered(Side::Server).ip, SERVER_PORT);
        let work = work(vm, trial, server, &mut guest)?;
        Ok(Tenant::Stack { guest: Box::new(guest), work })
    }

    pub(super) fn nic(&self) -> &Nic {
        match self {
            Tenant::Stack { guest, .. } => guest.nic(),
            Tenant::Raw { guest, .. } => guest.nic(),
        }
    }

    /// Entries and interrupts so far.
    pub(super) fn counters(&self) -> GuestCounters {
        match self {
            Tenant::Stack { guest, .. } => guest.counters(),
            Tenant::Raw { guest, .. } => guest.counters(),
        }
    }

    /// Goes on at `now_ns`, and tells when to go on next. The error says what is wrong with the switch.
    pub(super) fn poll(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) -> Result<Poll, String> {
        let polled = match self {
            Tenant::Stack { guest, work } => guest.poll(now_ns, hypercall, work),
            Tenant::Raw { guest, .. } => guest.poll(now_ns, hypercall),
        };
        polled.map_err(|fault| fault.to_string())
    }

    /// How much has arrived, if this end counts. The error says what went wrong.
    pub(super) fn arrived(&self) -> Result<Option<Arrived>, String> {
        match self {
            Tenant::Stack { work, .. } => work.arrived(),
            Tenant::Raw { guest, side: Side::Server } => Ok(Some(Arrived::packets(guest.sequence()))),
            Tenant::Raw { side: Side::Client, .. } => Ok(None),
        }
    }
}

/// How much has arrived at the end of a workload that counts.
#[derive(Clone, Copy)]
pub(super) struct Arrived {
    /// Bytes, answers or packets, as the workload has it.
    pub(super) total: u64,
    /// Where packets are numbered: what became of them.
    pub(super) sequence: Option<Sequence>,
}

impl Arrived {
    fn total(total: u64) -> Arrived {
        Arrived { total, sequence: None }
    }

    fn packets(sequence: Sequence) -> Arrived {
        Arrived { total: sequence.received(), sequence: Some(sequence) }
    }
}

/// A workload that can be asked how it goes.
pub(super) trait Work: Workload {
    /// As [`Tenant::arrived`].
    fn arrived(&self) -> Result<Option<Arrived>, String>;
}

fn work<'t>(
    vm: Vm,
    trial: &'t Trial,
    server: SocketAddrV4,
    guest: &mut Guest,
) -> Result<Box<dyn Work + 't>, String> {
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
            let schedule = Schedule::at_rate(trial.rate_per_s);
            DatagramSender::new(stack, server, trial.datagram_bytes(), None)
                .map(|work| Box::new(work.paced(schedule)) as _)
        }
        (Asked::Udp, Side::Server) => {
            DatagramReceiver::new(stack, SERVER_PORT).map(|work| Box::new(work) as _)
        }
        (Asked::Raw, _) => unreachable!("bare frames need no stack"),
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
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        open(self.status()).map(|()| None)
    }
}

impl Work for StreamReceiver {
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        match self.corrupt_at() {
            Some(offset) => Err(format!("the stream is corrupt from byte {offset} on")),
            None => open(self.status()).map(|()| Some(Arrived::total(self.received_bytes()))),
        }
    }
}

impl<R: FnMut(u64)> Work for RequestClient<R> {
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        open(self.status()).map(|()| Some(Arrived::total(self.completed())))
    }
}

impl Work for EchoServer {
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        open(self.status()).map(|()| None)
    }
}

impl Work for DatagramSender {
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        Ok(None)
    }
}

impl Work for DatagramReceiver {
    fn arrived(&self) -> Result<Option<Arrived>, String> {
        match (self.sequence().reordered(), self.malformed()) {
            (0, 0) => Ok(Some(Arrived::packets(self.sequence()))),
            (reordered, 0) => Err(format!("{reordered} datagrams came out of order")),
            (_, malformed) => Err(format!("{malformed} datagrams came damaged")),
        }
    }
}
