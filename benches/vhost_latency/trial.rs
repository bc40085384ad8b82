//! One trial: frames from one NIC to another at a rate, each timed from the moment it is shown to the switch until
//! the receiver has it in hand.

use crate::nic::{Mac, Nic};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How the receiver learns that a frame is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// It sleeps until it is interrupted.
    Sleeps,
    /// It looks at its ring all the time.
    Polls,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub driver: Driver,
    pub frame_bytes: usize,
    /// Frames a second.
    pub rate: u32,
}

/// Longer than any frame takes.
const LOST: Duration = Duration::from_secs(2);
/// Between two looks for frames that may not come yet.
const WARM_UP: Duration = Duration::from_millis(10);

/// Two NICs on one switch.
pub struct Pair {
    sender: Nic,
    receiver: Nic,
}

const SENDER: Mac = [2, 0, 0, 0, 0, 1];
const RECEIVER: Mac = [2, 0, 0, 0, 0, 2];

impl Pair {
    /// The NICs behind these sockets, once frames go from each to the other.
    pub fn new([sender, receiver]: [UnixStream; 2]) -> Pair {
        let (mut sender, mut receiver) = (Nic::new(sender, SENDER), Nic::new(receiver, RECEIVER));
        // Until the switch has learnt where both are.
        warm_up(&mut receiver, &mut sender, SENDER);
        warm_up(&mut sender, &mut receiver, RECEIVER);
        Pair { sender, receiver }
    }

    /// Sends so many frames. Answers what each that came took, in nanoseconds, shortest first.
    pub fn run(&mut self, load: Load, frames: u64) -> Vec<u64> {
        let interval = Duration::from_secs(1) / load.rate;
        let (mut shown, mut took) = (Vec::new(), Vec::new());
        let mut next = 0;
        let mut due = Instant::now();
        self.receiver.poll();
        loop {
            while let Some(number) = self.receiver.receive(load.frame_bytes) {
                assert!(number >= next, "frames come in order");
                next = number + 1;
                let since: Instant = shown[number as usize];
                took.push(since.elapsed().as_nanos() as u64);
            }
            let sent = shown.len() as u64;
            let now = Instant::now();
            if next == frames || sent == frames && now >= due + LOST {
                break;
            }
            if sent < frames && now >= due {
                // Where the switch is so late that it has all buffers, so is this frame.
                if let Some(at) = self.sender.send(RECEIVER, sent, load.frame_bytes) {
                    shown.push(at);
                    // What this side is late is not made up for: a burst would be another load.
                    due = (due + interval).max(now);
                }
                continue;
            }
            let limit = if sent < frames { due } else { due + LOST };
            match load.driver {
                Driver::Sleeps => self.receiver.sleep(limit - now),
                Driver::Polls => std::hint::spin_loop(),
            }
        }
        took.sort_unstable();
        took
    }
}

/// Sends until a frame comes, and takes all that do.
fn warm_up(from: &mut Nic, to: &mut Nic, mac: Mac) {
    let give_up = Instant::now() + 10 * LOST;
    let mut came = false;
    loop {
        if !came {
            // One that does not fit is not needed.
            let _ = from.send(mac, 0, 64);
        }
        to.sleep(WARM_UP);
        match to.receive(64) {
            Some(_) => came = true,
            None if came => return,
            None => assert!(Instant::now() < give_up, "the switch carries no frame"),
        }
    }
}
