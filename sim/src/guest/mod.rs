//! A modelled guest: the real driver and real rings, and above them a stack that is only its cost.
//!
//! | module | noun |
//! | --- | --- |
//! | `frame` | what guests send each other |
//! | `program` | the workload's two ends |

pub(crate) mod frame;
pub(crate) mod program;

use crate::arch::entrance::Seat;
use crate::check::witness::Witness;
use crate::clock::{Account, PS};
use crate::host::{SimHost, TaskId};
use crate::random::Random;
use frame::{Says, Template};
use hyper_switch_pvnet::guest::doorbell::Pace;
use hyper_switch_pvnet::guest::driver::Driver;
use hyper_switch_pvnet::guest::raw::BURST;
use hyper_switch_pvnet::guest::{Hypercall, Nic, NicConfig, NicConfigError, NicFault};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES};
use hyper_switch_pvnet::ring::RingFormat;
use program::{Next, Program, Score, Side, Workload};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;

/// Buffers of each ring are as many as these bytes hold, within [`SLOTS`]: as many as a Linux guest's 256 descriptors of
/// a page each.
const RING_BYTES: usize = 1 << 21;
const SLOTS: RangeInclusive<usize> = 16..=256;

/// A large frame is cut to, or made of, segments of so many bytes: Ethernet's 1500, without IPv4's and TCP's headers
/// and TCP's timestamps.
const SEGMENT_BYTES: usize = 1_448;
/// A frame up to this is one segment.
const WIRE_BYTES: usize = 1_514;

/// How a guest's interface is made, where that is not as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NicShape {
    pub(crate) ring: RingFormat,
    pub(crate) event_idx: bool,
    pub(crate) rx_slots: u16,
    pub(crate) rx_buffer_bytes: u32,
    pub(crate) tx_slots: u16,
}

/// What a guest is made for.
#[derive(Clone, Debug)]
pub(crate) struct GuestConfig {
    /// Its number, and that of the guest that it talks to.
    pub(crate) own: u16,
    pub(crate) peer: u16,
    pub(crate) side: Side,
    pub(crate) workload: Workload,
    /// How its doorbell is batched; if not at all, each frame rings.
    pub(crate) batching: Option<Pace>,
    /// Data are copied between socket and packet, as a kernel does.
    pub(crate) copies: bool,
    /// Frames are filled with what can be compared when they arrive.
    pub(crate) verifies: bool,
    /// Others to whom it sends data in turn with its peer.
    pub(crate) others: Vec<u16>,
    /// It sends though it has not heard its peer.
    pub(crate) is_eager: bool,
    pub(crate) shape: Option<NicShape>,
}

/// What a step of a guest came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more to do.
    Busy,
    /// Nothing until an interrupt, or until this time.
    Blocks(Option<u64>),
}

/// A VM's software.
pub(crate) struct Guest {
    number: u16,
    driver: Driver,
    program: Program,
    /// Those to the peer first, then those to the others.
    data: Vec<Template>,
    short: Template,
    data_bytes: usize,
    rx_buffer_bytes: u32,
    copies: bool,
    verifies: bool,
    computes: bool,
    /// It has nothing else to do than to compute before this time, but for an interrupt.
    computes_until_ns: u64,
    ordinal: u64,
    /// To whom it sends next.
    turn: usize,
    /// Who watches what it sends and takes.
    witness: Option<Rc<RefCell<Witness>>>,
}

