//! The rows of a cost table that are one figure each: a closed list, and what each of them is.

use super::Unit;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Declares the costs. What the documentation says of one is what [`Cost::meaning`] answers.
macro_rules! costs {
    ($($(#[doc = $line:literal])+ $variant:ident = $name:literal,)+) => {
        /// A piece of work, or a time that passes, that the simulator charges.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Cost {
            $($(#[doc = $line])+ #[serde(rename = $name)] $variant,)+
        }

        impl Cost {
            /// All of them, in the order of a table.
            pub const ALL: [Cost; [$($name),+].len()] = [$(Cost::$variant),+];

            /// Its name in a table.
            pub fn name(self) -> &'static str {
                match self { $(Cost::$variant => $name,)+ }
            }

            /// What it is counted in.
            pub fn unit(self) -> Unit {
                if self == Cost::ColdCopy { Unit::Times } else { Unit::Nanoseconds }
            }

            /// What exactly it is, in a sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Cost::$variant => concat!($($line),+).trim_ascii(),)+ }
            }

            /// What it is, in one line: the beginning of [`meaning`](Cost::meaning).
            pub fn brief(self) -> &'static str {
                let meaning = self.meaning();
                let end = [", ", ": ", "; ", ". ", "."].into_iter().filter_map(|mark| meaning.find(mark)).min();
                &meaning[..end.unwrap_or(meaning.len())]
            }
        }
    };
}

costs! {
    /// A vCPU's way into the hypervisor and back: a hypercall or a VM exit, without the work that is done there.
    HypervisorEntry = "hypervisor_entry",
    /// What a running vCPU pays to take a virtual interrupt: its delivery, the guest's handler up to the look at
    /// the ring, and the end of the interrupt.
    Interrupt = "interrupt",
    /// What the notifying core pays to notify a VM: marking the event, waking the vCPU up if it blocks, and the
    /// message to its core.
    Notify = "notify",
    /// What the notifying core pays where the VM is awake already: marking the event, and a message to its core.
    NotifyAwake = "notify_awake",
    /// What a core pays to notify a VM that is blocked and at home on this same core: as `notify`, without the message.
    NotifyHere = "notify_here",
    /// Looking at what another core has written: a cache line that comes from there while nothing else is done. Paid once
    /// for a frame that is received, switched or copied on another core than the one that wrote it.
    Line = "line",
    /// From a notification until a blocked vCPU begins to be dispatched on an idle core. It is latency: the
    /// notifying core goes on meanwhile.
    WakeLatency = "wake_latency",
    /// How long a core that has nothing to do any more takes to fall asleep. Until then, whoever blocked there last is told
    /// and wakes up at the next two costs instead of `notify` and `wake_latency`.
    FallAsleep = "fall_asleep",
    /// What the notifying core pays to notify a VM that blocked less than `fall_asleep` ago: no message is needed.
    NotifySoon = "notify_soon",
    /// From that notification until the vCPU begins to be dispatched. It is latency.
    WakeLatencySoon = "wake_latency_soon",
    /// What a core pays to switch to a vCPU, or to any other thread, from whatever it ran before.
    Dispatch = "dispatch",
    /// A vCPU's way into blocking, all in all: the guest's idle loop, the entry, the scheduler taking it off its core.
    Block = "block",
    /// From the direct message to an idle core until this core is in the switch. It is latency: the sender of
    /// the message goes on meanwhile.
    IdleWake = "idle_wake",
    /// What a core pays for a timer of the hypervisor that fires, without what is then done.
    Timer = "timer",
    /// Fixed cost of an entry in the switch itself, however many frames it carries; `hypervisor_entry` comes before it.
    SwitchEntry = "switch_entry",
    /// Switching one frame: copy of its headers, extraction of its key, a lookup that hits, queueing.
    SwitchFrame = "switch_frame",
    /// What a frame without a flow costs beside `switch_frame`: a lookup in vain, the upcall, and carrying out its answer.
    FlowMiss = "flow_miss",
    /// Fixed cost of one frame's copy: ring work on the receiver's side and the sender's completion. The bytes come
    /// on top, by the copy table.
    CopyFrame = "copy_frame",
    /// Giving buffers back to the VM that sent them, any number at once. Its transmit side is taken meanwhile: who finds
    /// it so leaves word.
    Complete = "complete",
    /// From an upcall until the control plane's answer is there. It is latency, spent on no simulated core.
    ControlPlane = "control_plane",
    /// A guest's driver and stack for a frame that it sends, of whatever size, without copies of its bytes.
    SendFrame = "send_frame",
    /// A guest's driver and stack for a frame that it receives, of whatever size, without copies of its bytes.
    ReceiveFrame = "receive_frame",
    /// What each segment of 1,448 bytes within a large frame adds to `send_frame`, as its pages need descriptors and
    /// fragments of their own though segmentation is offloaded. 0: a frame costs the same at any size.
    SendSegment = "send_segment",
    /// What each segment of 1,448 bytes within a large frame adds to `receive_frame`. 0: a frame costs the same at
    /// any size.
    ReceiveSegment = "receive_segment",
    /// A guest's driver and stack for a pure acknowledgement, sent or received.
    AckFrame = "ack_frame",
    /// An application's work for a request or for its response, system calls included.
    Request = "request",
    /// A driver domain's grant-copy hypercall without its operations; its entry is included.
    GrantCopy = "grant_copy",
    /// An operation of a driver domain's grant copy, of one page at most, without copying the bytes.
    GrantCopyFrame = "grant_copy_frame",
    /// A frame's way through the driver domain, from one back end through the software switch to the other.
    NetbackFrame = "netback_frame",
    /// Sending on an event channel, from a guest or the driver domain: the hypercall and what the hypervisor does for it.
    EventChannel = "event_channel",
    /// What a vhost worker pays for a frame in each of the two directions, without the bridge and the copy.
    VhostFrame = "vhost_frame",
    /// A frame's way through the host's bridge, from one TAP to the other.
    BridgeFrame = "bridge_frame",
    /// What waking a vhost worker up costs, whoever does it.
    WorkerWake = "worker_wake",
    /// What each byte of a large copy takes of the memory that all cores share; 0: of that there is enough.
    MemoryByte = "memory_byte",
    /// How many times as long, and as much of that memory, a copy takes to or from a packet in a kernel's own memory,
    /// which is allocated anew and in no cache, as one between guests' buffers.
    ColdCopy = "cold_copy",
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that a cost's place in the list is its number, by which tables are indexed, and that each says what it is.
    #[test]
    fn costs_are_numbered_and_explained() {
        for (at, cost) in Cost::ALL.into_iter().enumerate() {
            assert_eq!(cost as usize, at, "{cost}");
            assert!(
                cost.meaning().ends_with('.') && !cost.meaning().contains("  "),
                "{cost}: {}",
                cost.meaning()
            );
        }
    }
}
