//! The cost table as the run uses it: picoseconds, looked up without a search.

use crate::clock::ps;
use crate::costs::{Cost, CostTable, Locality};
use crate::machine::Machine;

/// Copies up to this are looked up in a list; the rest is interpolated.
const LISTED_BYTES: usize = 2_048;

macro_rules! prices {
    ($($name:ident = $cost:ident,)+) => {
        /// What everything costs, in picoseconds.
        pub(crate) struct Prices {
            pub(crate) machine: Machine,
            $(pub(crate) $name: u64,)+
            /// In nanoseconds, as it is little.
            pub(crate) memory_byte_ns: f64,
            /// Times.
            pub(crate) cold_copy: f64,
            table: CostTable,
            copies: [Vec<u64>; 3],
        }

        impl Prices {
            pub(crate) fn new(table: &CostTable, machine: Machine) -> Prices {
                let copies = [Locality::Own, Locality::Shared, Locality::Remote]
                    .map(|locality| (0..=LISTED_BYTES).map(|bytes| ps(table.copy(locality, bytes as u32))).collect());
                Prices {
                    machine,
                    $($name: ps(table.get(Cost::$cost)),)+
                    memory_byte_ns: table.get(Cost::MemoryByte),
                    cold_copy: table.get(Cost::ColdCopy),
                    table: table.clone(),
                    copies,
                }
            }
        }
    };
}

prices! {
    hypervisor_entry = HypervisorEntry,
    interrupt = Interrupt,
    notify = Notify,
    notify_here = NotifyHere,
    notify_awake = NotifyAwake,
    line = Line,
    wake_latency = WakeLatency,
    fall_asleep = FallAsleep,
    notify_soon = NotifySoon,
    wake_latency_soon = WakeLatencySoon,
    dispatch = Dispatch,
    block = Block,
    idle_wake = IdleWake,
    timer = Timer,
    switch_entry = SwitchEntry,
    switch_frame = SwitchFrame,
    flow_miss = FlowMiss,
    copy_frame = CopyFrame,
    complete = Complete,
    control_plane = ControlPlane,
    send_frame = SendFrame,
    receive_frame = ReceiveFrame,
    send_segment = SendSegment,
    receive_segment = ReceiveSegment,
    ack_frame = AckFrame,
    request = Request,
    grant_copy = GrantCopy,
    grant_copy_frame = GrantCopyFrame,
    netback_frame = NetbackFrame,
    event_channel = EventChannel,
    vhost_frame = VhostFrame,
    bridge_frame = BridgeFrame,
    worker_wake = WorkerWake,
}

impl Prices {
    /// A copy of so many bytes from there.
    #[inline]
    pub(crate) fn copy(&self, locality: Locality, bytes: usize) -> u64 {
        match self.copies[locality as usize].get(bytes) {
            Some(price) => *price,
            None => ps(self.table.copy(locality, bytes as u32)),
        }
    }
}
