//! One file per hook.

mod bind;
mod connect;
mod connected;
mod datagram;
mod egress;
mod exec;
mod guard;
mod peername;
mod process;
mod redirect;
mod socket;
mod unix;
