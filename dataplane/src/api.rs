//! What the two planes say to each other. A control plane sees this module and nothing else.
//!
//! A control plane sends [`Request`]s and is sent [`Event`]s, both in order, as plain values: it may run
//! on another thread, in another process, or not at all. The data plane forwards on with the flows that it
//! has; a new control plane begins with [`Request::List`] and finds them there.

use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;
use core::time::Duration;

pub use crate::action::{Action, FieldValue};
pub use crate::key::{FlowKey, HEADER_BYTES, Match, VLAN_PRESENT};

/// A port of the switch: where a VM or a device is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A point in time: nanoseconds of the host's monotonic clock, from an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The time that has passed since `earlier`; zero if that is later.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point moved on by `by`.
    pub fn after(self, by: Duration) -> Nanos {
        Nanos(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Names a flow for its whole life; chosen by the control plane, never used twice by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

/// A megaflow: packets that match it get its actions. No two installed flows overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSpec {
    /// Its name.
    pub id: FlowId,
    /// The packets that it is for.
    pub matches: Match,
    /// What is done with them, in order; nothing means drop, counted as [`DropReason::FlowDrop`].
    pub actions: Arc<[Action]>,
}

/// Why a flow could not be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The table has as many flows as it was made for.
    #[error("the flow table is full ({0} flows)")]
    TableFull(usize),
    /// One mask more would let an attacker slow every lookup down (CVE-2019-25076).
    #[error("the flow table has its {0} masks")]
    TooManyMasks(usize),
    /// A flow with the same match is there.
    #[error("flow {0:?} has the same match")]
    Exists(FlowId),
    /// The id is in use by another flow.
    #[error("flow id {0:?} is in use")]
    DuplicateId(FlowId),
    /// An action names a port that the switch cannot have.
    #[error("no port {0} can exist")]
    NoSuchPort(PortId),
    /// More outputs than one packet may have.
    #[error("more than {0} outputs")]
    TooManyOutputs(usize),
}

/// An installed flow and what it has done.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// The flow.
    pub spec: FlowSpec,
    /// Packets that matched.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last of them matched.
    pub used: Option<Nanos>,
    /// When the flow was installed.
    pub installed: Nanos,
}

/// How a port takes part in VLANs (IEEE 802.1Q).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VlanMode {
    /// Frames pass as they are; an untagged frame belongs to no VLAN (VLAN 0).
    #[default]
    Transparent,
    /// The port belongs to one VLAN; its own frames are untagged.
    Access(u16),
    /// The port carries these VLANs, tagged. Untagged frames are dropped.
    Trunk(Vec<u16>),
}

/// A port as the control plane knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its number.
    pub id: PortId,
    /// Its name, as the user gave it.
    pub name: alloc::string::String,
    /// Its part in VLANs.
    pub vlan: VlanMode,
}

/// Names one upcall: the port or lane whose packet waits, and a number that it does not use twice. Which port the
/// packet came from is in the upcall's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpcallId {
    /// The port, or the lane of a port with several, whose packet waits.
    pub port: PortId,
    /// Which of its upcalls.
    pub number: u32,
}

/// Why a packet is shown to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpcallReason {
    /// No flow matched.
    Miss,
    /// A flow's action says so.
    Action,
}

/// A packet that waits for the control plane's [`Verdict`]. The packet itself stays where its sender put
/// it; packets of the same flow wait behind it, so that their order holds. Unanswered in time, it is a
/// counted drop.
#[derive(Clone, Debug)]
pub struct Upcall {
    /// Names it in [`Request::Resolve`].
    pub id: UpcallId,
    /// Why it comes.
    pub reason: UpcallReason,
    /// The packet's key; `key.in_port` is the port that it came from.
    pub key: FlowKey,
    /// The first bytes of the frame.
    pub header: ArrayVec<u8, HEADER_BYTES>,
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
}

