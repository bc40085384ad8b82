//! This switch, as the daemon runs it: a VM's thread enters it by its hypercalls.

use super::{Architecture, Carried};
use crate::exit::{Failure, FailureKind};
use crate::host::{Entrance, GuestBell, HostConfig, Runtime, Snapshot};
use crate::pair::inprocess::Setting;
use crate::pair::trial::Vm;
use crate::pair::{cannot, vm_reports};
use hyper_switch_controlplane::learning_switch::Config as LearningConfig;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_dataplane::api::PortId;
use hyper_switch_dataplane::counters::CoreActivity;
use hyper_switch_pvnet::guest::Hypercall;
use std::sync::{Arc, OnceLock};

pub(super) struct HyperSwitch {
    runtime: Runtime,
    vms: usize,
    before: OnceLock<(Snapshot, u64)>,
}

impl HyperSwitch {
    pub(super) fn new(vms: usize, setting: &Setting<'_>) -> Result<HyperSwitch, Failure> {
        let config = HostConfig {
            workers: Vec::new(),
            guests: vms,
            learning: LearningConfig::default(),
            optimisations: setting.optimisations,
            pace: setting.paces.notification,
        };
        let runtime = Runtime::start(&config).map_err(cannot("start the switch"))?;
        Ok(HyperSwitch { runtime, vms, before: OnceLock::new() })
    }

    fn snapshot(&self) -> Result<Snapshot, Failure> {
        let stopped = || Failure::new(FailureKind::Runtime, "the switch stopped during the measurement");
        self.runtime.snapshot().ok_or_else(stopped)
    }

    /// Entries by the switch's own threads, each of which was woken for it: idle workers, and timers.
    fn wakeups(&self) -> u64 {
        let CoreActivity { idle_entries, timer_entries, .. } = self.runtime.total_activity();
        idle_entries + timer_entries
    }
}

impl Architecture for HyperSwitch {
    fn attach(&self, vm: Vm, rings: VmBackend, bell: Arc<GuestBell>) -> Result<Box<dyn Hypercall>, String> {
        let entrance = self.runtime.entrance().ok_or("the switch has no entrance left")?;
        let port = self.runtime.attach_vm(&vm.name(), rings, bell.clone());
        let port = port.map_err(|error| error.to_string())?;
        Ok(Box::new(GuestEntrance { entrance, port, bell }))
    }

    fn start(&self) -> Result<(), Failure> {
        let before = (self.snapshot()?, self.wakeups());
        self.before.get_or_init(|| before);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Carried, Failure> {
        let after = self.snapshot()?;
        let (before, wakeups) = self.before.get().expect("it was started");
        let vms = vm_reports((0..self.vms).map(Vm::numbered), before, &after);
        Ok(Carried { vms, wakeups: self.wakeups() - wakeups, ..Carried::default() })
    }
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
        self.entrance.is_receive_needed(self.port)
    }

    fn block(&mut self) -> bool {
        // Frames that another core has in hand come with an interrupt. Were the VM to stay awake for them, that core might be
        // this one, whose idle worker waits for the VM to block.
        self.frames_wait() && self.entrance.receive(self.port)
    }
}
