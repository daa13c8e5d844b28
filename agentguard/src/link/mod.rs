//! The one channel between daemon and forwarder: a `SOCK_SEQPACKET` pair ([`channel`]) carrying [`frame`]s through one
//! [`codec`].

pub mod channel;
pub mod codec;
pub mod frame;
