//! What no sleeping switch can be faster than: an eventfd written on one core until a thread that slept on another runs.

use crate::system::SWITCH_CORE;
use hyper_switch::host::pin_to;
use hyper_switch_pvnet::vhost_user::event::EventFd;
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Wakes a thread on the switching core up so often, at a rate a second. Answers what each took, in nanoseconds,
/// shortest first. The caller is on another core, and awake all the time.
pub fn wakes(rate: u32, count: u64) -> Vec<u64> {
    let kick = EventFd::new().expect("an eventfd");
    let (awake, woken) = channel();
    let mut took = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            pin_to(SWITCH_CORE).expect("this thread is pinned");
            for _ in 0..count {
                poll(&mut [PollFd::new(&kick, PollFlags::IN)], None).expect("an eventfd can be waited for");
                let ran = Instant::now();
                // Before the next signal, which it would forget.
                kick.drain();
                awake.send(ran).expect("somebody waits");
            }
        });
        let mut due = Instant::now();
        for _ in 0..count {
            due += Duration::from_secs(1) / rate;
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            let began = Instant::now();
            kick.signal();
            let ran = loop {
                if let Ok(ran) = woken.try_recv() {
                    break ran;
                }
                std::hint::spin_loop();
            };
            took.push(ran.duration_since(began).as_nanos() as u64);
        }
    });
    took.sort_unstable();
    took
}
