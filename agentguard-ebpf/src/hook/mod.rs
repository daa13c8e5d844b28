//! One file per hook.

mod bind;
mod connect;
mod connected;
mod datagram;
mod device;
mod egress;
mod enrol;
mod exec;
mod guard;
mod heard;
mod lsm;
mod lsm_digest;
mod lsm_exec;
mod lsm_files;
mod lsm_handed;
mod lsm_listen;
mod lsm_pins;
mod lsm_socket;
mod lsm_tamper;
mod lsm_unix;
mod peername;
mod process;
mod question;
mod redirect;
mod socket;
pub mod sysctl;
mod unix;
