//! The switch's policies: each a small file of pure functions, a snapshot in, a decision out.

pub mod notification;
