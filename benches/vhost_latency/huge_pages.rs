//! Huge pages, reserved for as long as somebody needs them.

use std::fs;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// The reservation, taken back when dropped.
pub struct HugePages {
    before: String,
}

impl HugePages {
    /// Of the machine's huge pages, of 2 MiB, this many.
    pub fn reserve(pages: u32) -> HugePages {
        let before = fs::read_to_string(COUNT).expect("this kernel has huge pages");
        fs::write(COUNT, pages.to_string()).expect("root may reserve huge pages");
        HugePages { before }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(COUNT, &self.before) {
            eprintln!("huge pages are not given back: {error}");
        }
    }
}
