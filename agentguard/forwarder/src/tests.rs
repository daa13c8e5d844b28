//! The path on the wire, with real TLS and HTTP on loopback. Only the kernel is missing: origins are given, and
//! upstream sockets are not marked.

mod connection;
mod denial;
mod endings;
mod http1;
mod http2;
mod judging;
mod kill;
mod orders;
mod origin;
mod pace;
mod records;
mod rig;
mod size;
mod stream;
mod tls;
mod tunnel;
