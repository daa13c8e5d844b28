#![doc = include_str!("../docs/inside/architecture.md")]
#![forbid(unsafe_code)]

pub mod cli;