impl Guest {
    pub(crate) fn new(config: &GuestConfig, random: Random) -> Result<Guest, NicConfigError> {
        let GuestConfig { own, peer, side, workload, batching, copies, verifies, is_eager, shape, .. } =
            *config;
        let most_bytes = workload.frame_bytes(Side::Client).max(workload.frame_bytes(Side::Server));
        let slots = (RING_BYTES / most_bytes.next_power_of_two()).clamp(*SLOTS.start(), *SLOTS.end());
        let NicShape { ring, event_idx, rx_slots, rx_buffer_bytes, tx_slots } = shape.unwrap_or(NicShape {
            ring: RingFormat::Split,
            event_idx: true,
            rx_slots: slots as u16,
            // All receive buffers together take the largest frame that there is, since a switch may send it.
            rx_buffer_bytes: (VNET_HDR_BYTES + most_bytes).max(512) as u32,
            tx_slots: slots as u16,
        });
        let nic = Nic::new(NicConfig {
            offloads: Offloads::NONE,
            ring,
            event_idx,
            mtu_bytes: (most_bytes - 14).max(576) as u16,
            rx_slots,
            rx_buffer_bytes,
            tx_slots,
            batching,
        })?;
        let data_bytes = workload.frame_bytes(side);
        let template = |peer, bytes| Template::new(own, peer, workload.transport(), bytes);
        let peers = [peer].into_iter().chain(config.others.iter().copied());
        Ok(Guest {
            number: own,
            driver: Driver::new(nic),
            program: Program::new(&workload, side, random, is_eager),
            data: peers.map(|peer| template(peer, data_bytes)).collect(),
            short: template(peer, workload.short_bytes()),
            data_bytes,
            rx_buffer_bytes,
            copies,
            verifies,
            computes: workload.computes(side),
            computes_until_ns: 0,
            ordinal: 0,
            turn: 0,
            witness: None,
        })
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.driver.nic
    }

    pub(crate) fn nic_mut(&mut self) -> &mut Nic {
        &mut self.driver.nic
    }

    /// Bytes of each receive buffer, `virtio_net_hdr` included.
    pub(crate) fn rx_buffer_bytes(&self) -> u32 {
        self.rx_buffer_bytes
    }

    /// From now on what it sends and takes is watched; its frames are numbered on from those of before.
    pub(crate) fn watch(&mut self, witness: Rc<RefCell<Witness>>, is_whole: bool) {
        witness.borrow_mut().renew(&mut self.driver.nic, is_whole);
        self.ordinal = witness.borrow().next_ordinal();
        self.witness = Some(witness);
    }

    /// What has come of its work, as it goes on.
    pub(crate) fn score(&self) -> Rc<RefCell<Score>> {
        self.program.score.clone()
    }

    /// Receives for about `quantum_ns`, and sends for as long. Bare guests receive all and send a burst, as
    /// [`RawGuest`](hyper_switch_pvnet::guest::raw::RawGuest) does.
    pub(crate) fn step(
        &mut self,
        seat: Seat<'_>,
        quantum_ns: u64,
        hypercall: &mut dyn Hypercall,
    ) -> Result<Step, NicFault> {
        let (calls, frames) =
            (self.driver.counters.transmit_hypercalls, self.driver.nic.counters().tx_frames);
        let step = self.work(seat, quantum_ns, hypercall);
        if let Some(witness) = &self.witness {
            match &step {
                // Whatever it sent before it blocks it has kicked for.
                Ok(Step::Blocks(_)) => witness.borrow_mut().kicked = self.driver.nic.counters().tx_frames,
                Ok(Step::Busy) if self.driver.counters.transmit_hypercalls > calls => {
                    witness.borrow_mut().kicked = frames;
                }
                Ok(Step::Busy) => {}
                Err(why) => witness.borrow_mut().give_up(self.number, why),
            }
        }
        step
    }

    fn work(
        &mut self,
        seat: Seat<'_>,
        quantum_ns: u64,
        hypercall: &mut dyn Hypercall,
    ) -> Result<Step, NicFault> {
        let host = seat.host;
        let clock = &host.clock;
        let now_ns = clock.now().0;
        let is_interrupted = || host.signalled(TaskId(self.number)).is_some_and(|at_ns| at_ns <= now_ns);
        if now_ns < self.computes_until_ns && !is_interrupted() {
            clock.charge(Account::Application, quantum_ns * PS);
            return Ok(Step::Busy);
        }
        self.computes_until_ns = 0;
        let is_bare = !self.copies;
        let end_ns = clock.spent_ns() + quantum_ns;
        self.driver.wake(hypercall);
        let mut is_busy = false;
        while (is_bare || clock.spent_ns() < end_ns) && self.receive(host)? {
            is_busy = true;
            seat.keep_pace();
        }
        self.driver.nic.reclaim()?;
        // Sending has its own time, lest what comes keep acknowledgements back.
        let end_ns = clock.spent_ns() + quantum_ns;
        let (mut until_ns, mut sent) = (None, 0);
        let is_silent = self.witness.as_ref().is_some_and(|witness| witness.borrow().is_silent);
        let ends = |sent: usize| if is_bare { sent == BURST } else { clock.spent_ns() >= end_ns };
        while !is_silent && !ends(sent) {
            let now_ns = clock.now().0;
            match self.program.next(now_ns) {
                Next::Wait(at_ns) => {
                    until_ns = at_ns;
                    break;
                }
                Next::Frame(says, bytes) => {
                    if !self.send(now_ns, says, bytes)? {
                        break;
                    }
                    (is_busy, sent) = (true, sent + 1);
                    self.charge_sending(host, says, bytes);
                    self.program.sent(now_ns, says);
                    seat.keep_pace();
                    self.driver.announce_each(clock.now().0, hypercall);
                }
            }
        }
        self.driver.publish(clock.now().0, hypercall);
        self.program.score.borrow_mut().counters = self.driver.counters;
        if is_busy || !self.driver.park(clock.now().0, hypercall) {
            return Ok(Step::Busy);
        }
        // Without a transmit buffer it is the switch that says when to go on.
        let until_ns = if self.driver.nic.is_tx_starved() { None } else { until_ns };
        if self.computes {
            self.computes_until_ns = until_ns.unwrap_or(u64::MAX);
            return Ok(Step::Busy);
        }
        Ok(Step::Blocks(until_ns))
    }

