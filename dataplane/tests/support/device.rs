//! A device that is a script: what it answers is written down beforehand, what it was given is kept.

use super::Bench;
use hyper_switch_dataplane::api::{PortId, VlanMode};
use hyper_switch_dataplane::{Backend, PortConfig};
use hyper_switch_pvnet::device::{Device, DeviceFault, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES, VnetHdr};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// The device. Without a script it has no frames, and takes all that it is given.
pub struct ScriptedDevice {
    offloads: Offloads,
    script: Mutex<Script>,
}

#[derive(Default)]
struct Script {
    incoming: VecDeque<Vec<u8>>,
    pull_fault: Option<DeviceFault>,
    outcomes: VecDeque<Result<(), PushError>>,
    pushed: Vec<(VnetHdr, Vec<u8>)>,
}

impl ScriptedDevice {
    pub fn new(offloads: Offloads) -> Arc<ScriptedDevice> {
        Arc::new(ScriptedDevice { offloads, script: Mutex::default() })
    }

    /// Attaches it to the switch.
    pub fn attach(self: &Arc<Self>, bench: &mut Bench, name: &str) -> PortId {
        let backend = Backend::Device(self.clone());
        let config = PortConfig { name: name.into(), vlan: VlanMode::Transparent, backend };
        bench.control.attach(config).unwrap()
    }

    /// A frame comes in from the network behind the device.
    pub fn incoming(&self, vnet: &VnetHdr, frame: &[u8]) {
        self.incoming_raw([&vnet.encode(0), frame].concat());
    }

    /// Bytes come in, header and all.
    pub fn incoming_raw(&self, bytes: Vec<u8>) {
        self.script.lock().unwrap().incoming.push_back(bytes);
    }

    /// The next pull, once nothing more comes in, fails.
    pub fn fail_pull(&self, fault: DeviceFault) {
        self.script.lock().unwrap().pull_fault = Some(fault);
    }

    /// What becomes of the next frames that are pushed.
    pub fn answer(&self, outcomes: impl IntoIterator<Item = Result<(), PushError>>) {
        self.script.lock().unwrap().outcomes.extend(outcomes);
    }

    /// The frames that it took since the last call.
    pub fn take_pushed(&self) -> Vec<(VnetHdr, Vec<u8>)> {
        std::mem::take(&mut self.script.lock().unwrap().pushed)
    }

    /// Frames that were not pulled yet.
    pub fn waiting(&self) -> usize {
        self.script.lock().unwrap().incoming.len()
    }
}

impl Device for ScriptedDevice {
    fn pull(&self, slots: &mut [PullSlot]) -> Result<usize, DeviceFault> {
        let mut script = self.script.lock().unwrap();
        if let (true, Some(fault)) = (script.incoming.is_empty(), script.pull_fault) {
            return Err(fault);
        }
        let count = slots.len().min(script.incoming.len());
        for (slot, bytes) in slots.iter_mut().zip(script.incoming.drain(..count)) {
            // SAFETY: the switch vouches for its buffers, which are as long as any frame of the tests.
            unsafe { slot.buffer.write(&bytes) };
            slot.bytes = bytes.len() as u32;
        }
        Ok(count)
    }

    fn push(&self, frames: &[PushFrame<'_>], outcomes: &mut [Result<(), PushError>]) {
        let mut script = self.script.lock().unwrap();
        for (frame, outcome) in frames.iter().zip(outcomes) {
            *outcome = script.outcomes.pop_front().unwrap_or(Ok(()));
            if outcome.is_err() {
                continue;
            }
            let mut bytes = Vec::new();
            for part in frame.parts {
                assert!(!part.is_empty(), "no part of a frame is empty");
                let start = bytes.len();
                bytes.resize(start + part.len() as usize, 0);
                // SAFETY: the switch vouches for the parts during the call.
                unsafe { part.read(&mut bytes[start..]) };
            }
            let vnet = VnetHdr::decode(bytes[..VNET_HDR_BYTES].try_into().unwrap()).unwrap();
            script.pushed.push((vnet, bytes.split_off(VNET_HDR_BYTES)));
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}
