//! Two VMs that send each other numbered frames all the time, none of which may be lost, whatever others do.

use super::front_end::FrontEnd;
use super::vm::{Shape, Vm, number_of};
use crate::world::eventually;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Frames that are under way at once: no queue on the way is ever full of them.
const WINDOW: u64 = 16;

/// The stream, on a thread.
pub struct Stream {
    ended: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Between VMs 1 and 2, on these sockets, and under way.
    pub fn start(sockets: [&Path; 2]) -> Stream {
        let [(a, b), (c, d)] = [1, 2].map(|n| Vm::start(n, Shape::SPLIT, sockets[usize::from(n) - 1]));
        let (ended, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count) = (ended.clone(), arrived.clone());
        let thread = std::thread::spawn(move || flow([a, c], [b, d], &end, &count));
        let mut stream = Stream { ended, arrived, thread: Some(thread) };
        stream.goes_on();
        stream
    }

    /// Waits until hundreds more have arrived.
    pub fn goes_on(&mut self) {
        let before = self.arrived.load(Ordering::Relaxed);
        eventually("two VMs' stream goes on", || {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished)
                && let Err(panic) = self.thread.take()?.join()
            {
                std::panic::resume_unwind(panic);
            }
            (self.arrived.load(Ordering::Relaxed) >= before + 300).then_some(())
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn flow([mut a, mut b]: [Vm; 2], _connected: [FrontEnd; 2], ended: &AtomicBool, arrived: &AtomicU64) {
    // So that neither's frames are flooded.
    let hello = b.frame(a.n, 0, 60);
    b.send(0, &hello);
    a.await_frames(1, |frame| number_of(frame, 2, 1).is_some());
    for number in 0.. {
        let frame = a.frame(b.n, number, 60);
        a.send(0, &frame);
        if number % WINDOW != WINDOW - 1 {
            continue;
        }
        let came = b.await_frames(WINDOW as usize, |frame| number_of(frame, 1, 2).is_some());
        let came = came.iter().filter_map(|frame| number_of(frame, 1, 2));
        assert!(came.eq(number + 1 - WINDOW..=number), "every frame comes once and in order");
        arrived.fetch_add(WINDOW, Ordering::Relaxed);
        if ended.load(Ordering::Relaxed) {
            return;
        }
    }
}
