//! The driver's entries: when a guest goes to the switch, what it does with an interrupt, and when it may sleep.
//! Whatever runs in the guest, a TCP/IP stack or bare frames, goes through here.

use super::{GuestCounters, Hypercall, Nic};

/// An interface and its way to the switch.
pub struct Driver {
    /// The interface.
    pub nic: Nic,
    /// Entries and interrupts so far.
    pub counters: GuestCounters,
    /// An interrupt was taken and not yet acted on.
    interrupted: bool,
    /// The rings were asked for interrupts.
    parked: bool,
}

impl Driver {
    /// The driver of an interface that is awake: it asks for no interrupts.
    pub fn new(nic: Nic) -> Driver {
        Driver { nic, counters: GuestCounters::default(), interrupted: false, parked: false }
    }

    /// The beginning of each poll: has what waits copied, if an interrupt told of anything, and asks for no more
    /// interrupts while the VM looks for itself.
    pub fn wake(&mut self, hypercall: &mut dyn Hypercall) {
        self.take_interrupt(hypercall);
        if self.interrupted {
            self.interrupted = false;
            if hypercall.frames_wait() {
                self.receive(hypercall);
            }
        }
        if self.parked {
            self.parked = false;
            self.nic.disable_interrupts();
        }
    }

    /// Where a frame may have been sent: without batching, an entry for each.
    pub fn announce_each(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) {
        if !self.nic.batches() {
            self.announce(now_ns, hypercall);
        }
    }

    /// Offers what was sent, and enters the switch for it if it is time.
    pub fn announce(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) {
        if self.nic.publish_tx(now_ns) {
            self.transmit(hypercall);
        }
    }

    /// The end of each poll: both rings are brought up to date, with one entry each at most.
    pub fn publish(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) {
        self.announce(now_ns, hypercall);
        if self.nic.publish_rx() {
            self.receive(hypercall);
        }
    }

    /// The guest's half of falling asleep: see the head of `guest`. Answers whether the VM may.
    pub fn park(&mut self, now_ns: u64, hypercall: &mut dyn Hypercall) -> bool {
        if self.nic.publish_tx_before_sleep(now_ns) {
            self.transmit(hypercall);
        }
        self.parked = true;
        if self.nic.enable_interrupts() {
            return false;
        }
        self.take_interrupt(hypercall);
        !self.interrupted && !hypercall.block()
    }

    fn take_interrupt(&mut self, hypercall: &mut dyn Hypercall) {
        if hypercall.take_interrupt() {
            self.counters.interrupts += 1;
            self.interrupted = true;
        }
    }

    fn transmit(&mut self, hypercall: &mut dyn Hypercall) {
        self.counters.transmit_hypercalls += 1;
        hypercall.transmit();
    }

    fn receive(&mut self, hypercall: &mut dyn Hypercall) {
        self.counters.receive_hypercalls += 1;
        hypercall.receive();
    }
}
