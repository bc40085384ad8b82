//! A scheduler by credit, as hypervisors have one.
//!
//! A task's *age* grows as it runs; the youngest that is ready runs next. Who wakes is as old as the youngest on its core
//! at least, less a bonus, so that sleeping earns little. It takes its core from one that is older by more than half of
//! that bonus as soon as that one's step is over, and otherwise when that one's slice is over.

use super::{Ready, Scheduler};
use crate::host::TaskId;
use crate::machine::Machine;
use hyper_switch_dataplane::host::CoreId;

/// The parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credit {
    pub(crate) slice_us: u32,
    pub(crate) bonus_us: u32,
    pub(crate) pinned: bool,
}

/// A task as the scheduler sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    age_ns: u64,
    /// Where it runs, waits or ran last.
    core: CoreId,
}

/// The run queues.
pub(crate) struct CreditScheduler {
    config: Credit,
    machine: Machine,
    tasks: Vec<Standing>,
    cores: Vec<Queue>,
    /// How many wait, on all cores.
    waiting: usize,
}

#[derive(Default)]
struct Queue {
    running: Option<TaskId>,
    /// Since when that one has the core.
    since_ns: u64,
    waiting: Vec<TaskId>,
    /// The age of the youngest here, at the highest that it was.
    age_ns: u64,
}

impl CreditScheduler {
    pub(crate) fn new(config: Credit, machine: Machine, tasks: usize) -> CreditScheduler {
        CreditScheduler {
            config,
            machine,
            tasks: vec![Standing::default(); tasks],
            cores: (0..machine.cores).map(|_| Queue::default()).collect(),
            waiting: 0,
        }
    }

    fn bonus_ns(&self) -> u64 {
        u64::from(self.config.bonus_us) * 1_000
    }

    fn task(&mut self, task: TaskId) -> &mut Standing {
        &mut self.tasks[usize::from(task.0)]
    }

    fn queue(&mut self, core: CoreId) -> &mut Queue {
        &mut self.cores[usize::from(core.0)]
    }

    fn is_free(&self, core: CoreId) -> bool {
        let queue = &self.cores[usize::from(core.0)];
        queue.running.is_none() && queue.waiting.is_empty()
    }

    /// Its last core if that is free; else a free one that shares a cache; else a free one; else its last core.
    fn choose(&self, home: CoreId, avoid: &dyn Fn(CoreId) -> bool) -> CoreId {
        let is_free = |core: &CoreId| self.is_free(*core) && !avoid(*core);
        if is_free(&home) {
            return home;
        }
        let count = self.machine.cores;
        let others = || (1..count).map(|step| CoreId((home.0 + step) % count));
        let near = |core: &CoreId| {
            self.machine.cores_per_cache > 1
                && self.machine.locality(home, *core) != crate::costs::Locality::Remote
        };
        let near = others().filter(near).find(is_free);
        near.or_else(|| others().find(is_free)).unwrap_or(home)
    }

    /// The core on which most wait, if a task may leave it.
    fn busiest(&self) -> Option<CoreId> {
        if self.config.pinned {
            return None;
        }
        let waiting = |core: &CoreId| self.cores[usize::from(core.0)].waiting.len();
        let all = (0..self.machine.cores).map(CoreId);
        all.max_by_key(|core| (waiting(core), std::cmp::Reverse(*core))).filter(|core| waiting(core) > 0)
    }
}

impl Scheduler for CreditScheduler {
    fn place(&mut self, task: TaskId, core: CoreId) {
        self.task(task).core = core;
    }

    fn running(&self, core: CoreId) -> Option<TaskId> {
        self.cores[usize::from(core.0)].running
    }

    fn ready(&mut self, task: TaskId, avoid: &dyn Fn(CoreId) -> bool) -> Ready {
        let home = self.tasks[usize::from(task.0)].core;
        let core = if self.config.pinned { home } else { self.choose(home, avoid) };
        let bonus_ns = self.bonus_ns();
        let youngest_ns = self.queue(core).age_ns.saturating_sub(bonus_ns);
        let standing = self.task(task);
        standing.core = core;
        standing.age_ns = standing.age_ns.max(youngest_ns);
        self.queue(core).waiting.push(task);
        self.waiting += 1;
        // It waits for the end of a step.
        Ready { core, takes_it: false }
    }

    fn ran(&mut self, core: CoreId, ns: u64, _now_ns: u64) {
        let Some(task) = self.running(core) else { return };
        self.task(task).age_ns += ns;
        let queue = &self.cores[usize::from(core.0)];
        let ages =
            queue.waiting.iter().chain(&queue.running).map(|task| self.tasks[usize::from(task.0)].age_ns);
        let youngest_ns = ages.min().unwrap_or_default();
        let queue = self.queue(core);
        queue.age_ns = queue.age_ns.max(youngest_ns);
    }

    fn block(&mut self, core: CoreId) {
        self.queue(core).running = None;
    }

    fn is_over(&mut self, core: CoreId, now_ns: u64) -> bool {
        let (bonus_ns, slice_ns) = (self.bonus_ns(), u64::from(self.config.slice_us) * 1_000);
        let queue = &self.cores[usize::from(core.0)];
        let age = |task: &TaskId| self.tasks[usize::from(task.0)].age_ns;
        let (Some(running), Some(youngest)) = (queue.running, queue.waiting.iter().map(age).min()) else {
            return false;
        };
        let mine = age(&running);
        let has_run_ns = now_ns.saturating_sub(queue.since_ns);
        youngest + bonus_ns / 2 < mine || (has_run_ns >= slice_ns && youngest < mine)
    }

