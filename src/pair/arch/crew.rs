//! The threads of a contender's switch: each sleeps until it is notified, and all stop together.

use super::super::cannot;
use crate::exit::Failure;
use crate::host::{GuestBell, pin_to};
use crossbeam_channel::bounded;
use std::io;
use std::iter::Cycle;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::vec;

/// Threads that each come to a `T`.
pub(super) struct Crew<T> {
    /// Where the next one runs, if they are pinned.
    cores: Cycle<vec::IntoIter<usize>>,
    stopping: Arc<AtomicBool>,
    threads: Vec<(Arc<GuestBell>, JoinHandle<T>)>,
}

/// What one of them knows of itself.
pub(super) struct Shift {
    bell: Arc<GuestBell>,
    stopping: Arc<AtomicBool>,
}

impl Shift {
    /// Does `turn` again and again until it is time to stop. It is told whether there was a notification since the
    /// last time, and answers whether it found anything to do; if not, the thread sleeps until the next notification.
    /// So it has to look for work each time, and to have asked for a notification of whatever it does not find.
    pub(super) fn work(&self, mut turn: impl FnMut(bool) -> bool) {
        while !self.stopping.load(Ordering::SeqCst) {
            if !turn(self.bell.take()) {
                self.bell.wait(None);
            }
        }
    }
}

impl<T: Send + 'static> Crew<T> {
    /// Nobody yet. The threads are pinned to `cores` in turn, if there are any, where so many VMs' have left off.
    pub(super) fn new(cores: &[usize], vms: usize) -> Crew<T> {
        let mut cores = cores.to_vec();
        let len = cores.len().max(1);
        cores.rotate_left(vms % len);
        Crew { cores: cores.into_iter().cycle(), stopping: Arc::default(), threads: Vec::new() }
    }

    /// One thread more. Answers the bell that notifies it.
    ///
    /// # Errors
    /// The system gives us no thread, or not this core.
    pub(super) fn spawn(
        &mut self,
        name: String,
        life: impl FnOnce(&Shift) -> T + Send + 'static,
    ) -> Result<Arc<GuestBell>, Failure> {
        let stopping = self.stopping.clone();
        let core = self.cores.next();
        let (bells, bell) = bounded(1);
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let bell = Arc::new(GuestBell::of_this_thread());
            // Whoever spawned us waits for it.
            let _ = bells.send((bell.clone(), core.map_or(Ok(()), pin_to)));
            life(&Shift { bell, stopping })
        });
        let thread = spawned.map_err(cannot("start a thread of the switch"))?;
        let (bell, pinned) = bell.recv().expect("the thread sends its bell before all else");
        self.threads.push((bell.clone(), thread));
        pinned.map_err(io::Error::from).map_err(cannot("pin a thread of the switch"))?;
        Ok(bell)
    }

    /// Stops all, and answers what each came to, in the order in which they were spawned. Nothing of those that
    /// panicked, which the panic hook has reported.
    pub(super) fn stop(&mut self) -> Vec<T> {
        self.stopping.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(|(bell, _)| bell.ring());
        self.threads.drain(..).filter_map(|(_, thread)| thread.join().ok()).collect()
    }
}

impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(|(bell, _)| bell.ring());
        for (_, thread) in self.threads.drain(..) {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::usable_cpus;
    use rustix::thread::{CpuSet, sched_getaffinity};

    /// Holds that threads are pinned in turn from where the VMs left off, and nowhere without cores.
    #[test]
    fn threads_are_pinned_behind_the_vms() {
        let may_use = |cores: &[usize], vms| {
            let mut crew = Crew::new(cores, vms);
            for _ in 0..2 {
                crew.spawn("pinned".into(), |_| sched_getaffinity(None).unwrap()).unwrap();
            }
            let list = |set: CpuSet| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>();
            crew.stop().into_iter().map(list).collect::<Vec<_>>()
        };
        let all = usable_cpus();
        assert_eq!(may_use(&[], 3), [all.clone(), all.clone()]);
        assert_eq!(may_use(&all[..1], 3), [all[..1].to_vec(), all[..1].to_vec()]);
        if let [first, second, ..] = all[..] {
            assert_eq!(may_use(&[first, second], 3), [[second], [first]]);
        }
    }
}