    /// Takes the next frame; `false` if there is none.
    fn receive(&mut self, host: &SimHost) -> Result<bool, NicFault> {
        let SimHost { clock, prices, .. } = host;
        let Some(frame) = self.driver.nic.next_frame()? else { return Ok(false) };
        clock.charge(Account::Receive, host.lines(host.copier(self.number)));
        let bytes = frame.len();
        let read = self.data[0].read(frame);
        if let Some(witness) = &self.witness {
            let mut witness = witness.borrow_mut();
            witness.take(self.number, frame);
            witness.look_behind(self.number, &mut self.driver.nic, bytes);
        }
        let Some((_, says)) = read else {
            clock.charge(Account::Receive, prices.ack_frame);
            return Ok(true);
        };
        match says {
            Says::Acked(_) | Says::Missing(_) | Says::Hello => {
                clock.charge(Account::Receive, prices.ack_frame);
            }
            Says::Data(_) | Says::Question(_) | Says::Answer(_) => {
                clock.charge(
                    Account::Receive,
                    prices.receive_frame + segments(bytes) * prices.receive_segment,
                );
                if self.copies {
                    host.copy(Account::SocketCopy, host.copier(self.number), bytes);
                }
                if !matches!(says, Says::Data(_)) {
                    clock.charge(Account::Application, prices.request);
                }
            }
        }
        self.program.received(clock.now().0, says, bytes);
        Ok(true)
    }

    /// Puts a frame into the transmit ring, at `now_ns`; `false` if no buffer is free.
    fn send(&mut self, now_ns: u64, says: Says, bytes: usize) -> Result<bool, NicFault> {
        let (ordinal, verifies) = (self.ordinal, self.verifies);
        let is_data = bytes == self.data_bytes;
        let template = if is_data { &self.data[self.turn] } else { &self.short };
        let is_sent = self.driver.nic.send(bytes, |frame| {
            template.write(frame, ordinal, says);
            if verifies {
                frame::fill(&mut frame[template.pattern_at()..], ordinal);
            }
        })?;
        if is_sent {
            self.ordinal += 1;
            if is_data {
                self.turn = (self.turn + 1) % self.data.len();
            }
            if let Some(witness) = &self.witness {
                witness.borrow_mut().send(now_ns, bytes);
            }
        }
        Ok(is_sent)
    }

    fn charge_sending(&self, host: &SimHost, says: Says, bytes: usize) {
        let SimHost { clock, prices, .. } = host;
        match says {
            Says::Acked(_) | Says::Missing(_) | Says::Hello => clock.charge(Account::Send, prices.ack_frame),
            Says::Data(_) | Says::Question(_) | Says::Answer(_) => {
                clock.charge(Account::Send, prices.send_frame + segments(bytes) * prices.send_segment);
                if self.copies {
                    host.copy(Account::SocketCopy, clock.core(), bytes);
                }
            }
        }
    }
}

/// Segments of a frame that is cut, or was put together; none of one that is as it is on the wire.
fn segments(bytes: usize) -> u64 {
    if bytes <= WIRE_BYTES { 0 } else { bytes.div_ceil(SEGMENT_BYTES) as u64 }
}
