//! Linux's scheduler for ordinary threads, of equal weight: earliest eligible virtual deadline first (I. Stoica,
//! H. Abdel-Wahab, "Earliest Eligible Virtual Deadline First", 1995), as Linux 6.12 and later have it.
//!
//! Each task has a virtual time, which grows as it runs, and a deadline one slice beyond where its request began. Those
//! that have had no more than the mean are *eligible*; of them the earliest deadline runs. What that comes to for a
//! thread that is woken up:
//!
//! - It takes its core at once from one that has had more than the mean, if it has not itself: sleeping keeps the distance
//!   to the mean, no more and no less (`PLACE_LAG`).
//! - While the one that runs has had less than the mean it is left alone for its slice (`RUN_TO_PARITY`).
//! - One that falls asleep with more than its share stays in the queue until the mean has caught up (`DELAY_DEQUEUE`), and
//!   is not given anything for that (`DELAY_ZERO`).

use super::{Ready, Scheduler};
use crate::host::TaskId;
use crate::machine::Machine;
use hyper_switch_dataplane::host::CoreId;

/// The run queues.
pub(crate) struct EevdfScheduler {
    slice_ns: i64,
    tick_ns: u64,
    tasks: Vec<Entity>,
    cores: Vec<Queue>,
}

/// A task as the scheduler sees it. Times are virtual, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Entity {
    time_ns: i64,
    deadline_ns: i64,
    /// Until then it is left alone while it has had less than the mean.
    protected_ns: i64,
    /// How much less than the mean it had had when it fell asleep.
    lag_ns: i64,
    /// It sleeps, but is in the queue for having had more than its share.
    is_late: bool,
    core: CoreId,
}

#[derive(Default)]
struct Queue {
    running: Option<TaskId>,
    /// Those in the queue, but for the one that runs.
    waiting: Vec<TaskId>,
    /// Whoever runs is to be chosen anew.
    is_over: bool,
    /// The mean when there was anybody last.
    mean_ns: i64,
    /// The number of the last tick.
    tick: u64,
}

impl EevdfScheduler {
    pub(crate) fn new(slice_us: u32, tick_us: u32, machine: Machine, tasks: usize) -> EevdfScheduler {
        EevdfScheduler {
            slice_ns: i64::from(slice_us) * 1_000,
            tick_ns: u64::from(tick_us) * 1_000,
            tasks: vec![Entity::default(); tasks],
            cores: (0..machine.cores).map(|_| Queue::default()).collect(),
        }
    }

    fn entity(&mut self, task: TaskId) -> &mut Entity {
        &mut self.tasks[usize::from(task.0)]
    }

    fn queue(&mut self, core: CoreId) -> &mut Queue {
        &mut self.cores[usize::from(core.0)]
    }

    /// Those in the queue of `core` and the one that runs there.
    fn all(&self, core: CoreId) -> impl Iterator<Item = TaskId> {
        let queue = &self.cores[usize::from(core.0)];
        queue.waiting.iter().chain(&queue.running).copied()
    }

    /// The mean of all times there (`avg_vruntime`), and of how many.
    fn mean(&mut self, core: CoreId) -> (i64, i64) {
        let times = self.all(core).map(|task| self.tasks[usize::from(task.0)].time_ns);
        let (sum, count) = times.fold((0, 0), |(sum, count), time| (sum + time, count + 1));
        let queue = self.queue(core);
        if count > 0 {
            queue.mean_ns = i64::div_euclid(sum, count);
        }
        (queue.mean_ns, count)
    }

    /// Whether a task has had no more than the mean (`entity_eligible`).
    fn is_eligible(&self, core: CoreId, task: TaskId) -> bool {
        let own = self.tasks[usize::from(task.0)].time_ns;
        self.all(core).map(|task| self.tasks[usize::from(task.0)].time_ns - own).sum::<i64>() >= 0
    }

    /// What a task's lag is, within what it may be (`update_entity_lag`).
    fn lag_ns(&mut self, core: CoreId, task: TaskId) -> i64 {
        let (mean_ns, _) = self.mean(core);
        let most_ns = (2 * self.slice_ns).max(self.tick_ns as i64);
        (mean_ns - self.entity(task).time_ns).clamp(-most_ns, most_ns)
    }

