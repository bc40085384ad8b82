//! What a guest takes is what was sent: in order, whole, and nothing beside it.

use super::{Broken, Rule};
use crate::guest::frame::{self, Letter};
use hyper_switch_pvnet::guest::{Nic, NicFault};
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use std::collections::BTreeMap;

/// What receive buffers are filled with where no frame is.
const CANARY: u8 = 0xc5;
/// Bytes that are looked at behind each frame; at the end all are.
const BEHIND: usize = 64;

/// A frame that a guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) ordinal: u64,
}

/// What one guest sends and takes.
#[derive(Default)]
pub(crate) struct Witness {
    /// VMs that keep no rules: what comes from them may be anything.
    liars: Vec<bool>,
    /// Its receive buffers are filled with canaries: each of them takes any frame, so that each frame lies in one.
    has_canaries: bool,
    /// Of each sender and receiver: the last ordinal that came.
    heard: BTreeMap<(u16, u16), u64>,
    /// When each frame was sent, and its bytes.
    sent: Vec<(u64, usize)>,
    /// What came since it was last asked.
    pub(crate) arrivals: Vec<(Arrival, usize)>,
    /// The first thing that was wrong.
    pub(crate) broken: Option<Broken>,
    /// Frames that it has sent and kicked for, since it was connected.
    pub(crate) kicked: u64,
    /// It is to send no more.
    pub(crate) is_silent: bool,
}

impl Witness {
    /// That of a guest among these.
    pub(crate) fn new(liars: Vec<bool>) -> Witness {
        Witness { liars, ..Witness::default() }
    }

    /// The guest begins, with an interface that is not connected yet.
    pub(crate) fn renew(&mut self, nic: &mut Nic, has_canaries: bool) {
        (self.has_canaries, self.kicked) = (has_canaries, 0);
        if has_canaries {
            let (area, _) = nic.places().rx_buffers.clone();
            let canaries = vec![CANARY; (area.end - area.start) as usize];
            nic.poke(area.start, &canaries).expect("the buffers are in memory");
        }
    }

    /// The next ordinal, that of a frame which is sent now.
    pub(crate) fn send(&mut self, now_ns: u64, bytes: usize) {
        self.sent.push((now_ns, bytes));
    }

    /// When the frame was sent, and how long it was.
    pub(crate) fn sent(&self, ordinal: u64) -> Option<(u64, usize)> {
        self.sent.get(ordinal as usize).copied()
    }

    pub(crate) fn next_ordinal(&self) -> u64 {
        self.sent.len() as u64
    }

    /// The guest `at` gave up, as the switch had lied to it.
    pub(crate) fn give_up(&mut self, at: u16, why: &NicFault) {
        self.fail(Rule::Guest, format!("the driver of VM {at} gave up: {why}"));
    }

    fn fail(&mut self, rule: Rule, says: String) {
        self.broken.get_or_insert((rule, says));
    }

    /// The guest `at` takes a frame.
    pub(crate) fn take(&mut self, at: u16, frame: &[u8]) {
        let has_liars = self.liars.contains(&true);
        let Some(Letter { from, to, ordinal, pattern_at }) = frame::letter(frame) else {
            if !has_liars {
                self.fail(Rule::Damage, format!("VM {at} took {} bytes that nobody sent", frame.len()));
            }
            return;
        };
        let is_liar = |vm: u16| self.liars.get(usize::from(vm)).is_none_or(|liar| *liar);
        if has_liars && (is_liar(from) || is_liar(to)) {
            return;
        }
        if !frame::is_intact(&frame[pattern_at..], ordinal) {
            self.fail(Rule::Damage, format!("frame {ordinal} of VM {from} came damaged to VM {at}"));
        }
        if let Some(last) = self.heard.insert((from, to), ordinal)
            && ordinal <= last
        {
            let says = format!("frame {ordinal} of VM {from} for VM {to} came after {last} to VM {at}");
            self.fail(Rule::Order, says);
        }
        self.arrivals.push((Arrival { from, to, ordinal }, frame.len()));
    }

    /// Looks at what lies behind the frame of `bytes` that was taken last, and puts canaries in its place.
    pub(crate) fn look_behind(&mut self, at: u16, nic: &mut Nic, bytes: usize) {
        let Some(start) = nic.held_buffer().filter(|_| self.has_canaries) else { return };
        let (area, stride) = nic.places().rx_buffers.clone();
        let written = VNET_HDR_BYTES + bytes;
        let end = (start + stride).min(area.end);
        let mut behind = [0; BEHIND];
        let behind = &mut behind[..BEHIND.min((end - start) as usize - written)];
        let read = nic.peek(start + written as u64, behind);
        if read.is_err() || behind.iter().any(|byte| *byte != CANARY) {
            self.fail(Rule::Canary, format!("bytes behind a frame of {bytes} to VM {at} were written"));
        }
        nic.poke(start, &vec![CANARY; written]).expect("the buffer is in memory");
    }

    /// Looks at all receive buffers, in none of which a frame is left.
    pub(crate) fn look_everywhere(&self, at: u16, nic: &Nic) -> Result<(), Broken> {
        if !self.has_canaries {
            return Ok(());
        }
        let (area, _) = nic.places().rx_buffers.clone();
        let mut all = vec![0; (area.end - area.start) as usize];
        nic.peek(area.start, &mut all).expect("the buffers are in memory");
        match all.iter().position(|byte| *byte != CANARY) {
            None => Ok(()),
            Some(place) => {
                let addr = area.start + place as u64;
                Err((Rule::Canary, format!("VM {at} has no frame at {addr:#x}, where something was written")))
            }
        }
    }
}
