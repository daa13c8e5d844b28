//! Which processes run, whose they are, and where.

pub mod activity;
pub mod adopt;
pub mod adoption;
pub mod attendance;
pub mod enrol;
pub mod identify;
pub mod lineage;
pub mod namespaces;
pub mod presences;
