//! The guest: its code, its memory, and the state in which its one virtual core begins.

use super::KvmError;
use crate::mem::Zeroed;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use std::ffi::CStr;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The port that rings, and the one that tells this program how often it was rung. No device of a PC has them.
const RING: u8 = 0x12;
const TELL: u8 = 0x10;

/// What the guest runs: `esi` is how often it is to ring a run, `eax` how often it has rung.
#[rustfmt::skip]
const CODE: [u8; 18] = [
    0x89, 0xf7, //       run:  mov edi, esi
    0x85, 0xff, //       next: test edi, edi
    0x74, 0x08, //             jz tell
    0xe6, RING, //             out RING, al
    0xff, 0xc0, //             inc eax
    0xff, 0xcf, //             dec edi
    0xeb, 0xf4, //             jmp next
    0xe7, TELL, //       tell: out TELL, eax
    0xeb, 0xee, //             jmp run
];

/// The guest's memory, from address 0: three page tables (Intel SDM 3A, 4.5), the last of which maps the first 2 MiB where
/// they are, and a page of code. The code is not first, as `kvm_pvm` does not run what is at address 0.
const TABLES: [u64; 3] = [0, 0x1000, 0x2000];
const CODE_AT: u64 = 0x3000;
const MEMORY_BYTES: usize = 0x4000;
const PRESENT_WRITABLE_USER: u64 = 0b111;
const LARGE_PAGE: u64 = 1 << 7;

/// Control registers: protection, paging and what both ask for (SDM 3A, 2.5 and 10.8.5).
const CR0_PE_MP_ET_NE_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// `RFLAGS` with bit 1, which is always set, and I/O permitted to the lowest privilege.
const RFLAGS_IOPL_3: u64 = 1 << 1 | 3 << 12;

/// The lowest privilege.
const USER: u8 = 3;

/// Three pages below 4 GiB that KVM wants for itself on some processors, far from the guest's memory.
const KVMS_OWN_PAGES: usize = 0xfffb_d000;

/// A VM of one virtual core that rings a doorbell, so many times a run.
pub struct Guest {
    vcpu: VcpuFd,
    doorbell: EventFd,
    _vm: VmFd,
    /// After what uses it: fields are dropped in order.
    _memory: Zeroed,
    rings: u32,
    /// How often it has rung, modulo 2^32 as its register.
    rung: u32,
}

impl Guest {
    /// A guest that rings so many times a run.
    ///
    /// # Errors
    /// There is no KVM for this process, or it refuses a step.
    pub fn new(rings: u32) -> Result<Guest, KvmError> {
        Guest::of_code(&CODE, rings)
    }

    /// A guest that has code of one's own, at most 4096 bytes which may lie anywhere: to see what becomes of one that does
    /// something else.
    ///
    /// # Errors
    /// As for [`Guest::new`].
    ///
    /// # Panics
    /// There is more code.
    pub fn of_code(code: &[u8], rings: u32) -> Result<Guest, KvmError> {
        Guest::on(c"/dev/kvm", code, rings)
    }

    fn on(device: &CStr, code: &[u8], rings: u32) -> Result<Guest, KvmError> {
        // Before the VM, so that it is dropped after it, whatever fails.
        let memory = memory(code);
        let kvm = Kvm::new_with_path(device).map_err(|error| KvmError::Open(error.into()))?;
        let vm = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        vm.set_tss_address(KVMS_OWN_PAGES).map_err(refused("KVM_SET_TSS_ADDR"))?;

        let region = kvm_userspace_memory_region {
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: memory.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the region is whole pages of `memory`, which starts at one; they live until the VM's files are closed, and no
        // Rust reference to them exists. The guest runs in `Guest::run` alone.
        let given = unsafe { vm.set_user_memory_region(region) };
        given.map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;

        let doorbell =
            EventFd::new(EFD_NONBLOCK).map_err(|error| KvmError::Refused { step: "eventfd", error })?;
        vm.register_ioevent(&doorbell, &IoEventAddress::Pio(RING.into()), NoDatamatch)
            .map_err(refused("KVM_IOEVENTFD"))?;

        let vcpu = vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU"))?;
        let features = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let features = features.map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&features).map_err(refused("KVM_SET_CPUID2"))?;
        set_state(&vcpu, rings)?;
        Ok(Guest { vcpu, doorbell, _vm: vm, _memory: memory, rings, rung: 0 })
    }

