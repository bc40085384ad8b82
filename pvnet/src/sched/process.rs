//! A process: the threads that it has now, by procfs.

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use std::io;
use std::os::fd::OwnedFd;

/// Why a process's threads cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process, or no longer.
    #[error("there is no process {0}")]
    Gone(u32),
    /// procfs does not tell.
    #[error("the threads of process {pid} cannot be read from /proc")]
    System {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A process, by a descriptor that is its own: once it has ended, nobody who is given its id is taken for it.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    tasks: OwnedFd,
}

impl Process {
    /// The process `pid`.
    ///
    /// # Errors
    /// There is none, or we may not look at it.
    pub fn open(pid: u32) -> Result<Process, ProcessError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let tasks = openat(CWD, format!("/proc/{pid}/task"), flags, Mode::empty());
        Ok(Process { pid, tasks: tasks.map_err(|errno| error(pid, errno.into()))? })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The ids of the threads that it has now, in ascending order; at least one.
    ///
    /// # Errors
    /// It has ended.
    pub fn threads(&self) -> Result<Vec<u32>, ProcessError> {
        let list = || -> io::Result<Vec<u32>> {
            let mut tids = Vec::new();
            for entry in Dir::read_from(&self.tasks)? {
                let entry = entry?;
                tids.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
            }
            tids.sort_unstable();
            Ok(tids)
        };
        match list().map_err(|source| error(self.pid, source))? {
            tids if tids.is_empty() => Err(ProcessError::Gone(self.pid)),
            tids => Ok(tids),
        }
    }
}

fn error(pid: u32, source: io::Error) -> ProcessError {
    match rustix::io::Errno::from_io_error(&source) {
        Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => ProcessError::Gone(pid),
        _ => ProcessError::System { pid, source },
    }
}

/// What procfs tells of a thread's state.
pub(super) struct ThreadStat {
    /// As in `R` and `S`.
    pub(super) letter: u8,
    /// The core where it ran last.
    pub(super) core: u16,
}

impl ThreadStat {
    /// The state of thread `tid`; none if there is none.
    pub(super) fn read(tid: u32) -> Option<ThreadStat> {
        // A thread is found under its own id as well, though it is not listed there.
        ThreadStat::parse(&std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?)
    }

    /// Fields 3 and 39 of proc_pid_stat(5). Field 2 is a name in brackets, which may itself have any.
    fn parse(stat: &str) -> Option<ThreadStat> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let letter = *fields.next()?.as_bytes().first()?;
        Some(ThreadStat { letter, core: fields.nth(39 - 4)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    //! A stat line is read right whatever the thread's name, and a short one is none.
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let fields =
            "R 1 100 100 0 -1 64 109 0 0 0 0 0 0 0 20 0 1 0 8 14 5 18446 1 1 0 0 0 0 0 4 65 0 0 0 17 7 0 0";
        let stat = ThreadStat::parse(&format!("42 (a) R b ()) {fields}")).unwrap();
        assert_eq!((stat.letter, stat.core), (b'R', 7));
        for short in ["", "42 (a)", "42 (a) R 1 2", "42 a R 1"] {
            assert!(ThreadStat::parse(short).is_none(), "{short:?}");
        }
    }

    #[test]
    fn a_process_has_its_threads_and_no_process_none() {
        let here = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let process = Process::open(std::process::id()).unwrap();
        let tids = process.threads().unwrap();
        assert!(tids.contains(&here) && tids.is_sorted(), "{here} in {tids:?}");
        assert!(matches!(Process::open(u32::MAX), Err(ProcessError::Gone(u32::MAX))));
    }

    #[test]
    fn a_process_that_has_ended_is_gone() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.threads().unwrap(), [child.id()]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(process.threads(), Err(ProcessError::Gone(_))));
    }
}
