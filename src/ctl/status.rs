//! What a daemon tells about itself: plain values, as they go over the control socket.
//!
//! `tx` and `rx` are the VM's. Times are spans in milliseconds, as no clock is shared with the asker.

use super::protocol::{Answer, Query, Refusal};
use crate::host::RunSource;
use crate::vm::qemu::RingFormat;
use hyper_switch_dataplane::api::{DropReason, VlanMode};
use hyper_switch_dataplane::host::RunState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What the control socket asks of the daemon. Called on the socket's own thread, and answered there:
/// an answer that takes long holds up other askers, but no packet.
pub trait Inspect: Send + Sync {
    /// The ports, in the order of their numbers.
    ///
    /// # Errors
    /// This and the other methods refuse when the part of the daemon that knows does not answer.
    fn ports(&self) -> Result<Vec<PortStatus>, Refusal>;
    /// The installed flows with their counters.
    fn flows(&self) -> Result<Vec<FlowStatus>, Refusal>;
    /// The MAC addresses that the control plane has learned.
    fn macs(&self) -> Result<Vec<MacStatus>, Refusal>;
    /// Totals, and what each core did.
    fn stats(&self) -> Result<StatsReport, Refusal>;

    /// The answer to any of the queries.
    fn answer(&self, query: Query) -> Result<Answer, Refusal> {
        Ok(match query {
            Query::Ports => Answer::Ports(self.ports()?),
            Query::Flows => Answer::Flows(self.flows()?),
            Query::Macs => Answer::Macs(self.macs()?),
            Query::Stats => Answer::Stats(self.stats()?),
        })
    }
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// What is behind it: `tap`, `packet` or `guest`.
    pub kind: String,
    /// The interface or device behind it.
    pub device: String,
    /// Whether it works.
    #[serde(flatten)]
    pub state: PortState,
    /// Its part in VLANs.
    pub vlan: VlanStatus,
    /// What its VM does.
    #[serde(default)]
    pub vm: VmStatus,
    /// Its VMM; of vhost-user ports alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmStatus>,
    /// What its VM sent.
    pub tx: Traffic,
    /// What its VM received.
    pub rx: Traffic,
    /// Packets that its VM sent and that are not sent on or dropped yet.
    pub in_flight: u64,
    /// Packets in its internal receive queue.
    pub queued: u64,
    /// Packets of its that were shown to the control plane.
    pub upcalls: u64,
}

/// Whether a port works: `"state":"up"`, or `"state":"down"` with the `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum PortState {
    /// It does.
    Up,
    /// It does not.
    Down {
        /// Why, as a sentence.
        reason: String,
    },
}

/// How it stands with a port's VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmStatus {
    /// One is there.
    pub present: bool,
    /// Its VM's rings; `None` if the VM's driver has not set any up.
    pub rings: Option<RingsStatus>,
    /// VMMs that have come since the port was made.
    pub sessions: u64,
    /// How often one, or its VM, broke the rules.
    pub faults: u64,
    /// How the last session ended; `None` if none has.
    pub last_end: Option<String>,
    /// How a VM last broke the rules of its rings; `None` if none has.
    pub last_ring_fault: Option<String>,
}

/// What a VM's driver agreed on for its rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingsStatus {
    /// Queue pairs that run.
    pub queue_pairs: u16,
    /// Their format.
    pub format: RingFormat,
    /// Offloads that the VM may use when it sends: it leaves the work to the switch.
    pub sends: Vec<String>,
    /// Offloads that the VM takes: the switch leaves the work undone. Without, it does it for the VM.
    pub receives: Vec<String>,
}

/// What a VM does, and who says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Who says so.
    pub source: VmSource,
    /// What it does; `None` if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// The core of the machine on which it runs; `None` if it does not, or if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<u16>,
}

/// Who tells what a VM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmSource {
    /// The scheduler, by a BPF program.
    Bpf,
    /// The VM itself.
    #[serde(rename = "own word")]
    OwnWord,
    /// Nobody.
    #[default]
    Unknown,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// It executes.
    Running,
    /// It would, but another has its core.
    Preempted,
    /// It waits for an event.
    Blocked,
}

