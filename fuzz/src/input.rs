//! An input, read from its start: numbers and runs of bytes, zeros behind its end.

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `bytes`, or as many as there are.
    pub fn run(&mut self, bytes: usize) -> &'a [u8] {
        let (run, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        run
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let run = self.run(N);
        array[..run.len()].copy_from_slice(run);
        array
    }

    pub fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
}
