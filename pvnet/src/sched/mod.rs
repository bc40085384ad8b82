//! The scheduler's word on threads of any process: whether one runs and where, was preempted, or blocks.
//!
//! ```text
//!   kernel, at every switch of a core              this process
//!   ┌──────────────────────────────────┐           ┌────────────────────────────┐
//!   │ sched_switch ─> BPF program      │           │ Watcher::watch(tid)        │
//!   │   prev, next ─> tids (hash) ─────┼── slot <──┼── tids[tid] = slot         │
//!   │                     │            │           │                            │
//!   │ sched_wakeup ───────┤            │           │ WatchedThread::state()     │
//!   │                     v            │           │   one load, no system call │
//!   │              words (array) ══════╪═ mapped ══╪═> word of the slot         │
//!   └──────────────────────────────────┘           └────────────────────────────┘
//! ```
//!
//! Two BPF programs, assembled here (`program.rs`), hang on the scheduler's tracepoints. Each looks the thread up
//! and writes one 64-bit word, which readers find in memory that they share with the kernel. Threads that nobody
//! watches cost a missed lookup and nothing else.
//!
//! What a word cannot say: it is as old as the cache line takes to arrive; a thread is `Running` while it is in
//! the kernel, or while a hypervisor below us has its core. Both tracepoints fire under the lock of the thread's
//! run queue, so words of one thread never overtake each other.
//!
//! It takes `CAP_BPF` and `CAP_PERFMON` (root has both), a kernel from 5.8 on, and the PID namespace of the
//! machine, whose numbers the scheduler tells. The description of the tracepoints is read from tracefs, which is
//! mounted for us alone if it is not there, which takes `CAP_SYS_ADMIN`. Whoever lacks one of these is told which.
//!
//! | file | noun |
//! | --- | --- |
//! | `watcher` | [`Watcher`], [`WatchedThread`]: who is watched |
//! | `word` | what the programs write and a reader finds, as [`ThreadState`] |
//! | `process` | [`Process`]: the threads of a process, as they come and go |
//! | `program` | the two programs |
//! | `tracepoint` | where a tracepoint's fields are |
//! | `bpf` | the system calls |

mod bpf;
mod process;
mod program;
mod tracepoint;
mod watcher;
mod word;

pub use process::{Process, ProcessError};
pub use tracepoint::FormatError;
pub use watcher::{CAPACITY, WatchError, WatchThreadError, WatchedThread, Watcher};
pub use word::ThreadState;