impl From<(Option<RunState>, RunSource)> for VmStatus {
    fn from((state, source): (Option<RunState>, RunSource)) -> VmStatus {
        let (state, core) = match state {
            Some(RunState::Running(core)) => (Some(VmState::Running), Some(core.0)),
            Some(RunState::Preempted) => (Some(VmState::Preempted), None),
            Some(RunState::Blocked) => (Some(VmState::Blocked), None),
            None => (None, None),
        };
        match source {
            RunSource::Bpf => VmStatus { source: VmSource::Bpf, state, core },
            // It does not know its core.
            RunSource::OwnWord => VmStatus { source: VmSource::OwnWord, state, core: None },
            RunSource::Unknown => VmStatus::default(),
        }
    }
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.state, self.core) {
            (None, _) => f.write_str("unknown")?,
            (Some(VmState::Running), Some(core)) => write!(f, "running on {core}")?,
            (Some(VmState::Running), None) => f.write_str("running")?,
            (Some(VmState::Preempted), _) => f.write_str("preempted")?,
            (Some(VmState::Blocked), _) => f.write_str("blocked")?,
        }
        match self.source {
            VmSource::Bpf => f.write_str(" (bpf)"),
            VmSource::OwnWord => f.write_str(" (own word)"),
            VmSource::Unknown => Ok(()),
        }
    }
}

/// A port's part in VLANs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum VlanStatus {
    /// Frames pass as they are.
    Transparent,
    /// One VLAN, untagged.
    Access {
        /// Its id.
        vid: u16,
    },
    /// Several VLANs, tagged.
    Trunk {
        /// Their ids.
        vids: Vec<u16>,
    },
}

impl From<&VlanMode> for VlanStatus {
    fn from(mode: &VlanMode) -> VlanStatus {
        match mode {
            VlanMode::Transparent => VlanStatus::Transparent,
            VlanMode::Access(vid) => VlanStatus::Access { vid: *vid },
            VlanMode::Trunk(vids) => VlanStatus::Trunk { vids: vids.clone() },
        }
    }
}

impl fmt::Display for VlanStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VlanStatus::Transparent => f.write_str("-"),
            VlanStatus::Access { vid } => write!(f, "access {vid}"),
            VlanStatus::Trunk { vids } => {
                let vids: Vec<String> = vids.iter().map(u16::to_string).collect();
                write!(f, "trunk {}", vids.join("+"))
            }
        }
    }
}

/// Frames in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Of `tx`, the frames that were taken from the VM, with those then dropped; of `rx`, those handed to it.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Frames that were dropped.
    pub drops: Drops,
    /// Nanoseconds for which cores worked on them on the VM's behalf, its own and any other: of `tx`, switched them;
    /// of `rx`, copied them. They are of the clock, so a core that was taken away meanwhile counts.
    #[serde(default)]
    pub work_ns: u64,
}

impl Traffic {
    /// Adds what another port did.
    pub fn add(&mut self, other: &Traffic) {
        self.frames = self.frames.saturating_add(other.frames);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.drops.add(&other.drops);
        self.work_ns = self.work_ns.saturating_add(other.work_ns);
    }
}

/// Dropped frames by reason. Reasons that never happened are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drops(BTreeMap<String, u64>);

impl Drops {
    /// Counts `frames` more drops for this reason.
    pub fn count(&mut self, reason: DropReason, frames: u64) {
        self.count_name(reason.name(), frames);
    }

    /// Adds other drops to these.
    pub fn add(&mut self, other: &Drops) {
        for (name, frames) in &other.0 {
            self.count_name(name, *frames);
        }
    }

    /// The drops for all reasons.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, frames| sum.saturating_add(*frames))
    }

    /// The reasons' names and their counts, the most frequent first. The daemon may be newer than we and
    /// have reasons that we do not know; [`Drops::reason`] tells.
    pub fn by_count(&self) -> Vec<(&str, u64)> {
        let mut counts: Vec<_> = self.0.iter().map(|(name, frames)| (name.as_str(), *frames)).collect();
        counts.sort_by_key(|(name, frames)| (std::cmp::Reverse(*frames), *name));
        counts
    }

    /// The reason that has this name.
    pub fn reason(name: &str) -> Option<DropReason> {
        DropReason::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    fn count_name(&mut self, name: &str, frames: u64) {
        if frames > 0 {
            let count = self.0.entry(name.to_owned()).or_default();
            *count = count.saturating_add(frames);
        }
    }
}

impl FromIterator<(DropReason, u64)> for Drops {
    fn from_iter<I: IntoIterator<Item = (DropReason, u64)>>(counts: I) -> Drops {
        let mut drops = Drops::default();
        for (reason, frames) in counts {
            drops.count(reason, frames);
        }
        drops
    }
}

/// An installed flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Its number.
    pub id: u64,
    /// The packets that it is for.
    #[serde(rename = "match")]
    pub matches: String,
    /// What is done with them.
    pub actions: String,
    /// Packets that matched.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Milliseconds since the last of them; `None` if there was none.
    pub idle_ms: Option<u64>,
    /// Milliseconds since the flow was installed.
    pub age_ms: u64,
}

/// A MAC address that was learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacStatus {
    /// The VLAN that it was seen in; 0 is none.
    pub vlan: u16,
    /// The address, as in `02:00:00:00:00:01`.
    pub mac: String,
    /// The name of the port that it is behind.
    pub port: String,
    /// Milliseconds since it was last seen.
    pub age_ms: u64,
}

