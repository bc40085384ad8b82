//! The runtime: a switch with its workers, its service and its control plane, started and stopped as one.

use super::cores::Cores;
use super::idle::IdleWorker;
use super::service::{Channels, Service, ServiceHandle, Snapshot};
use super::topology::{topology, usable_cpus};
use super::vhost_user::{EndpointError, VhostUserPort, VmmStanding};
use super::worker::{Worker, Workers};
use super::{Bell, GuestBell, RunSource, ThreadHost, VmThreads, now};
use crate::port_spec::VhostUser;
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use hyper_switch_controlplane::control_plane::ControlPlane;
use hyper_switch_controlplane::learning_switch::Config as LearningConfig;
use hyper_switch_controlplane::mac::MacEntry;
use hyper_switch_dataplane::api::{Event, Nanos, PortId, Request, VlanMode};
use hyper_switch_dataplane::counters::CoreActivity;
use hyper_switch_dataplane::host::{CoreId, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_dataplane::{
    AttachError, Backend, CoreContext, PortConfig, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::device::Device;
use rustix::fd::{AsFd, BorrowedFd};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

#[cfg(test)]
mod tests;

/// How long an answer of the control plane is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// A control plane that died is restarted after this long, so that one that dies at once does not take a core.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// What a runtime is made for.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The core of each worker; `None` is one that the scheduler places.
    pub workers: Vec<Option<usize>>,
    /// Threads of VMs in this process that will enter the switch themselves. If there are any, and offload is on, each
    /// core has an idle worker.
    pub guests: usize,
    /// Limits of MAC learning.
    pub learning: LearningConfig,
    /// Which optimisations of the switch are on.
    pub optimisations: Optimisations,
    /// The parameters of batching.
    pub pace: Pace,
}

/// A device that a worker can watch.
#[derive(Clone)]
pub struct NetDevice(Arc<dyn Watched>);

trait Watched: Device + AsFd {
    fn as_device(self: Arc<Self>) -> Arc<dyn Device>;
}

impl<D: Device + AsFd + 'static> Watched for D {
    fn as_device(self: Arc<Self>) -> Arc<dyn Device> {
        self
    }
}

impl NetDevice {
    /// A device whose file descriptor is readable when a frame waits.
    pub fn new(device: impl Device + AsFd + 'static) -> NetDevice {
        NetDevice(Arc::new(device))
    }
}

