//! The memory that all cores share: when they ask for more than it has, every copy takes longer.
//!
//! Cores that copy at once slow each other down. How much is found as a feedback: what was asked for in one window of time,
//! beside what there is, makes the copies of the next one slower or faster. So in the long run no more is moved than
//! there is, whoever moves it, and whatever the order of events within a window.

use std::cell::Cell;

/// A window, in nanoseconds: many copies of 64 KiB, and little beside a measurement.
const WINDOW_NS: u64 = 200_000;

/// How much of a window's surplus the next one is slower by.
const GAIN: f64 = 0.125;

/// The memory.
pub(crate) struct Memory {
    /// Nanoseconds that it takes for a byte; 0 if it has enough for all.
    byte_ns: f64,
    window: Cell<u64>,
    bytes: Cell<f64>,
    slowdown: Cell<f64>,
    book: Cell<MemoryBook>,
}

/// All copies so far: their bytes, and these by how much the copies were slowed down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryBook {
    bytes: f64,
    slowed_bytes: f64,
}

impl MemoryBook {
    /// How many times as long as alone the copies since `base` took.
    pub(crate) fn slowdown_since(&self, base: MemoryBook) -> f64 {
        let bytes = self.bytes - base.bytes;
        if bytes > 0.0 { (self.slowed_bytes - base.slowed_bytes) / bytes } else { 1.0 }
    }
}

impl Memory {
    pub(crate) fn new(byte_ns: f64) -> Memory {
        Memory {
            byte_ns,
            window: Cell::new(0),
            bytes: Cell::new(0.0),
            slowdown: Cell::new(1.0),
            book: Cell::default(),
        }
    }

    /// How many times as long as alone a copy of so many bytes takes that begins now. Times do not go back.
    #[inline]
    pub(crate) fn slowdown(&self, now_ns: u64, bytes: f64) -> f64 {
        let window = now_ns / WINDOW_NS;
        if window > self.window.get() {
            self.adapt(window - self.window.get());
            self.window.set(window);
            self.bytes.set(0.0);
        }
        self.bytes.set(self.bytes.get() + bytes);
        let (book, slowdown) = (self.book.get(), self.slowdown.get());
        self.book.set(MemoryBook {
            bytes: book.bytes + bytes,
            slowed_bytes: book.slowed_bytes + bytes * slowdown,
        });
        slowdown
    }

    /// All copies so far.
    pub(crate) fn book(&self) -> MemoryBook {
        self.book.get()
    }

    /// A window is over, and this many in all until the one that begins.
    fn adapt(&self, windows: u64) {
        let load = self.bytes.get() * self.byte_ns / (windows * WINDOW_NS) as f64;
        // Little by little: cores answer later than in the next window, and would all swing together.
        self.slowdown.set((self.slowdown.get() * (1.0 + (load - 1.0) * GAIN)).max(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes a nanosecond that so many cores move, each waiting for its own copy of 1000 bytes, which takes it
    /// 500 ns alone.
    fn moved(cores: u32) -> f64 {
        let memory = Memory::new(0.1);
        let mut ready = vec![0.0_f64; cores as usize];
        let (mut copies, end_ns) = (0, 100_000_000.0);
        while let Some(next) =
            ready.iter_mut().min_by(|one, other| one.total_cmp(other)).filter(|at| **at < end_ns)
        {
            *next += 500.0 * memory.slowdown(*next as u64, 1_000.0);
            copies += 1;
        }
        f64::from(copies) * 1_000.0 / end_ns
    }

    /// Few cores have what they ask for, many share 10 bytes a nanosecond.
    #[test]
    fn many_share_what_there_is() {
        assert!((moved(1) - 2.0).abs() < 0.01 && (moved(4) - 8.0).abs() < 0.01);
        for cores in [6, 20, 60] {
            assert!((9.0..11.0).contains(&moved(cores)), "{cores}: {}", moved(cores));
        }
    }
}
