//! A SIGBUS that is not of a front-end's memory ends the process, as it did before there was a handler. Told by
//! a child process, which is this program again.

use crate::OpenFds;
use crate::vmm::{BYTES, GUEST, Vmm, memory, send_all};
use hyper_switch_pvnet::vhost_user::session::{Offer, Session};
use rustix::fs::ftruncate;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::ptr;

const CHILD: &str = "HYPER_SWITCH_TEST_TOUCHES_LOST_MEMORY";
const SIGBUS: i32 = 7;

#[test]
fn memory_of_others_is_not_replaced() {
    if std::env::var_os(CHILD).is_some() {
        touch_lost_memory();
        return;
    }
    let _fds = OpenFds::count();
    let own = "sigbus::memory_of_others_is_not_replaced";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", own, "--nocapture"])
        .env(CHILD, "1")
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(output.contains("the front-end's memory is zeros"), "{output}");
    assert_eq!(child.status.signal(), Some(SIGBUS), "{output}");
}

/// First a front-end's, then memory of the program's own.
fn touch_lost_memory() {
    let vmm = Vmm::new();
    let mut session = Session::new(Offer::default()).unwrap();
    send_all(&mut session, [vmm.map()]);
    ftruncate(&vmm.file, 0).unwrap();
    let guest = session.memory().translate_whole(GUEST, 1).unwrap();
    // SAFETY: the session keeps the memory.
    assert_eq!(unsafe { guest.load::<1>() }, [0]);
    println!("the front-end's memory is zeros");

    let file = memory(BYTES);
    // SAFETY: it replaces nothing, and is accessed by address alone.
    let own = unsafe { mmap(ptr::null_mut(), BYTES as usize, ProtFlags::READ, MapFlags::SHARED, &file, 0) };
    let own = own.unwrap().cast::<u8>();
    ftruncate(&file, 0).unwrap();
    // SAFETY: this is what the test is about; it does not come back.
    unsafe { own.read_volatile() };
}
