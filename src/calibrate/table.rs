//! The cost table that measurements make: what could not be measured is taken from the table of the paper's machine, or
//! follows from how VMs of a process work, and says so.

use super::exits::Exits;
use super::figure::Figure;
use super::relaying::{RING, Relaying};
use super::switching::{FRAME_BYTES, Switching, frames_at_once};
use super::waking::{ASLEEP, Interrupting, JUST_ASLEEP, TIMER, Wakings};
use crate::machine::Machine;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::kvm::KvmError;
use hyper_switch_sim::costs::{CopyRow, Cost, CostError, CostRow, CostTable, Kind, Locality};

/// The table that gaps are filled from.
pub(super) const BASE: &str = "opteron";

/// How the source of a row from there begins.
pub(super) const FOREIGN: &str = "Not of this machine, but as in the table";

/// Said where it matters, lest such figures be taken for the switch's.
pub(super) const DEBUG_BUILD: &str = if cfg!(debug_assertions) { " (a debug build)" } else { "" };

/// All that was measured.
pub(super) struct Measured {
    /// By size in bytes; at least of a core's own.
    pub(super) copies: Vec<(Locality, Vec<(u32, Figure)>)>,
    pub(super) switching: Switching,
    pub(super) vhost: Relaying,
    pub(super) driver_domain: Relaying,
    /// A frame from ring to ring, by its bytes.
    pub(super) whole: [(usize, Figure); 3],
    /// A thread has woken one up that has its core until it falls asleep; nothing if the scheduler does not do that.
    pub(super) preemption: Option<Figure>,
    /// A thread has woken the next one up and fallen asleep.
    pub(super) nap: Figure,
    pub(super) timer: Figure,
    pub(super) interrupt: Interrupting,
    /// A claim taken and let go.
    pub(super) claim: Figure,
    /// A VM's exits, where there is a KVM that runs one.
    pub(super) exits: Result<Exits, KvmError>,
    /// A line from another core, where there are two.
    pub(super) line: Option<Figure>,
    /// Where there are two cores.
    pub(super) waking: Option<Wakings>,
}

impl Measured {
    /// The figure of a row, if it was measured.
    pub(super) fn figure(&self, cost: Cost) -> Option<Figure> {
        let Switching { entry, frame, copied, miss, send, receive, .. } = &self.switching;
        let waking = self.waking.as_ref();
        let (vhost, domain) = (&self.vhost, &self.driver_domain);
        let frame_ns = self.own_ns(FRAME_BYTES as u32);
        Some(match cost {
            Cost::HypervisorEntry => self.exits.as_ref().ok()?.kernel,
            Cost::Interrupt => self.interrupt.take,
            Cost::NotifyAwake => self.interrupt.notify,
            Cost::Notify | Cost::WorkerWake => waking?.late.notify,
            Cost::WakeLatency => waking?.late.latency.less(self.dispatch().median_ns),
            Cost::FallAsleep => waking?.fall_asleep,
            Cost::NotifySoon => waking?.soon.notify,
            Cost::WakeLatencySoon => waking?.soon.latency.less(self.dispatch().median_ns),
            Cost::Dispatch => self.dispatch(),
            Cost::Block => self.nap.less(self.dispatch().median_ns),
            Cost::IdleWake => waking?.idle.latency,
            Cost::Timer => self.timer,
            Cost::SwitchEntry => *entry,
            Cost::SwitchFrame => *frame,
            Cost::FlowMiss => *miss,
            Cost::Complete => self.claim,
            Cost::Line => self.line?,
            Cost::CopyFrame => copied.less(self.own_ns((FRAME_BYTES + VNET_HDR_BYTES) as u32)),
            Cost::SendFrame => *send,
            Cost::ReceiveFrame => *receive,
            Cost::VhostFrame => vhost.given.less(frame_ns),
            Cost::BridgeFrame => vhost.taken.less(vhost.given.median_ns),
            Cost::GrantCopyFrame => domain.given.less(frame_ns),
            Cost::NetbackFrame => domain.taken.less(domain.given.median_ns),
            _ => return None,
        })
    }

    /// What it takes to change over to a thread: a `nap` has one such change, a `preemption` one more. No more than a nap has,
    /// of which blocking is a part.
    fn dispatch(&self) -> Figure {
        let more = self.preemption.map(|both| both.less(self.nap.median_ns));
        more.filter(|more| more.median_ns < self.nap.median_ns).unwrap_or(self.nap)
    }

