//! What there is of the guest where its code does not run.

use super::KvmError;

/// A guest that cannot be.
pub enum Guest {}

impl Guest {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(_rings: u32) -> Result<Guest, KvmError> {
        Err(KvmError::Architecture)
    }

    /// As [`Guest::new`].
    ///
    /// # Errors
    /// Always.
    pub fn of_code(_code: &[u8], _rings: u32) -> Result<Guest, KvmError> {
        Err(KvmError::Architecture)
    }

    /// There is nothing to run.
    ///
    /// # Errors
    /// None, as it is not called.
    pub fn run(&mut self) -> Result<(), KvmError> {
        match *self {}
    }

    /// There is nothing to ring.
    pub fn rung(&self) -> u64 {
        match *self {}
    }
}