/// What becomes of a packet that waited, and of those that wait behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look it up again: the control plane has installed a flow for it.
    Retry,
    /// Do this with it; nothing was installed.
    Execute(Arc<[Action]>),
    /// Drop it, counted as [`DropReason::ControlPlane`].
    Drop,
}

/// What a control plane asks of the data plane.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the common case is the large one, and a box would allocate for each"
)]
pub enum Request {
    /// Installs a flow; failure is answered with [`Event::InstallFailed`].
    Install(FlowSpec),
    /// Gives an installed flow other actions, keeping its counters. Unknown ids are ignored.
    Modify(FlowId, Arc<[Action]>),
    /// Removes a flow. Unknown ids are ignored.
    Remove(FlowId),
    /// Decides on a packet that waits.
    Resolve(UpcallId, Verdict),
    /// Asks for [`Event::Ports`] and then [`Event::Flows`].
    List,
    /// Asks for [`Event::Barrier`] once every earlier request is visible to every core.
    Barrier(u64),
}

/// What a control plane is told.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the common case is the large one, and a box would allocate for each"
)]
pub enum Event {
    /// A packet waits.
    Upcall(Upcall),
    /// A port was attached, or a backend was connected to it.
    PortAdded(PortInfo),
    /// A port went, or what was connected to it. Flows that output to it are still there, and drop
    /// ([`DropReason::NoSuchPort`], [`DropReason::PortAbsent`]), until the control plane changes them.
    PortRemoved(PortId),
    /// All ports, as asked for.
    Ports(Vec<PortInfo>),
    /// All flows with their counters, as asked for.
    Flows(Vec<FlowRecord>),
    /// A flow that was asked for is not there.
    InstallFailed(FlowId, InstallError),
    /// Answers [`Request::Barrier`].
    Barrier(u64),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped. Every drop has exactly one reason and is counted at one port: the
        /// sender's for what is wrong with the packet, the receiver's for what it could not take.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The reason's name in counters, logs and command output.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One sentence for a person who asks.
            pub fn explain(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+).trim_start(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header.
    Truncated = "truncated",
    /// The frame is longer than any that the switch carries.
    TooLong = "too_long",
    /// A VLAN tag is cut off by the end of the frame.
    BadVlan = "bad_vlan",
    /// An IP header's lengths contradict each other or the frame.
    BadIpLength = "bad_ip_length",
    /// The virtio_net_hdr cannot be true of its frame.
    BadVnetHdr = "bad_vnet_hdr",
    /// The flow that matched has no actions.
    FlowDrop = "flow_drop",
    /// The control plane decided to drop the packet.
    ControlPlane = "control_plane",
    /// The flow outputs to a port that is not there.
    NoSuchPort = "no_such_port",
    /// The flow outputs to a port that nothing is connected to.
    PortAbsent = "port_absent",
    /// As many packets of this port wait for the control plane as may.
    UpcallQueueFull = "upcall_queue_full",
    /// The control plane did not answer in time.
    UpcallTimeout = "upcall_timeout",
    /// An action cannot be applied to this packet.
    BadEdit = "bad_edit",
    /// As many rewritten headers of this port wait for receivers as may.
    EditsExhausted = "edits_exhausted",
    /// The port went down while the packet waited.
    PortDown = "port_down",
    /// The receiver's internal queue is full.
    RxQueueFull = "rx_queue_full",
    /// The receiver posted no buffer in time.
    RxStalled = "rx_stalled",
    /// The receiver's posted buffers cannot hold the frame.
    RxTooLong = "rx_too_long",
    /// The receiver's ring is broken.
    RxFault = "rx_fault",
    /// The packet needs an offload that the receiver lacks and that cannot be made up for it.
    OffloadImpossible = "offload_impossible",
    /// The device's own queue is full.
    DeviceFull = "device_full",
    /// The device's link is down.
    DeviceLinkDown = "device_link_down",
    /// The device refused the frame.
    DeviceRefused = "device_refused",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
