//! Who the agents of this host are: their ids, their processes, what makes a process one of theirs.

pub mod activity;
pub mod adopt;
pub mod identify;
pub mod lineage;
pub mod presence;
pub mod registry;
pub mod stops;
pub mod tasks;
