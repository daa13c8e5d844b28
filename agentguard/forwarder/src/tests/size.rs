//! How much memory a connection takes before it has sent anything.

use std::mem::size_of_val;

use tokio::net::{TcpListener, TcpStream};

use super::rig::Rig;
use crate::path;

/// Bytes of a connection's future, at most. There may be tens of thousands, most of them idle: what is needed only once, as
/// a handshake, and what a request needs is on the heap and gone with it.
const MOST: usize = 8 * 1024;

#[tokio::test]
async fn an_idle_connection_is_small() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let socket = TcpStream::connect(addr).await.unwrap();
    let door = rig.door(Some(443));
    let size = size_of_val(&path::connection(&door, socket, None));
    assert!(size <= MOST, "{size} bytes");
}
