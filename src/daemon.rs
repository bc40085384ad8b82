//! The daemon: a learning switch over its ports until it is told to stop.

use crate::config::{LearningOptions, RunOptions};
use crate::core_list::CoreList;
use crate::ctl::protocol::Refusal;
use crate::ctl::server::Server;
use crate::ctl::socket::CtlSocket;
use crate::ctl::status::{
    CoreStatus, FlowStatus, Inspect, MacStatus, PortState, PortStatus, RingsStatus, StatsReport, Traffic,
    VlanStatus, VmStatus, VmmStatus,
};
use crate::exit::{Failure, FailureKind};
use crate::host::{
    EndpointError, HostConfig, NetDevice, Runtime, Snapshot, VhostUserFailure, VmThreads, VmmRings,
    VmmStanding, now,
};
use crate::owned_socket::BindError;
use crate::port_spec::{Attachment, PortSpec};
use crate::report;
use crate::vm::qemu::RingFormat;
use hyper_switch_controlplane::learning_switch::Config as LearningConfig;
use hyper_switch_controlplane::mac::MacEntry;
use hyper_switch_dataplane::PortFault;
use hyper_switch_dataplane::api::{DropReason, PortId};
use hyper_switch_dataplane::counters::{CoreActivity, DROP_REASONS};
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_pvnet::header::Offloads;
use hyper_switch_pvnet::packet::{PacketError, PacketSocket};
use hyper_switch_pvnet::sched::{Process, Watcher};
use hyper_switch_pvnet::tap::{Tap, TapError};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Runs a switch until SIGINT or SIGTERM and answers the summary to be shown.
///
/// # Errors
/// A port, the control socket or a thread that cannot be had. What was begun is undone.
pub fn run(options: &RunOptions) -> Result<String, Failure> {
    let cannot = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Failure::from_io(&what, &error)
    };
    // First of all, so that a signal that comes during the start stops what was started.
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(cannot("cannot catch signals"))?;
    let socket = CtlSocket::bind(&options.ctl_socket)?;
    let config = HostConfig {
        workers: workers(options.cores.as_ref()),
        guests: 0,
        learning: learning(&options.learning),
        optimisations: options.optimisations.into(),
        pace: Pace::default(),
    };
    let mut runtime = Runtime::start(&config).map_err(cannot("cannot start the switch"))?;
    let mut attached = HashMap::new();
    for spec in &options.ports {
        let threads = vm_threads(spec)?;
        let port = attach(&mut runtime, spec)?;
        tracing::info!(port = %spec.name, device = %spec.attachment, "attached");
        if let Some(threads) = threads {
            runtime.watch_vm(port, threads);
        }
        attached.insert(port, spec.attachment.clone());
    }
    let daemon = Arc::new(Daemon { runtime: RwLock::new(Some(runtime)), attached, started: Instant::now() });
    let server = Server::start(socket, daemon.clone()).map_err(cannot("cannot serve the control socket"))?;
    tracing::info!(ctl = %options.ctl_socket.display(), ports = options.ports.len(), "switching");

    let signal = signals.forever().next();
    tracing::info!(?signal, "stopping");
    let summary = daemon.stats().and_then(|stats| Ok(report::run_summary(&stats, &daemon.ports()?)));
    drop(server);
    drop(daemon.runtime.write().unwrap_or_else(PoisonError::into_inner).take());
    summary.map_err(|refusal| Failure::new(FailureKind::Runtime, refusal.message))
}

/// A worker for each core that was named; or, unnamed, one worker that the scheduler places: where the devices
/// are TAPs it runs best beside whoever sends (the figures are in `ARCHITECTURE.md`).
fn workers(cores: Option<&CoreList>) -> Vec<Option<usize>> {
    match cores {
        Some(cores) => cores.cores().iter().map(|core| Some(*core)).collect(),
        None => vec![None],
    }
}

fn learning(options: &LearningOptions) -> LearningConfig {
    let mut config = LearningConfig::default();
    if let Some(seconds) = options.mac_ageing_s {
        config.macs.age = Duration::from_secs(seconds.get());
    }
    if let Some(seconds) = options.flow_idle_s {
        config.flow_idle = Duration::from_secs(seconds.get());
    }
    if let Some(macs) = options.max_macs {
        config.macs.table = macs.get() as usize;
    }
    if let Some(macs) = options.max_macs_per_port {
        config.macs.port = macs.get() as usize;
    }
    config
}

fn port_failure(spec: &PortSpec, kind: FailureKind, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(kind, format!("port {} ({}): {error}", spec.name, spec.attachment))
}

