//! What cores share is made of these: the atomics and the cell of `core`, and what atomic pointers lead to.
//!
//! Built with `--cfg loom` they are the model checker's instead. It runs a test again and again, in every order
//! in which its threads' steps can come and with every value that a load may see by its ordering, and fails on a
//! read or write of a cell that another's is not ordered with. Without, all of this costs nothing.
//!
//! The model checker takes a sequentially consistent load or store for an acquire or release; only fences are
//! what they are. So a protocol that rests on the one total order has fences.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::sync::atomic;

use alloc::boxed::Box;
use core::ops::Deref;

#[cfg(not(loom))]
use core::marker::PhantomData;
#[cfg(not(loom))]
use hyper_switch_pvnet::mem::Zeroed;

/// A value that cores reach by a protocol written where the cell is. Each asks for the pointer when it may use the
/// value, not before: the model checker takes the asking for the use.
#[cfg(not(loom))]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(core::cell::UnsafeCell::new(value))
    }

    /// The value, to be read.
    #[inline(always)]
    pub(crate) fn get(&self) -> *const T {
        self.0.get()
    }

    /// The value, to be written.
    #[inline(always)]
    pub(crate) fn get_mut(&self) -> *mut T {
        self.0.get()
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

#[cfg(loom)]
pub(crate) struct UnsafeCell<T>(loom::cell::UnsafeCell<T>);

#[cfg(loom)]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(loom::cell::UnsafeCell::new(value))
    }

    pub(crate) fn get(&self) -> *const T {
        self.0.with(|value| value)
    }

    pub(crate) fn get_mut(&self) -> *mut T {
        self.0.with_mut(|value| value)
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

/// What an atomic pointer leads to. The model checker takes every way through the pointer for a read, and the end
/// of the value for a write.
#[cfg_attr(not(loom), repr(transparent))]
pub(crate) struct Published<T> {
    value: T,
    #[cfg(loom)]
    end: End,
}

impl<T> Published<T> {
    /// Puts `value` where a pointer can lead to it. Whoever frees it makes a `Box` of the pointer again.
    pub(crate) fn publish(value: T) -> *mut Published<T> {
        Box::into_raw(Box::new(Published {
            value,
            #[cfg(loom)]
            end: End(UnsafeCell::new(())),
        }))
    }

    /// The value, which nobody else can reach any more.
    pub(crate) fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Published<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        #[cfg(loom)]
        self.end.0.get();
        &self.value
    }
}

/// The end of a value.
#[cfg(loom)]
struct End(UnsafeCell<()>);

#[cfg(loom)]
impl Drop for End {
    fn drop(&mut self) {
        self.0.get_mut();
    }
}

/// Many values that all begin as zeros, in memory that is taken when it is first used.
pub(crate) struct Zeros<T> {
    #[cfg(not(loom))]
    memory: Zeroed,
    #[cfg(not(loom))]
    values: PhantomData<[T]>,
    #[cfg(not(loom))]
    len: usize,
    #[cfg(loom)]
    memory: Box<[T]>,
}

#[cfg(not(loom))]
impl<T> Zeros<T> {
    /// `len` values. `zero` makes what zeros are; the model checker's atomics are not made of zeros.
    ///
    /// # Safety
    /// Zeros are a `T`, aligned to no more than a page, that need not be dropped.
    pub(crate) unsafe fn new(len: usize, _zero: fn() -> T) -> Zeros<T> {
        Zeros { memory: Zeroed::new(len * size_of::<T>()), values: PhantomData, len }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: the memory has room for `len` values, is aligned for them and lives as long as `self`; zeros are
        // a value, as `new` was told.
        (index < self.len).then(|| unsafe { &*self.as_ptr().add(index) })
    }

    /// The first value.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *const T {
        self.memory.as_ptr().cast()
    }
}

#[cfg(loom)]
impl<T> Zeros<T> {
    pub(crate) unsafe fn new(len: usize, zero: fn() -> T) -> Zeros<T> {
        Zeros { memory: (0..len).map(|_| zero()).collect() }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.memory.get(index)
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        self.memory.as_ptr()
    }
}