    fn preempt(&mut self, core: CoreId) -> Option<TaskId> {
        let queue = self.queue(core);
        let task = queue.running.take()?;
        queue.waiting.push(task);
        self.waiting += 1;
        Some(task)
    }

    fn pick(&mut self, core: CoreId, now_ns: u64) -> Option<TaskId> {
        if self.waiting == 0 {
            return None;
        }
        let own = !self.cores[usize::from(core.0)].waiting.is_empty();
        let from = if own { core } else { self.busiest()? };
        let queue = &self.cores[usize::from(from.0)];
        let age = |task: &TaskId| self.tasks[usize::from(task.0)].age_ns;
        let (place, _) = queue.waiting.iter().enumerate().min_by_key(|(place, task)| (age(task), *place))?;
        let task = self.queue(from).waiting.remove(place);
        self.waiting -= 1;
        if from != core {
            // Ages are compared within a core: the distance to the youngest goes with it.
            let (there_ns, here_ns) = (self.queue(from).age_ns, self.queue(core).age_ns);
            let standing = self.task(task);
            standing.age_ns = (standing.age_ns + here_ns).saturating_sub(there_ns);
            standing.core = core;
        }
        let age_ns = self.task(task).age_ns;
        let queue = self.queue(core);
        queue.age_ns = queue.age_ns.max(age_ns);
        (queue.running, queue.since_ns) = (Some(task), now_ns);
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { cores: 4, cores_per_cache: 2 };
    const CONFIG: Credit = Credit { slice_us: 10, bonus_us: 2, pinned: false };
    const A: TaskId = TaskId(0);
    const B: TaskId = TaskId(1);
    const C: TaskId = TaskId(2);
    const D: TaskId = TaskId(3);
    const E: TaskId = TaskId(4);

    fn scheduler(config: Credit) -> CreditScheduler {
        let mut scheduler = CreditScheduler::new(config, MACHINE, 5);
        [A, B, C, D, E].into_iter().for_each(|task| scheduler.place(task, CoreId(0)));
        scheduler
    }

    fn ready(scheduler: &mut CreditScheduler, task: TaskId) -> u16 {
        scheduler.ready(task, &|_| false).core.0
    }

    /// Home first, then near, then far, then home all the same; and not where it is better avoided.
    #[test]
    fn a_task_goes_where_it_is_free() {
        let mut all = scheduler(CONFIG);
        assert_eq!([A, B, C, D, E].map(|task| ready(&mut all, task)), [0, 1, 2, 3, 0]);
        assert_eq!(scheduler(CONFIG).ready(A, &|core| core.0 < 2).core.0, 2);
        let mut pinned = scheduler(Credit { pinned: true, ..CONFIG });
        assert_eq!([A, B].map(|task| ready(&mut pinned, task)), [0, 0]);
    }

    /// A slice ends for one that is younger, and for nobody else.
    #[test]
    fn slices_go_round() {
        let mut one = scheduler(Credit { pinned: true, ..CONFIG });
        ready(&mut one, A);
        assert_eq!(one.pick(CoreId(0), 0), Some(A));
        one.ran(CoreId(0), 1_000, 1_000);
        ready(&mut one, B);
        assert!(!one.is_over(CoreId(0), 1_000), "younger by 1 us, which is no more than half of the bonus");
        one.ran(CoreId(0), 9_000, 9_000);
        assert!(one.is_over(CoreId(0), 10_000));
        assert_eq!((one.preempt(CoreId(0)), one.pick(CoreId(0), 10_000)), (Some(A), Some(B)));
        one.ran(CoreId(0), 5_000, 5_000);
        assert!(!one.is_over(CoreId(0), 30_000), "it is younger still");
    }

    /// Who wakes takes the core from one that is older by more than half of the bonus.
    #[test]
    fn who_slept_is_preferred() {
        let mut one = scheduler(Credit { pinned: true, ..CONFIG });
        ready(&mut one, A);
        one.pick(CoreId(0), 0);
        one.ran(CoreId(0), 3_000, 3_000);
        ready(&mut one, B);
        assert!(one.is_over(CoreId(0), 3_000));
    }

    /// A core with nothing to do takes from where most wait.
    #[test]
    fn work_is_taken_from_the_busiest() {
        let mut all = scheduler(CONFIG);
        assert_eq!(all.pick(CoreId(2), 0), None);
        [A, B, C, D, E].into_iter().for_each(|task| _ = all.ready(task, &|core| core.0 > 1));
        // 0: A, C, D, E; 1: B.
        assert_eq!(all.pick(CoreId(3), 0), Some(A));
        assert_eq!(all.pick(CoreId(1), 0), Some(B));
        all.block(CoreId(1));
        assert_eq!(all.pick(CoreId(1), 0), Some(C));
        assert_eq!(
            (all.running(CoreId(3)), all.running(CoreId(1)), all.running(CoreId(0))),
            (Some(A), Some(C), None)
        );
    }
}