/// The threads of the port's VM, watched. None if the port names no VM, or if we may not watch it: that is worth a
/// warning, as the port forwards without.
fn vm_threads(spec: &PortSpec) -> Result<Option<VmThreads>, Failure> {
    let Some(pid) = spec.vm else { return Ok(None) };
    let process = Process::open(pid.get());
    let process = process.map_err(|error| port_failure(spec, FailureKind::Runtime, &error))?;
    match Watcher::get() {
        Ok(watcher) => match VmThreads::watch(watcher, process) {
            Ok(threads) => Ok(Some(threads)),
            Err(error) => Err(port_failure(spec, FailureKind::Runtime, &error)),
        },
        Err(error) => {
            tracing::warn!(port = %spec.name, %error, "the run state of the port's VM is not known");
            Ok(None)
        }
    }
}

/// Makes the port of `spec`.
fn attach(runtime: &mut Runtime, spec: &PortSpec) -> Result<PortId, Failure> {
    let failure = |kind, error: &dyn std::fmt::Display| port_failure(spec, kind, error);
    let (name, vlan) = (spec.name.as_str(), spec.vlan.clone());
    let device = match &spec.attachment {
        Attachment::Tap(name) => match Tap::open(name.as_str()) {
            Ok(tap) => NetDevice::new(tap),
            Err(error) => return Err(failure(tap_failure(&error), &error)),
        },
        Attachment::Packet(name) => match PacketSocket::attach(name.as_str()) {
            Ok(socket) => NetDevice::new(socket),
            Err(error) => return Err(failure(packet_failure(&error), &error)),
        },
        Attachment::VhostUser(socket) => {
            let port = runtime.attach_vhost_user(name, vlan, socket);
            return port.map_err(|error| failure(vhost_user_failure(&error), &error));
        }
    };
    runtime.attach_device(name, vlan, device).map_err(|error| failure(FailureKind::Runtime, &error))
}

fn vhost_user_failure(error: &VhostUserFailure) -> FailureKind {
    match error {
        VhostUserFailure::Endpoint(EndpointError::Path(BindError::InUse | BindError::NoSocket)) => {
            FailureKind::InUse
        }
        VhostUserFailure::Endpoint(EndpointError::Path(BindError::PathLength(_))) => FailureKind::Usage,
        VhostUserFailure::Endpoint(EndpointError::Path(BindError::System(_, error)))
            if error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            FailureKind::NotPermitted
        }
        _ => FailureKind::Runtime,
    }
}

fn tap_failure(error: &TapError) -> FailureKind {
    match error {
        TapError::NotPermitted(_) => FailureKind::NotPermitted,
        TapError::Busy(_) | TapError::NotTap(_) => FailureKind::InUse,
        _ => FailureKind::Runtime,
    }
}

fn packet_failure(error: &PacketError) -> FailureKind {
    match error {
        PacketError::NotPermitted { .. } => FailureKind::NotPermitted,
        _ => FailureKind::Runtime,
    }
}

/// What the control socket asks.
struct Daemon {
    runtime: RwLock<Option<Runtime>>,
    attached: HashMap<PortId, Attachment>,
    started: Instant,
}

impl Daemon {
    fn with_runtime<T>(&self, ask: impl FnOnce(&Runtime) -> Option<T>) -> Result<T, Refusal> {
        let runtime = self.runtime.read().unwrap_or_else(PoisonError::into_inner);
        let answer = runtime.as_ref().and_then(ask);
        answer.ok_or_else(|| {
            Refusal::new("the switch does not answer", "it is stopping; ask again if it goes on")
        })
    }

    fn snapshot(&self) -> Result<Snapshot, Refusal> {
        self.with_runtime(Runtime::snapshot)
    }
}

/// One direction's frames, drops and time.
fn traffic(frames: u64, bytes: u64, drops: &[u64; DROP_REASONS], work_ns: u64) -> Traffic {
    let drops = DropReason::ALL.iter().copied().zip(drops.iter().copied());
    Traffic { frames, bytes, drops: drops.collect(), work_ns }
}

/// Why a port that has no backend has none. A VMM may be there whose VM has no driver yet.
fn absence(vmm: Option<&VmmStanding>) -> String {
    match vmm {
        Some(vmm) if !vmm.is_present => vmm.waits_for.clone(),
        _ => "waiting for the VM's driver".to_owned(),
    }
}

/// What is told of a VMM, with the faults of its VM's rings.
fn vmm_status(vmm: VmmStanding, ring_faults: Option<&(u64, PortFault)>) -> VmmStatus {
    let rings = |rings: VmmRings| RingsStatus {
        queue_pairs: rings.queue_pairs,
        format: if rings.packed { RingFormat::Packed } else { RingFormat::Split },
        sends: offloads(rings.sends),
        receives: offloads(rings.receives),
    };
    VmmStatus {
        present: vmm.is_present,
        rings: vmm.rings.map(rings),
        sessions: vmm.sessions,
        faults: vmm.faults + ring_faults.map_or(0, |(count, _)| *count),
        last_end: vmm.last_end,
        last_ring_fault: ring_faults.map(|(_, fault)| fault.to_string()),
    }
}