    /// Runs the guest until it leaves its code for this program: it rings as often as it is to, then tells how often it
    /// has in all.
    ///
    /// # Errors
    /// KVM does not run it, or it does something else than its code says.
    pub fn run(&mut self) -> Result<(), KvmError> {
        let exit = loop {
            match self.vcpu.run() {
                // A signal, for which nothing is to be done here.
                Err(error) if error.errno() == libc::EINTR => {}
                exit => break exit.map_err(refused("KVM_RUN"))?,
            }
        };
        self.rung = self.rung.wrapping_add(self.rings);
        match exit {
            VcpuExit::IoOut(port, &[a, b, c, d]) if port == TELL.into() => {
                let (said, due) = (u32::from_le_bytes([a, b, c, d]), self.rung);
                if said == due { Ok(()) } else { Err(KvmError::Miscounted { said, due }) }
            }
            exit => Err(KvmError::Exit(format!("{exit:?}"))),
        }
    }

    /// How often the doorbell was rung since this was last asked.
    pub fn rung(&self) -> u64 {
        // What does not block fails where there is nothing to read.
        self.doorbell.read().unwrap_or(0)
    }
}

fn refused(step: &'static str) -> impl FnOnce(errno::Error) -> KvmError {
    move |error| KvmError::Refused { step, error: error.into() }
}

/// The guest's memory with what is in it when it begins.
fn memory(code: &[u8]) -> Zeroed {
    let mut image = [0; MEMORY_BYTES];
    image[CODE_AT as usize..][..code.len()].copy_from_slice(code);
    let [first, second, third] = TABLES;
    for (table, entry) in [(first, second), (second, third), (third, LARGE_PAGE)] {
        let entry = (entry | PRESENT_WRITABLE_USER).to_le_bytes();
        image[table as usize..][..entry.len()].copy_from_slice(&entry);
    }
    let memory = Zeroed::new(MEMORY_BYTES);
    // SAFETY: both have so many bytes, and the memory is new and nobody else's.
    unsafe { core::ptr::copy_nonoverlapping(image.as_ptr(), memory.as_ptr(), image.len()) };
    memory
}

/// Puts the virtual core before the first instruction.
fn set_state(vcpu: &VcpuFd, rings: u32) -> Result<(), KvmError> {
    let mut state = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    (state.cr0, state.cr3, state.cr4) = (CR0_PE_MP_ET_NE_PG, TABLES[0], CR4_PAE);
    state.efer = EFER_LME_LMA;
    state.cs = segment(1, SegmentType::Code);
    let data = segment(2, SegmentType::Data);
    (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data);
    // It has no handlers, so that each exception shuts it down.
    state.idt.limit = 0;
    vcpu.set_sregs(&state).map_err(refused("KVM_SET_SREGS"))?;
    let registers = kvm_regs { rip: CODE_AT, rsi: rings.into(), rflags: RFLAGS_IOPL_3, ..Default::default() };
    vcpu.set_regs(&registers).map_err(refused("KVM_SET_REGS"))
}

/// Types of segments that were accessed (SDM 3A, 3.4.5.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum SegmentType {
    /// Read and written.
    Data = 3,
    /// Executed and read; of 64 bits.
    Code = 11,
}

/// All of the address space, for the lowest privilege.
fn segment(index: u16, kind: SegmentType) -> kvm_segment {
    let is_code = kind == SegmentType::Code;
    kvm_segment {
        limit: u32::MAX,
        selector: index << 3 | u16::from(USER),
        type_: kind as u8,
        present: 1,
        dpl: USER,
        db: (!is_code).into(),
        s: 1,
        l: is_code.into(),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    //! What is not KVM says so.

    use super::*;

    fn error(device: &CStr) -> String {
        Guest::on(device, &CODE, 1).err().expect("no guest").to_string()
    }

    #[test]
    fn a_device_that_is_none_says_why() {
        assert_eq!(error(c"/nowhere/kvm"), "/dev/kvm: No such file or directory (os error 2)");
        assert_eq!(
            error(c"/dev/null"),
            "/dev/kvm: KVM_CREATE_VM: Inappropriate ioctl for device (os error 25)"
        );
    }
}