    /// The points of a copy, if they were measured.
    pub(super) fn copy(&self, locality: Locality) -> Option<&[(u32, Figure)]> {
        let (_, points) = self.copies.iter().find(|(measured, _)| *measured == locality)?;
        Some(points)
    }

    /// What a core takes to copy so many bytes of its own: between two sizes that are measured, as much of the way.
    fn own_ns(&self, bytes: u32) -> f64 {
        let points = self.copy(Locality::Own).unwrap_or_default();
        let mut before = (0.0, 0.0);
        for (size, figure) in points {
            let here = (f64::from(*size), figure.median_ns);
            if bytes <= *size {
                return before.1 + (here.1 - before.1) * (f64::from(bytes) - before.0) / (here.0 - before.0);
            }
            before = here;
        }
        before.1
    }

    /// The table, complete.
    pub(super) fn table(&self, machine: &Machine) -> Result<CostTable, CostError> {
        let mut table = CostTable::embedded(BASE).expect("the program carries that table");
        let Machine { cpu, cores, kernel, .. } = machine;
        let description = format!(
            "Measured by `hyper-switch calibrate`{DEBUG_BUILD} on {cpu}, cores {cores}, {kernel}: what VMs of one process \
             cost each other (`hyper-switch pair`). They enter by a call; a plan that is compared with theirs sets \
             `hypervisor_entry`, and of Xen's rows `grant_copy` and `event_channel`."
        );
        let on = format!("on {cpu}, {kernel}");
        for row in table.rows().to_vec() {
            let cost = row.name;
            let row = match self.figure(cost) {
                Some(figure) => CostRow {
                    value: round(figure.median_ns),
                    kind: Kind::Measured,
                    source: format!("`hyper-switch calibrate` {on}: {}", self.how(cost)),
                    ..row
                },
                None => self.unmeasured(row, &table),
            };
            table.set(row)?;
        }
        for locality in Locality::ALL {
            table.set_copy(locality, self.copy_row(locality, &on))?;
        }
        table.rename("calibrated".into(), description);
        Ok(table)
    }

    /// How a row was measured.
    fn how(&self, cost: Cost) -> String {
        let asleep = ASLEEP.as_micros();
        match cost {
            Cost::HypervisorEntry => "a VM exit by a guest of KVM's that writes to a port which is an eventfd \
                 (KVM_IOEVENTFD), which KVM signals before it enters the guest again. VMs of one process do not pay it"
                .into(),
            Cost::Interrupt => "a guest's flag, taken by its thread".into(),
            Cost::NotifyAwake => "a guest's flag, set while its thread runs".into(),
            Cost::Notify => format!("unpark of a thread that has slept for {asleep} us on another core"),
            Cost::WorkerWake => "as `notify`: a vhost worker is a thread too".into(),
            Cost::WakeLatency => format!(
                "from the call of unpark until a thread that has slept for {asleep} us runs on an otherwise idle core, \
                 less `dispatch`"
            ),
            Cost::FallAsleep => {
                "how long a thread on another core has slept when unpark begins to take more than halfway from `notify_soon` to \
                 `notify`"
                    .into()
            }
            Cost::NotifySoon => format!(
                "unpark of a thread that was about to sleep on another core {} us before",
                JUST_ASLEEP.as_micros()
            ),
            Cost::WakeLatencySoon => format!(
                "as `wake_latency`, of a thread that was about to sleep {} us before",
                JUST_ASLEEP.as_micros()
            ),
            Cost::Dispatch => "a thread wakes another one up on its core, which takes the core and falls asleep again, less two \
                 threads on one core that wake each other up and fall asleep, a turn; at most that"
                .into(),
            Cost::Block => {
                "two threads on one core that wake each other up and fall asleep, each with a timer, a turn, less `dispatch`; \
                 waking up on the same core is included"
                    .into()
            }
            Cost::IdleWake => format!(
                "from the call of unpark until a thread of SCHED_IDLE that has slept for {asleep} us runs on an otherwise \
                 idle core"
            ),
            Cost::Timer => {
                format!(
                    "processor time of a thread that sleeps for {} us by park_timeout, a time",
                    TIMER.as_micros()
                )
            }
            Cost::SwitchEntry => format!(
                "Switch::transmit of one frame of {FRAME_BYTES} bytes, less `switch_frame`; of Switch::receive {} ns",
                round(self.switching.receive_entry.median_ns)
            ),
            Cost::SwitchFrame => format!(
                "Switch::transmit of {} frames of {FRAME_BYTES} bytes, less that of one, a frame",
                frames_at_once(FRAME_BYTES)
            ),
            Cost::FlowMiss => {
                "Switch::transmit of one frame without a flow and Control::resolve of its upcall, less Switch::transmit of one with"
                    .into()
            }
            Cost::CopyFrame => format!(
                "Switch::receive of {} frames of {FRAME_BYTES} bytes, less that of one, a frame, less the copy of its \
                 bytes by `copy.own`",
                frames_at_once(FRAME_BYTES)
            ),
            Cost::Complete => {
                "two locked instructions and a fence on a line of the core's own: the claim on the sender's side".into()
            }
            Cost::Line => format!(
                "a frame of {FRAME_BYTES} bytes whose guests are at home on two cores, less one whose guests share a core, for each \
                 line that the model charges for"
            ),
            Cost::VhostFrame => format!("{} as vhost's workers give them to VMs, {LESS_COPY}", of_contender()),
            Cost::BridgeFrame => {
                format!("{} as vhost's workers take them from VMs and leave them to other workers, less those given", of_contender())
            }
            Cost::GrantCopyFrame => format!("{} as a driver domain gives them to VMs, {LESS_COPY}", of_contender()),
            Cost::NetbackFrame => {
                format!("{} as a driver domain takes them from VMs and queues them, less those given", of_contender())
            }
            Cost::SendFrame | Cost::ReceiveFrame => format!(
                "a guest of bare frames without a stack, {} frames of {FRAME_BYTES} bytes a poll, without its entries",
                frames_at_once(FRAME_BYTES)
            ),
            _ => "not told".into(),
        }
    }