    /// Puts a task into the queue at the distance from the mean that it left with (`place_entity`).
    fn enqueue(&mut self, core: CoreId, task: TaskId) {
        let (mean_ns, count) = self.mean(core);
        let slice_ns = self.slice_ns;
        let entity = self.entity(task);
        // By its coming the mean comes nearer to it.
        let lag_ns = if count > 0 { entity.lag_ns * (count + 1) / count } else { 0 };
        entity.time_ns = mean_ns - lag_ns;
        entity.deadline_ns = entity.time_ns + slice_ns;
        self.queue(core).waiting.push(task);
    }

    /// Looks whether the slice of the one that runs is over (`update_curr`).
    fn look(&mut self, core: CoreId) {
        let Some(task) = self.running(core) else { return };
        let slice_ns = self.slice_ns;
        let entity = self.entity(task);
        let is_over = entity.time_ns >= entity.deadline_ns;
        if is_over {
            entity.deadline_ns = entity.time_ns + slice_ns;
        }
        let is_unprotected = entity.time_ns >= entity.protected_ns;
        let queue = self.queue(core);
        queue.is_over |= !queue.waiting.is_empty() && (is_over || is_unprotected);
    }

    /// Who of the queue and the one that runs is to run (`pick_eevdf`).
    fn best(&self, core: CoreId) -> Option<TaskId> {
        let queue = &self.cores[usize::from(core.0)];
        let entity = |task: TaskId| &self.tasks[usize::from(task.0)];
        let is_eligible = |task: &TaskId| self.is_eligible(core, *task);
        let running = queue.running.filter(is_eligible);
        if let Some(task) = running
            && entity(task).time_ns < entity(task).protected_ns
        {
            return running;
        }
        let eligible = queue.waiting.iter().copied().filter(is_eligible);
        eligible.chain(running).min_by_key(|task| entity(*task).deadline_ns)
    }

    /// As [`EevdfScheduler::best`]; those who only seemed to be there leave.
    fn choose(&mut self, core: CoreId) -> Option<TaskId> {
        loop {
            let task = self.best(core)?;
            if !self.entity(task).is_late {
                return Some(task);
            }
            let lag_ns = self.lag_ns(core, task).min(0);
            let entity = self.entity(task);
            (entity.is_late, entity.lag_ns) = (false, lag_ns);
            self.queue(core).waiting.retain(|other| *other != task);
        }
    }
}

impl Scheduler for EevdfScheduler {
    fn place(&mut self, task: TaskId, core: CoreId) {
        self.entity(task).core = core;
    }

    fn running(&self, core: CoreId) -> Option<TaskId> {
        self.cores[usize::from(core.0)].running
    }

    fn ready(&mut self, task: TaskId, _avoid: &dyn Fn(CoreId) -> bool) -> Ready {
        let core = self.entity(task).core;
        self.look(core);
        if !self.entity(task).is_late {
            self.enqueue(core, task);
        } else {
            // It never left the queue (`requeue_delayed_entity`).
            self.entity(task).is_late = false;
            if self.lag_ns(core, task) > 0 {
                self.queue(core).waiting.retain(|other| *other != task);
                self.entity(task).lag_ns = 0;
                self.enqueue(core, task);
            }
        }
        let takes_it = self.running(core).is_some() && self.best(core) == Some(task);
        self.queue(core).is_over |= takes_it;
        Ready { core, takes_it }
    }

    fn ran(&mut self, core: CoreId, ns: u64, now_ns: u64) {
        let Some(task) = self.running(core) else { return };
        self.entity(task).time_ns += ns as i64;
        let tick = now_ns / self.tick_ns;
        if std::mem::replace(&mut self.queue(core).tick, tick) != tick {
            self.look(core);
        }
    }

    fn block(&mut self, core: CoreId) {
        let Some(task) = self.running(core) else { return };
        self.look(core);
        if self.is_eligible(core, task) {
            let lag_ns = self.lag_ns(core, task);
            self.entity(task).lag_ns = lag_ns;
        } else {
            self.entity(task).is_late = true;
            self.queue(core).waiting.push(task);
        }
        self.queue(core).running = None;
    }

    fn is_over(&mut self, core: CoreId, _now_ns: u64) -> bool {
        let running = self.running(core);
        std::mem::take(&mut self.queue(core).is_over) && self.choose(core) != running
    }

    fn preempt(&mut self, core: CoreId) -> Option<TaskId> {
        self.look(core);
        let queue = self.queue(core);
        let task = queue.running.take()?;
        queue.waiting.push(task);
        Some(task)
    }