/// What the daemon has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReport {
    /// The daemon's process id.
    pub pid: u32,
    /// Its version, as `hyper-switch --version` prints it.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Ports now.
    pub ports: u64,
    /// Installed flows now.
    pub flows: u64,
    /// Known MAC addresses now.
    pub macs: u64,
    /// What all VMs sent.
    pub tx: Traffic,
    /// What all VMs received.
    pub rx: Traffic,
    /// What each core did.
    pub cores: Vec<CoreStatus>,
}

impl StatsReport {
    /// The drops of both directions. Each dropped frame is counted in one of them only.
    pub fn drops(&self) -> Drops {
        let mut drops = self.tx.drops.clone();
        drops.add(&self.rx.drops);
        drops
    }
}

/// What one core did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreStatus {
    /// Its number.
    pub core: u32,
    /// Entries into the switch, of all kinds.
    pub entries: u64,
    /// Entries of a sender.
    pub transmit_calls: u64,
    /// Entries of a receiver.
    pub receive_calls: u64,
    /// Entries as an idle core.
    pub idle_calls: u64,
    /// Lookups that the core's exact-match cache answered.
    pub cache_hits: u64,
    /// Lookups that the megaflow table answered.
    pub megaflow_hits: u64,
    /// Lookups that nothing answered.
    pub misses: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_switch_dataplane::host::CoreId;

    /// Drops add up by reason, those that never happened are left out, and the most frequent come first.
    #[test]
    fn drops_add_up() {
        let counts = [(DropReason::Truncated, 0), (DropReason::TooLong, 2), (DropReason::RxQueueFull, 5)];
        let mut drops: Drops = counts.into_iter().collect();
        drops.add(&drops.clone());
        assert_eq!(drops.by_count(), [("rx_queue_full", 10), ("too_long", 4)]);
        assert_eq!(drops.total(), 14);
        assert_eq!(Drops::reason("too_long"), Some(DropReason::TooLong));
        assert_eq!(Drops::reason("of_a_newer_daemon"), None);
    }

    /// Who says it stands behind what a VM does, and nothing is said of the core that nobody knows.
    #[test]
    fn a_vms_state_names_its_source() {
        let running = Some(RunState::Running(CoreId(3)));
        for (seen, text, json) in [
            (
                (running, RunSource::Bpf),
                "running on 3 (bpf)",
                r#"{"source":"bpf","state":"running","core":3}"#,
            ),
            (
                (running, RunSource::OwnWord),
                "running (own word)",
                r#"{"source":"own word","state":"running"}"#,
            ),
            (
                (Some(RunState::Preempted), RunSource::Bpf),
                "preempted (bpf)",
                r#"{"source":"bpf","state":"preempted"}"#,
            ),
            ((None, RunSource::Bpf), "unknown (bpf)", r#"{"source":"bpf"}"#),
            ((None, RunSource::Unknown), "unknown", r#"{"source":"unknown"}"#),
        ] {
            let status = VmStatus::from(seen);
            assert_eq!(status.to_string(), text);
            assert_eq!(serde_json::to_string(&status).unwrap(), json);
            assert_eq!(serde_json::from_str::<VmStatus>(json).unwrap(), status);
        }
    }

    /// A port's state is one flat word in JSON, as the example of `ctl --help` filters by it.
    #[test]
    fn a_port_is_flat_in_json() {
        let port = PortStatus {
            id: 1,
            name: "a".into(),
            kind: "tap".into(),
            device: "hp0".into(),
            state: PortState::Down { reason: "the interface is gone".into() },
            vlan: VlanStatus::from(&VlanMode::Access(7)),
            vm: VmStatus::from((Some(RunState::Running(CoreId(1))), RunSource::Bpf)),
            vmm: None,
            tx: Traffic {
                frames: 1,
                bytes: 60,
                drops: [(DropReason::Truncated, 1)].into_iter().collect(),
                work_ns: 300,
            },
            rx: Traffic::default(),
            in_flight: 0,
            queued: 0,
            upcalls: 0,
        };
        let json = serde_json::to_value(&port).unwrap();
        assert_eq!(json["state"], "down");
        assert_eq!(json["reason"], "the interface is gone");
        assert_eq!(json["vlan"], serde_json::json!({"mode": "access", "vid": 7}));
        assert_eq!(json["vm"], serde_json::json!({"source": "bpf", "state": "running", "core": 1}));
        assert_eq!(json.get("vmm"), None, "of vhost-user ports alone");
        assert_eq!(json["tx"]["drops"], serde_json::json!({"truncated": 1}));
        assert_eq!(serde_json::from_value::<PortStatus>(json).unwrap(), port);
    }
}