impl AsFd for NetDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why a port could not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachFailure {
    /// The switch refused it.
    #[error(transparent)]
    Refused(#[from] AttachError),
    /// The runtime is stopping.
    #[error("the switch is stopping")]
    Stopping,
}

/// Why a vhost-user port could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserFailure {
    /// The switch has no place for it.
    #[error(transparent)]
    Attach(#[from] AttachFailure),
    /// Its socket cannot be had.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// A running switch. Dropped, it stops: no thread of it is left.
pub struct Runtime {
    switch: Arc<Switch>,
    host: Arc<ThreadHost>,
    service: ServiceHandle,
    idle_workers: Vec<IdleWorker>,
    workers: Vec<Worker>,
    vhost_user: HashMap<PortId, VhostUserPort>,
    service_thread: Option<JoinHandle<()>>,
    supervisor: Option<Supervisor>,
    guests: Mutex<std::ops::Range<u16>>,
    next_worker: usize,
}

impl Runtime {
    /// Starts a switch without ports.
    ///
    /// # Errors
    /// The system gives us no thread or file descriptor.
    pub fn start(config: &HostConfig) -> io::Result<Runtime> {
        Runtime::start_with_clock(config, now)
    }

    /// As [`Runtime::start`], with this clock for the control plane.
    fn start_with_clock(
        config: &HostConfig,
        clock: impl Fn() -> Nanos + Clone + Send + 'static,
    ) -> io::Result<Runtime> {
        let offloads = config.optimisations.offload && config.guests > 0;
        let cpus = Cores::new(if offloads { usable_cpus() } else { Vec::new() });
        // Contexts, by number: idle workers, as the topology numbers them; workers; the service; VMs.
        let first_worker = cpus.cpus().len();
        let service_core = first_worker + config.workers.len();
        let cores = service_core + 1 + config.guests;
        let (switch, control) = Switch::new(SwitchConfig {
            cores,
            seed: random_seed()?,
            optimisations: config.optimisations,
            pace: config.pace,
            topology: topology(Path::new("/"), cpus.cpus()),
            ..SwitchConfig::default()
        });
        let core = |number: usize| -> CoreContext {
            switch.core_context(CoreId(number as u16)).expect("every core's context is taken once")
        };
        let (requests, requests_in) = unbounded();
        let (events, events_in) = unbounded();
        let (orders, orders_in) = unbounded();
        let (bell, rung) = Bell::new();
        let (alarm, armed) = Bell::new();
        let host = Arc::new(ThreadHost::new(switch.config().max_ports, alarm, cpus));

        let channels = Channels { requests: requests_in, events, orders: orders_in, armed, rung };
        let service = Service::new(control, core(service_core), host.clone(), channels);
        let service_thread =
            std::thread::Builder::new().name("service".into()).spawn(move || service.run())?;
        let handle = ServiceHandle { orders, bell: bell.clone() };
        let supervisor = Supervisor::start(config.learning, clock, events_in, requests)?;
        let workers = (first_worker..).zip(&config.workers).map(|(number, pinned)| {
            let (switch, host) = (switch.clone(), host.clone());
            Worker::start(number - first_worker, *pinned, switch, core(number), host, bell.clone())
        });
        let workers = workers.collect::<io::Result<_>>()?;
        let idle_workers = (0..first_worker).map(|number| {
            let (switch, host) = (switch.clone(), host.clone());
            IdleWorker::start(CoreId(number as u16), switch, core(number), host, bell.clone())
        });
        let idle_workers = idle_workers.collect::<io::Result<_>>()?;
        Ok(Runtime {
            host,
            service: handle,
            idle_workers,
            workers,
            vhost_user: HashMap::new(),
            service_thread: Some(service_thread),
            supervisor: Some(supervisor),
            guests: Mutex::new(service_core as u16 + 1..cores as u16),
            next_worker: 0,
            switch,
        })
    }

    /// Attaches a device; the workers take turns in getting one.
    ///
    /// # Errors
    /// The switch has no port left, or is stopping.
    ///
    /// # Panics
    /// If the runtime was started without workers.
    pub fn attach_device(
        &mut self,
        name: &str,
        vlan: VlanMode,
        device: NetDevice,
    ) -> Result<PortId, AttachFailure> {
        let backend = Backend::Device(device.0.clone().as_device());
        let port = self.attach(PortConfig { name: name.into(), vlan, backend }, None)?;
        let worker = self.next_worker % self.workers.len();
        self.workers[worker].watch(port, device);
        self.next_worker += 1;
        Ok(port)
    }

    /// Makes a port for a VM of another process, whose VMM is served on a vhost-user socket.
    ///
    /// # Errors
    /// The switch has no port left, or is stopping; the socket cannot be had.
    ///
    /// # Panics
    /// If the runtime was started without workers.
    pub fn attach_vhost_user(
        &mut self,
        name: &str,
        vlan: VlanMode,
        spec: &VhostUser,
    ) -> Result<PortId, VhostUserFailure> {
        let owned = name.to_owned();
        let reserved = self.service.ask(move |service| service.reserve(owned, vlan));
        let port = reserved.ok_or(AttachFailure::Stopping)?.map_err(AttachFailure::from)?;
        let workers = Workers::of(&self.workers);
        match VhostUserPort::start(spec, name, port, self.service.clone(), workers) {
            Ok(serving) => {
                self.vhost_user.insert(port, serving);
                Ok(port)
            }
            Err(error) => {
                self.detach(port);
                Err(error.into())
            }
        }
    }

    /// How it stands with the VMM of a vhost-user port; nothing of others.
    pub fn vmm(&self, port: PortId) -> Option<VmmStanding> {
        self.vhost_user.get(&port).map(VhostUserPort::standing)
    }

    /// Attaches a VM of this process, whose thread `bell` wakes.
    ///
    /// # Errors
    /// As [`Runtime::attach_device`].
    pub fn attach_vm(
        &self,
        name: &str,
        vm: VmBackend,
        bell: Arc<GuestBell>,
    ) -> Result<PortId, AttachFailure> {
        let config = PortConfig { name: name.into(), vlan: VlanMode::Transparent, backend: Backend::Vm(vm) };
        self.attach(config, Some(bell))
    }

    fn attach(&self, config: PortConfig, bell: Option<Arc<GuestBell>>) -> Result<PortId, AttachFailure> {
        let attached = self.service.ask(move |service| service.attach(config, bell));
        Ok(attached.ok_or(AttachFailure::Stopping)??)
    }

    /// Has the threads of another process tell the run state of the VM behind a port.
    pub fn watch_vm(&self, port: PortId, threads: VmThreads) {
        self.service.ask(move |service| service.watch_vm(port, Arc::new(threads)));
    }

    /// What the VM behind a port does, if anybody knows, and who says so.
    pub fn run_state(&self, port: PortId) -> (Option<RunState>, RunSource) {
        self.host.seen(port)
    }

    /// Detaches a port. Its last frames are completed behind the scenes.
    pub fn detach(&self, port: PortId) {
        self.service.ask(move |service| service.detach(port));
    }

    /// The entrance of one VM's thread to the switch; none if all that were asked for are taken.
    pub fn entrance(&self) -> Option<Entrance> {
        let core = self.guests.lock().unwrap_or_else(PoisonError::into_inner).next()?;
        let cx = self.switch.core_context(CoreId(core))?;
        Some(Entrance {
            switch: self.switch.clone(),
            cx,
            host: self.host.clone(),
            service: self.service.bell.clone(),
        })
    }

    /// What is in the switch now; none if it is stopping.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.service.ask(|service| service.snapshot())
    }

    /// What each worker has done.
    pub fn activity(&self) -> Vec<CoreActivity> {
        let first = self.idle_workers.len();
        (first..first + self.workers.len()).map(|core| self.switch.activity(CoreId(core as u16))).collect()
    }

    /// What all that enter the switch have done together: workers, VMs, idle workers, timers.
    pub fn total_activity(&self) -> CoreActivity {
        let mut total = CoreActivity::default();
        (0..self.switch.config().cores)
            .for_each(|core| total.add(&self.switch.activity(CoreId(core as u16))));
        total
    }

    /// The MAC addresses that the control plane has learned; none if it does not answer.
    pub fn macs(&self) -> Option<Vec<MacEntry>> {
        self.supervisor.as_ref()?.macs()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // First, as their VMs are let go by workers and service.
        self.vhost_user.clear();
        self.workers.clear();
        self.idle_workers.clear();
        self.supervisor = None;
        self.service.ask(|service| service.stop());
        if let Some(thread) = self.service_thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A VM's thread's way into the switch.
pub struct Entrance {
    switch: Arc<Switch>,
    cx: CoreContext,
    host: Arc<ThreadHost>,
    service: Bell,
}

impl Entrance {
    /// The transmit hypercall of `vm`, again until its ring is empty.
    pub fn transmit(&mut self, vm: PortId) {
        loop {
            let entered = self.switch.transmit(&mut self.cx, &*self.host, vm);
            if entered.upcalls || entered.faulted {
                self.service.ring();
            }
            if !entered.more {
                return;
            }
        }
    }

    /// The receive hypercall of `vm`, again until nothing waits or its ring is full. Answers whether any frame came by it,
    /// or has come before and the VM is told of it hereby: by an interrupt that was put off, and does not come any more.
    pub fn receive(&mut self, vm: PortId) -> bool {
        let mut any = false;
        loop {
            let entered = self.switch.receive(&mut self.cx, &*self.host, vm);
            if entered.upcalls || entered.faulted {
                self.service.ring();
            }
            any |= entered.copied > 0 || entered.interrupt;
            if !entered.more {
                return any;
            }
        }
    }

    /// Whether frames wait for `vm`, as far as memory tells without an entry.
    pub fn frames_wait(&mut self, vm: PortId) -> bool {
        self.switch.frames_wait(&mut self.cx, vm)
    }

    /// Whether a notification of `vm` means that it is to make its receive hypercall, as its frames come by no other
    /// way.
    pub fn is_receive_needed(&mut self, vm: PortId) -> bool {
        !self.switch.config().optimisations.preemptive_copy && self.frames_wait(vm)
    }
}

/// Keeps a control plane running.
struct Supervisor {
    plane: Arc<Mutex<Option<ControlPlane>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    fn start(
        config: LearningConfig,
        clock: impl Fn() -> Nanos + Clone + Send + 'static,
        events: Receiver<Event>,
        requests: Sender<Request>,
    ) -> io::Result<Supervisor> {
        let start = move || ControlPlane::spawn(config, clock.clone(), events.clone(), requests.clone());
        let plane = Arc::new(Mutex::new(Some(start()?)));
        let (stop, stopped) = bounded::<()>(0);
        let kept = plane.clone();
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(move || {
            supervise(&kept, &stopped, start);
        })?;
        Ok(Supervisor { plane, stop: Some(stop), thread: Some(thread) })
    }

    fn macs(&self) -> Option<Vec<MacEntry>> {
        self.plane.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.macs(ANSWER_TIME).ok()
    }
}

fn supervise(
    plane: &Mutex<Option<ControlPlane>>,
    stopped: &Receiver<()>,
    start: impl Fn() -> io::Result<ControlPlane>,
) {
    let lock = || plane.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(ended) = lock().as_ref().map(|plane| plane.ended().clone()) else { return };
        select! {
            recv(stopped) -> _ => {
                if let Some(plane) = lock().take() {
                    plane.stop();
                }
                return;
            }
            recv(ended) -> _ => {}
        }
        let end = lock().take().map(ControlPlane::stop);
        tracing::error!(
            ?end,
            "the control plane ended; the data plane goes on with its flows, a new one starts"
        );
        loop {
            if !matches!(
                stopped.recv_timeout(RESTART_PAUSE),
                Err(crossbeam_channel::RecvTimeoutError::Timeout)
            ) {
                return;
            }
            match start() {
                Ok(new) => {
                    *lock() = Some(new);
                    break;
                }
                Err(error) => tracing::error!(%error, "the control plane cannot be started; trying again"),
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A seed for the flow hash that no guest can know.
fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(seed))
}
