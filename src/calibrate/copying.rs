//! What a copy takes, by its size and by who wrote the bytes last.
//!
//! Buffers are those of a ring, as guests of `pair` have them: as many as a mebibyte holds, 16 to 256, and an odd number of
//! cache lines apart. In each batch a core writes all of the source's, and this core then copies each into the one of
//! its number of another ring. Only the copies are timed.

use super::core::on_core;
use super::figure::{Clock, Figure};
use crate::exit::Failure;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::hint::{black_box, spin_loop};
use std::thread;
use std::time::Instant;

/// Sizes that are measured, in bytes.
pub(super) const SIZES: [u32; 11] = [64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536];

const RING_BYTES: usize = 1 << 20;
const CACHE_LINE_BYTES: usize = 64;

/// Buffers of `bytes` each.
struct Ring {
    memory: Vec<u8>,
    bytes: usize,
    stride: usize,
}

impl Ring {
    fn of(bytes: usize) -> Ring {
        let slots = (RING_BYTES / bytes).clamp(16, 256);
        let stride = bytes.max(512) + CACHE_LINE_BYTES;
        Ring { memory: vec![0; slots * stride], bytes, stride }
    }

    fn write(&mut self, stamp: u8) {
        for buffer in self.memory.chunks_exact_mut(self.stride) {
            black_box(&mut buffer[..self.bytes]).fill(stamp);
        }
    }

    /// Copies all buffers to another's. Answers nanoseconds for each.
    fn copy_to(&self, to: &mut Ring, clock: &Clock) -> f64 {
        let slots = self.memory.len() / self.stride;
        let begin = Instant::now();
        let pairs = self.memory.chunks_exact(self.stride).zip(to.memory.chunks_exact_mut(self.stride));
        for (from, to) in pairs {
            black_box(&mut to[..self.bytes]).copy_from_slice(black_box(&from[..self.bytes]));
        }
        let ns = clock.since(begin);
        assert_eq!(self.memory[self.bytes - 1], to.memory[self.bytes - 1], "what was written has arrived");
        ns / slots as f64
    }
}

/// Copies on `cpu` what `writer` wrote, a core of this machine, perhaps the same. Answers a figure for each of [`SIZES`].
pub(super) fn measure(cpu: usize, writer: usize, batches: usize) -> Result<Vec<Figure>, Failure> {
    let (sends, writes) = bounded(1);
    let (returns, received) = bounded(1);
    let figures = thread::scope(|scope| {
        if cpu == writer {
            let own = |mut ring: Ring, stamp| {
                ring.write(stamp);
                Some(ring)
            };
            return on_core(scope, cpu, move || copies(batches, own)).join();
        }
        let writing = on_core(scope, writer, move || write_all(&writes, &returns));
        let by_writer = move |ring, stamp| {
            sends.send((ring, stamp)).ok()?;
            spun(&received)
        };
        let copied = on_core(scope, cpu, move || copies(batches, by_writer)).join();
        writing.join()?;
        copied
    })?;
    Ok(figures.expect("who writes is there until all is copied"))
}

/// Writes what it is sent, until nobody sends any more.
fn write_all(from: &Receiver<(Ring, u8)>, to: &Sender<Ring>) {
    while let Some((mut ring, stamp)) = spun(from) {
        ring.write(stamp);
        if to.send(ring).is_err() {
            return;
        }
    }
}

/// Receives without going to sleep, so that the core is as fast as one that works; nothing once nobody sends any more.
fn spun<T>(from: &Receiver<T>) -> Option<T> {
    loop {
        match from.try_recv() {
            Ok(value) => return Some(value),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => spin_loop(),
        }
    }
}

/// Has rings written and copies them; nothing if one is not given back.
fn copies(batches: usize, mut write: impl FnMut(Ring, u8) -> Option<Ring>) -> Option<Vec<Figure>> {
    let clock = Clock::new();
    let mut of_size = |bytes: u32| {
        let (mut from, mut to) = (Ring::of(bytes as usize), Ring::of(bytes as usize));
        let mut copied = Vec::with_capacity(batches);
        // The first touches memory that nobody has touched.
        for number in 0..=batches {
            from = write(from, number as u8)?;
            let ns = from.copy_to(&mut to, &clock);
            if number > 0 {
                copied.push(ns);
            }
        }
        Some(Figure::of(copied))
    };
    SIZES.into_iter().map(&mut of_size).collect()
}
