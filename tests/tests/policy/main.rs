//! Bundles and what they decide: how they come into force and go, and what their rules may read.

mod cli;
mod history;
mod limits;
mod live;
mod lookup;
mod observe;
mod packed;
mod replay;
mod situation;