    /// The row of what was not measured. In the table are already all rows of lower numbers.
    fn unmeasured(&self, base: CostRow, table: &CostTable) -> CostRow {
        let assumed = |value, source: &str| CostRow {
            name: base.name,
            value,
            unit: base.unit,
            kind: Kind::Assumed,
            source: source.into(),
        };
        match base.name {
            Cost::GrantCopy | Cost::EventChannel => assumed(
                0.0,
                "A driver domain of `hyper-switch pair` is a thread, and pays for it what --entry-cost says: a plan that is \
                 compared with it sets the same.",
            ),
            Cost::HypervisorEntry => {
                let why = self.exits.as_ref().err().map(KvmError::to_string).unwrap_or_default();
                let source = "A VM of this process enters the switch by a call (`hyper-switch pair` without --entry-cost). A \
                              VM exit is not measured";
                assumed(0.0, &format!("{source}: {why}."))
            }
            Cost::NotifyHere => {
                assumed(0.0, "Contained in `block`: a thread that wakes another one up on its own core.")
            }
            Cost::ControlPlane => assumed(
                2.0 * (table.get(Cost::Notify) + table.get(Cost::WakeLatency) + table.get(Cost::Dispatch)),
                "The switch's service and its control plane are each woken up.",
            ),
            Cost::SendSegment | Cost::ReceiveSegment => {
                assumed(0.0, "A guest of bare frames touches their headers alone, whatever their size.")
            }
            Cost::MemoryByte => assumed(
                0.0,
                "The rings of guests of bare frames stay in caches, which are not short of bandwidth.",
            ),
            Cost::ColdCopy => assumed(1.0, "As there is enough of the memory, it does not matter."),
            Cost::AckFrame => assumed(
                table.get(Cost::ReceiveFrame),
                "As a frame that is received: to a guest without a stack they are alike.",
            ),
            Cost::Request => assumed(
                table.get(Cost::ReceiveFrame) + table.get(Cost::SendFrame),
                "As a frame in and a frame out, as a guest without a stack has no application either.",
            ),
            _ => CostRow { source: format!("{FOREIGN} `{BASE}`: {}", base.source), ..base },
        }
    }