/// The names of offloads.
fn offloads(taken: Offloads) -> Vec<String> {
    let names = [
        (Offloads::CSUM, "csum"),
        (Offloads::TSO4, "tso4"),
        (Offloads::TSO6, "tso6"),
        (Offloads::ECN, "ecn"),
        (Offloads::USO, "uso"),
    ];
    names.iter().filter(|(offload, _)| taken.contains(*offload)).map(|(_, name)| (*name).to_owned()).collect()
}

impl Inspect for Daemon {
    fn ports(&self) -> Result<Vec<PortStatus>, Refusal> {
        let vm = |port| self.with_runtime(|runtime| Some(runtime.run_state(port)));
        let vm = |port| vm(port).map_or_else(|_| VmStatus::default(), VmStatus::from);
        let snapshot = self.snapshot()?;
        let status = |port: hyper_switch_dataplane::PortStatus| {
            let vmm = self.with_runtime(|runtime| runtime.vmm(port.info.id)).ok();
            let (tx, rx) = (&port.counters.tx, &port.counters.rx);
            let attachment = self.attached.get(&port.info.id);
            PortStatus {
                id: port.info.id.0,
                name: port.info.name.clone(),
                kind: attachment.map_or("vm", Attachment::kind).to_owned(),
                device: attachment.map_or_else(String::new, |attachment| attachment.device().to_owned()),
                state: match port.state {
                    hyper_switch_dataplane::PortState::Up => PortState::Up,
                    hyper_switch_dataplane::PortState::Faulted(fault) => {
                        PortState::Down { reason: fault.to_string() }
                    }
                    hyper_switch_dataplane::PortState::Disconnecting => {
                        PortState::Down { reason: "being disconnected".to_owned() }
                    }
                    hyper_switch_dataplane::PortState::Absent => {
                        PortState::Down { reason: absence(vmm.as_ref()) }
                    }
                    hyper_switch_dataplane::PortState::Leaving => {
                        PortState::Down { reason: "being detached".to_owned() }
                    }
                },
                vlan: VlanStatus::from(&port.info.vlan),
                vm: vm(port.info.id),
                vmm: vmm.map(|vmm| vmm_status(vmm, snapshot.faults.get(&port.info.id))),
                tx: traffic(tx.frames, tx.bytes, &port.counters.tx_drops, tx.switching_ns),
                rx: traffic(rx.frames, rx.bytes, &port.counters.rx_drops, rx.copying_ns),
                in_flight: port.in_flight as u64,
                queued: port.waiting as u64,
                upcalls: tx.upcalls,
            }
        };
        Ok(snapshot.ports.iter().cloned().map(status).collect())
    }

    fn flows(&self) -> Result<Vec<FlowStatus>, Refusal> {
        let snapshot = self.snapshot()?;
        let millis = |since| snapshot.at.since(since).as_millis() as u64;
        let status = |flow: &hyper_switch_dataplane::api::FlowRecord| FlowStatus {
            id: flow.spec.id.0,
            matches: flow.spec.matches.to_string(),
            actions: match &*flow.spec.actions {
                [] => "drop".to_owned(),
                actions => actions.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            },
            packets: flow.packets,
            bytes: flow.bytes,
            idle_ms: flow.used.map(millis),
            age_ms: millis(flow.installed),
        };
        Ok(snapshot.flows.iter().map(status).collect())
    }

    fn macs(&self) -> Result<Vec<MacStatus>, Refusal> {
        let macs = self.with_runtime(Runtime::macs)?;
        let ports = self.snapshot()?.ports;
        let names: HashMap<_, _> = ports.into_iter().map(|port| (port.info.id, port.info.name)).collect();
        let at = now();
        let status = |mac: MacEntry| MacStatus {
            vlan: mac.key.vlan,
            mac: mac.key.mac.map(|byte| format!("{byte:02x}")).join(":"),
            port: names.get(&mac.port).cloned().unwrap_or_else(|| format!("port {}", mac.port)),
            age_ms: at.since(mac.seen).as_millis() as u64,
        };
        Ok(macs.into_iter().map(status).collect())
    }

    fn stats(&self) -> Result<StatsReport, Refusal> {
        let ports = self.ports()?;
        let flows = self.snapshot()?.flows.len();
        let (mut tx, mut rx) = (Traffic::default(), Traffic::default());
        for port in &ports {
            tx.add(&port.tx);
            rx.add(&port.rx);
        }
        let activity = self.with_runtime(|runtime| Some(runtime.activity()))?;
        let core = |(number, did): (usize, CoreActivity)| CoreStatus {
            core: number as u32,
            entries: did.transmit_entries + did.receive_entries + did.idle_entries,
            transmit_calls: did.transmit_entries,
            receive_calls: did.receive_entries,
            idle_calls: did.idle_entries,
            cache_hits: did.cache_hits,
            megaflow_hits: did.table_hits,
            misses: did.misses,
        };
        Ok(StatsReport {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ports: ports.len() as u64,
            flows: flows as u64,
            macs: self.with_runtime(Runtime::macs).map_or(0, |macs| macs.len() as u64),
            tx,
            rx,
            cores: activity.into_iter().enumerate().map(core).collect(),
        })
    }
}