    fn pick(&mut self, core: CoreId, _now_ns: u64) -> Option<TaskId> {
        let task = self.choose(core)?;
        let entity = self.entity(task);
        entity.protected_ns = entity.deadline_ns;
        let queue = self.queue(core);
        queue.waiting.retain(|other| *other != task);
        (queue.running, queue.is_over) = (Some(task), false);
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TaskId = TaskId(0);
    const B: TaskId = TaskId(1);
    const CORE: CoreId = CoreId(0);
    const SLICE_US: u32 = 1_000;
    const TICK_US: u32 = 4_000;

    /// One core, for `A` and `B`.
    struct Core {
        scheduler: EevdfScheduler,
        now_ns: u64,
    }

    impl Core {
        /// `A` runs, and `B` sleeps.
        fn new() -> Core {
            let machine = Machine { cores: 1, cores_per_cache: 1 };
            let mut core = Core { scheduler: EevdfScheduler::new(SLICE_US, TICK_US, machine, 2), now_ns: 0 };
            assert!(!core.wakes(A));
            assert_eq!(core.next(), Some(A));
            core
        }

        /// Whoever runs does so for this long.
        fn runs(&mut self, us: u64) {
            self.now_ns += us * 1_000;
            self.scheduler.ran(CORE, us * 1_000, self.now_ns);
        }

        /// Answers whether it takes the core at once.
        fn wakes(&mut self, task: TaskId) -> bool {
            self.scheduler.ready(task, &|_| false).takes_it
        }

        fn next(&mut self) -> Option<TaskId> {
            self.scheduler.pick(CORE, self.now_ns)
        }

        /// Whoever runs makes way.
        fn yields_to(&mut self) -> Option<TaskId> {
            self.scheduler.preempt(CORE);
            self.next()
        }

        /// Whoever runs falls asleep.
        fn sleeps(&mut self) -> Option<TaskId> {
            self.scheduler.block(CORE);
            self.next()
        }

        fn is_over(&mut self) -> bool {
            self.scheduler.is_over(CORE, self.now_ns)
        }
    }

    /// Who has had less takes the core each time that it wakes, until it has had as much; then it waits until the other
    /// sleeps or a tick finds that it has had its slice.
    #[test]
    fn who_wakes_goes_first_until_it_has_had_its_share() {
        let mut core = Core::new();
        core.wakes(B);
        core.runs(100);
        assert_eq!(core.yields_to(), Some(B), "of both that are awake it has had less");
        core.runs(40);
        assert_eq!(core.sleeps(), Some(A));
        core.runs(10);
        assert!(core.wakes(B), "70 us less");
        assert_eq!(core.yields_to(), Some(B));
        core.runs(90);
        // 20 us more, and so it only seems to sleep.
        assert_eq!(core.sleeps(), Some(A));
        core.runs(10);
        assert!(!core.wakes(B));
        core.runs(30);
        assert!(!core.is_over(), "nobody looks before the tick");
        core.runs(900);
        assert!(!core.is_over());
        core.runs(3_000);
        assert!(core.is_over());
        assert_eq!(core.yields_to(), Some(B));
    }

    /// Sleeping is no way to save up: who had had less by so much has had less by as much when it wakes.
    #[test]
    fn the_distance_is_kept() {
        let mut core = Core::new();
        core.wakes(B);
        core.runs(100);
        assert_eq!(core.yields_to(), Some(B));
        core.runs(70);
        assert_eq!(core.sleeps(), Some(A));
        core.runs(100_000);
        assert!(core.wakes(B));
        let time = |task: TaskId| core.scheduler.tasks[usize::from(task.0)].time_ns;
        assert_eq!(time(A) - time(B), 30_000);
    }

    /// Who had had more is forgiven when the others have caught up while it slept, and gets nothing for it.
    #[test]
    fn debts_are_slept_off() {
        let mut core = Core::new();
        core.wakes(B);
        core.runs(10);
        assert_eq!(core.yields_to(), Some(B));
        core.runs(50);
        assert_eq!(core.sleeps(), Some(A));
        core.runs(5_000);
        core.wakes(B);
        let time = |task: TaskId| core.scheduler.tasks[usize::from(task.0)].time_ns;
        assert_eq!(time(A), time(B));
    }

    /// Alone, a task is never over.
    #[test]
    fn alone() {
        let mut core = Core::new();
        core.runs(100_000);
        assert!(!core.is_over());
        assert_eq!(core.sleeps(), None);
    }
}
