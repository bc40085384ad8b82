//! A thread's word: the thread's id in the upper half, the core where it was last seen, and a code.
//!
//! ```text
//!   63            32 31         8 7     0
//!   +---------------+------------+------+
//!   | thread id     | core       | code |
//!   +---------------+------------+------+
//! ```
//!
//! The id makes a reader's word its own: a program that found the slot just before it was given to another
//! thread writes a word that the new thread's reader does not take for its.

use crate::run_state::Observed;

/// The thread has a core. 0 is no code: nothing was seen yet.
pub(super) const RUNNING: u8 = 1;
/// It is ready and has none.
pub(super) const PREEMPTED: u8 = 2;
/// It waits. One bit from [`PREEMPTED`], which is what a wake-up makes of it.
pub(super) const BLOCKED: u8 = 3;
/// It has ended.
pub(super) const EXITED: u8 = 4;

/// Where the core begins.
pub(super) const CORE_SHIFT: u8 = 8;
/// Where the thread's id begins.
pub(super) const TID_SHIFT: u8 = 32;

/// What a thread does, as the scheduler tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadState {
    /// It was not seen yet.
    Unknown,
    /// It runs, is ready to run, or waits.
    Alive(Observed),
    /// It has ended.
    Exited,
}

impl ThreadState {
    /// What the thread does if it is known to live.
    #[inline]
    pub fn alive(self) -> Option<Observed> {
        match self {
            ThreadState::Alive(observed) => Some(observed),
            ThreadState::Unknown | ThreadState::Exited => None,
        }
    }
}

/// What `word` says of the thread `tid`.
#[inline]
pub(super) fn state_of(word: u64, tid: u32) -> ThreadState {
    if (word >> TID_SHIFT) as u32 != tid {
        return ThreadState::Unknown;
    }
    match word as u8 {
        RUNNING => ThreadState::Alive(Observed::Running { core: Some((word >> CORE_SHIFT) as u16) }),
        PREEMPTED => ThreadState::Alive(Observed::Preempted),
        BLOCKED => ThreadState::Alive(Observed::Blocked),
        EXITED => ThreadState::Exited,
        _ => ThreadState::Unknown,
    }
}

/// The word of thread `tid` in the state that procfs gave for it: its letter and its last core. A ready thread
/// is taken as running: procfs does not tell, and if it is not so, its next switch corrects it.
pub(super) fn from_procfs(tid: u32, letter: u8, core: u16) -> u64 {
    let code = match letter {
        b'R' => RUNNING,
        b'X' | b'Z' => EXITED,
        _ => BLOCKED,
    };
    u64::from(tid) << TID_SHIFT | u64::from(core) << CORE_SHIFT | u64::from(code)
}

#[cfg(test)]
mod tests {
    //! What is written is what is read, and never another thread's.
    use super::*;

    #[test]
    fn words_are_read_by_their_own_thread_only() {
        let (tid, core) = (4_194_303, 511);
        for (letter, state) in [
            (b'R', ThreadState::Alive(Observed::Running { core: Some(core) })),
            (b'S', ThreadState::Alive(Observed::Blocked)),
            (b'D', ThreadState::Alive(Observed::Blocked)),
            (b'Z', ThreadState::Exited),
        ] {
            let word = from_procfs(tid, letter, core);
            assert_eq!(state_of(word, tid), state);
            assert_eq!(state_of(word, tid - 1), ThreadState::Unknown);
        }
        assert_eq!(state_of(from_procfs(tid, b'S', core) ^ 1, tid), ThreadState::Alive(Observed::Preempted));
        assert_eq!(state_of(0, tid), ThreadState::Unknown);
        assert_eq!(state_of(u64::from(tid) << TID_SHIFT, tid), ThreadState::Unknown);
    }
}