    fn copy_row(&self, locality: Locality, on: &str) -> CopyRow {
        let nearer = Locality::ALL.into_iter().filter(|other| *other <= locality).rev();
        let (of, points) = nearer
            .filter_map(|locality| Some((locality, self.copy(locality)?)))
            .next()
            .expect("copies of a core's own bytes are measured on every machine");
        let who = match of {
            Locality::Own => "this core",
            Locality::Shared => "a core that shares a cache",
            Locality::Remote => "a core of another cache",
        };
        let measured =
            format!("memcpy from ring to ring, of what {who} wrote; `hyper-switch calibrate` {on}");
        let (kind, source) = if of == locality {
            (Kind::Measured, measured)
        } else {
            let reason =
                "No core that this process may use lies so, and figures of the next nearer are taken: ";
            (Kind::Assumed, format!("{reason}{measured}"))
        };
        // More bytes take no less, whatever batches say, nor do farther ones.
        let mut least_ns = 0.0_f64;
        let points = points.iter().enumerate().map(|(at, (bytes, figure))| {
            let nearer =
                self.copies.iter().filter(|(nearer, _)| *nearer <= of).map(|(_, points)| points[at].1);
            least_ns =
                nearer.fold(least_ns, |least, nearer| least.max(nearer.median_ns)).max(figure.median_ns);
            (*bytes, round(least_ns))
        });
        CopyRow { points: points.collect(), kind, source }
    }
}

/// How rows of contenders are measured.
fn of_contender() -> String {
    format!(
        "`hyper-switch pair`'s threads without their own, {RING} frames of {FRAME_BYTES} bytes less one, a frame:"
    )
}

/// What is not theirs.
const LESS_COPY: &str = "less the copy of their bytes by `copy.own`";

