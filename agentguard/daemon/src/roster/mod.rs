//! Who the agents are, whose they are, and which bundle is in force.

pub mod book;
pub mod registration;
pub mod registry;
pub mod stops;
pub mod supervise;
pub mod tasks;
