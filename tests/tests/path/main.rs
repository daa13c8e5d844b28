//! What an agent sends on its way: real clients, real servers, and what of it is permitted, refused and recorded.

mod body;
mod clients;
mod distrust;
mod dns;
mod early;
mod foreign;
mod git;
mod grpc;
mod instruments;
mod large;
mod load;
mod namespace;
mod packages;
mod passthrough;
mod pool;
mod proxy;
mod refusals;
mod settings;
mod sse;
mod websocket;
mod wire;
mod words;
