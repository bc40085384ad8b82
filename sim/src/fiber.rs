//! Tasks that can be put aside in the midst of the switch: each has a stack of its own.

use crate::arch::entrance::{Entrance, Pause, Seat, VmWay};
use crate::guest::{Guest, Step};
use crate::host::SimHost;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use hyper_switch_dataplane::api::PortId;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// Bytes of a stack: what a thread has would be too much for a thousand of them, and the switch needs little.
const STACK_BYTES: usize = 256 * 1024;

/// A task that goes on where it was put aside.
pub(crate) struct Fiber(Coroutine<(), Pause, ()>);

impl Fiber {
    fn new(life: impl FnOnce(&Yielder<(), Pause>, ()) + 'static) -> io::Result<Fiber> {
        Ok(Fiber(Coroutine::with_stack(DefaultStack::new(STACK_BYTES)?, life)))
    }

    /// A VM's vCPU.
    ///
    /// # Errors
    /// There is no memory for its stack.
    pub(crate) fn vm(
        host: Rc<SimHost>,
        mut entrance: Entrance,
        guest: Rc<RefCell<Guest>>,
        vm: PortId,
        quantum_ns: u64,
    ) -> io::Result<Fiber> {
        Fiber::new(move |yielder, ()| {
            loop {
                let seat = Seat::new(&host, yielder);
                let mut way = VmWay { entrance: &mut entrance, seat, vm };
                let step = guest.borrow_mut().step(seat, quantum_ns, &mut way);
                yielder.suspend(Pause::Over(match step {
                    Ok(Step::Busy) => None,
                    Ok(Step::Blocks(until_ns)) => Some(until_ns),
                    // A guest whose rings were broken is dead; that shows by its doing nothing.
                    Err(_) => Some(None),
                }));
            }
        })
    }

    /// An idle core's work for the switch. It blocks when there is no more.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn idler(host: Rc<SimHost>, mut entrance: Entrance) -> io::Result<Fiber> {
        Fiber::new(move |yielder, ()| {
            loop {
                let more = entrance.idle(&Seat::new(&host, yielder));
                yielder.suspend(Pause::Over(if more { None } else { Some(None) }));
            }
        })
    }

    /// Goes on until it is put aside again.
    pub(crate) fn go_on(&mut self) -> Pause {
        match self.0.resume(()) {
            CoroutineResult::Yield(pause) => pause,
            CoroutineResult::Return(()) => unreachable!("a task goes round for ever"),
        }
    }
}