/// A tenth of a nanosecond is more than is known.
fn round(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    //! By figures that no machine has.

    use super::super::waking::Waking;
    use super::*;
    use std::io;

    fn figure(ns: f64) -> Figure {
        Figure::of(vec![ns])
    }

    fn waking(ns: f64) -> Waking {
        Waking { notify: figure(ns), latency: figure(ns + 1.0) }
    }

    fn measured() -> Measured {
        let copies =
            |ns: &[f64]| [64, 1_024, 65_536].into_iter().zip(ns.iter().copied().map(figure)).collect();
        let switching = Switching {
            entry: figure(10.0),
            receive_entry: figure(11.0),
            frame: figure(12.0),
            copied: figure(60.0),
            miss: figure(14.0),
            send: figure(15.0),
            receive: figure(16.0),
        };
        let relaying = |taken, given| Relaying { taken: figure(taken), given: figure(given) };
        Measured {
            vhost: relaying(95.0, 85.0),
            driver_domain: relaying(79.0, 72.0),
            copies: vec![
                (Locality::Own, copies(&[8.0, 40.0, 1_000.0])),
                (Locality::Shared, copies(&[6.0, 60.0, 50.0])),
            ],
            switching,
            whole: [60, 1_500, 65_536].map(|bytes| (bytes, figure(1.0))),
            preemption: Some(figure(54.0)),
            nap: figure(37.0),
            timer: figure(18.0),
            claim: figure(21.0),
            exits: Ok(Exits { kernel: figure(3_000.0), program: figure(25_000.0) }),
            line: Some(figure(22.0)),
            interrupt: Interrupting { notify: figure(5.0), take: figure(19.0) },
            waking: Some(Wakings {
                late: waking(100.0),
                soon: waking(70.0),
                fall_asleep: figure(6.0),
                idle: waking(200.0),
            }),
        }
    }

    fn machine() -> Machine {
        let some = || "some".to_owned();
        Machine {
            cpu: "a \"quoted\" CPU".into(),
            cores: some(),
            caches: some(),
            kernel: some(),
            governor: some(),
            memory: some(),
        }
    }

    /// Holds that each measured figure is in its row, computed ones from those that they say, and that the file which
    /// the table makes is read as the same table.
    #[test]
    fn figures_are_in_their_rows() {
        let table = measured().table(&machine()).unwrap();
        let read = CostTable::load(&table.to_string()).unwrap();
        assert_eq!(read.rows(), table.rows());
        assert!(read.copies().eq(table.copies()));
        for (cost, ns) in [
            (Cost::HypervisorEntry, 3_000.0),
            (Cost::Interrupt, 19.0),
            (Cost::NotifyHere, 0.0),
            (Cost::Complete, 21.0),
            (Cost::Line, 22.0),
            (Cost::Notify, 100.0),
            (Cost::NotifyAwake, 5.0),
            (Cost::WakeLatency, 84.0),
            (Cost::FallAsleep, 6.0),
            (Cost::NotifySoon, 70.0),
            (Cost::WakeLatencySoon, 54.0),
            (Cost::Dispatch, 17.0),
            (Cost::Block, 20.0),
            (Cost::IdleWake, 201.0),
            (Cost::Timer, 18.0),
            (Cost::SwitchEntry, 10.0),
            (Cost::SwitchFrame, 12.0),
            (Cost::FlowMiss, 14.0),
            // 1,512 bytes of a copy that takes 40 ns for 1,024 and 1,000 for 65,536.
            (Cost::CopyFrame, 12.7),
            (Cost::ControlPlane, 2.0 * (100.0 + 84.0 + 17.0)),
            (Cost::SendFrame, 15.0),
            (Cost::ReceiveFrame, 16.0),
            (Cost::WorkerWake, 100.0),
            // 1,500 bytes of it.
            (Cost::VhostFrame, 37.9),
            (Cost::BridgeFrame, 10.0),
            (Cost::GrantCopyFrame, 24.9),
            (Cost::NetbackFrame, 7.0),
            (Cost::GrantCopy, 0.0),
            (Cost::EventChannel, 0.0),
        ] {
            assert_eq!(read.get(cost), ns, "{cost}");
        }
    }

    /// Holds that copies take no less for more bytes, nor from farther away, and that what is farther than any core here
    /// is taken as the farthest that is measured, and says so.
    #[test]
    fn copies_grow() {
        let table = measured().table(&machine()).unwrap();
        let rows: Vec<_> = table.copies().map(|(_, row)| row.clone()).collect();
        assert_eq!(rows[0].points, [(64, 8.0), (1_024, 40.0), (65_536, 1_000.0)]);
        assert_eq!(rows[1].points, [(64, 8.0), (1_024, 60.0), (65_536, 1_000.0)]);
        assert_eq!(rows[2].points, rows[1].points);
        assert_eq!(
            [rows[0].kind, rows[1].kind, rows[2].kind],
            [Kind::Measured, Kind::Measured, Kind::Assumed]
        );
        assert!(
            rows[2].source.starts_with("No core that this process may use lies so"),
            "{}",
            rows[2].source
        );
    }

    /// Holds that a VM exit is called measured where it was, and that elsewhere an entry is a call and the row says why no exit
    /// was measured.
    #[test]
    fn exits_need_a_kvm() {
        let row = |measured: &Measured| {
            let table = measured.table(&machine()).unwrap();
            table.rows()[Cost::HypervisorEntry as usize].clone()
        };
        let mut measured = measured();
        let exit = row(&measured);
        assert_eq!((exit.value, exit.kind), (3_000.0, Kind::Measured));
        assert!(exit.source.contains("KVM_IOEVENTFD"), "{}", exit.source);

        measured.exits = Err(KvmError::Open(io::ErrorKind::PermissionDenied.into()));
        let call = row(&measured);
        assert_eq!((call.value, call.kind), (0.0, Kind::Assumed));
        assert!(
            call.source.ends_with("A VM exit is not measured: /dev/kvm: permission denied."),
            "{}",
            call.source
        );
    }

    /// Holds that on one core what takes two is not called measured, and that rows of another machine say so.
    #[test]
    fn what_one_core_cannot_tell() {
        let mut measured = measured();
        measured.waking = None;
        measured.copies.truncate(1);
        let table = measured.table(&machine()).unwrap();
        let base = CostTable::embedded(BASE).unwrap();
        for cost in [Cost::Notify, Cost::WakeLatency, Cost::IdleWake, Cost::WorkerWake] {
            let row = &table.rows()[cost as usize];
            assert_eq!(row.value, base.get(cost), "{cost}");
            assert_ne!(row.kind, Kind::Measured, "{cost}");
            assert!(
                row.source.starts_with("Not of this machine, but as in the table `opteron`: "),
                "{}",
                row.source
            );
        }
        let kinds: Vec<_> = table.copies().map(|(_, row)| row.kind).collect();
        assert_eq!(kinds, [Kind::Measured, Kind::Assumed, Kind::Assumed]);
    }
}
