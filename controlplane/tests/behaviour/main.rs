//! What the control plane does, seen from outside.

mod control_plane;
mod learning_switch;
mod model;
