//! Frames on the wire: `bincode`, split into datagrams the socket takes; size-limited both ways.
//!
//! A datagram is a version byte, a byte of flags and a piece of the frame. The first piece of a frame begins with the
//! whole frame's length (32 bits, little endian). Frames do not interleave.

use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{ToDaemon, ToForwarder};

/// Grows with every change to a frame: daemon and forwarder are one binary, so another version is a mistake.
pub const VERSION: u8 = 7;
/// Bytes of the longest datagram sent or taken.
pub const MAX_DATAGRAM: usize = 64 * 1024;

const FIRST: u8 = 1;
const LAST: u8 = 2;
const HEAD: usize = 2;
const LENGTH: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("link: frame version {0}, this build speaks {VERSION}; restart the daemon")]
    Version(u8),
    #[error("link: a frame of {bytes} bytes, at most {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("link: a datagram was cut short or came out of order")]
    Broken,
    #[error("link: cannot encode a frame: {0}")]
    Encode(#[from] EncodeError),
    #[error("link: cannot decode a frame: {0}")]
    Decode(#[from] DecodeError),
}

/// What one side says to the other.
pub trait Frame: Serialize + DeserializeOwned {
    /// Longest encoding, bytes. What is longer is an error on both sides.
    const MAX_BYTES: usize;
    /// Whether descriptors may come with it. Where not, none that are sent arrive.
    const WITH_DESCRIPTORS: bool;

    /// Reads exactly one frame.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError>;
}

macro_rules! frame {
    ($frame:ty, $max:expr, $with_descriptors:expr) => {
        impl Frame for $frame {
            const MAX_BYTES: usize = $max;
            const WITH_DESCRIPTORS: bool = $with_descriptors;

            fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                let config = bincode::config::standard().with_limit::<{ $max }>();
                let (frame, read) = bincode::serde::decode_from_slice(bytes, config)?;
                if read == bytes.len() {
                    Ok(frame)
                } else {
                    Err(CodecError::Broken)
                }
            }
        }
    };
}
// Bundles and trust anchors travel this way, and listeners.
frame!(ToForwarder, 64 << 20, true);
// The forwarder parses what agents send: it cannot make the daemon hold much.
frame!(ToDaemon, 4 << 20, false);

/// A frame's bytes, length first.
pub fn encode<F: Frame>(frame: &F) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(frame, bincode::config::standard())?;
    if body.len() > F::MAX_BYTES {
        return Err(CodecError::TooLarge {
            bytes: body.len(),
            max: F::MAX_BYTES,
        });
    }
    let length = u32::try_from(body.len()).map_err(|_| CodecError::Broken)?;
    let mut bytes = Vec::with_capacity(LENGTH + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The datagrams of an encoded frame: each one's head and piece, to be sent as one.
pub fn datagrams(encoded: &[u8]) -> impl Iterator<Item = ([u8; HEAD], &[u8])> {
    let pieces = encoded.chunks(MAX_DATAGRAM - HEAD);
    let last = pieces.len() - 1;
    pieces.enumerate().map(move |(index, piece)| {
        let first = if index == 0 { FIRST } else { 0 };
        let end = if index == last { LAST } else { 0 };
        ([VERSION, first | end], piece)
    })
}

/// Puts frames together again. After an error the link is of no more use.
#[derive(Debug, Default)]
pub struct Assembler {
    pieces: Vec<u8>,
    expected: Option<usize>,
}

impl Assembler {
    /// Takes one datagram; the frame, if it is the last of one.
    pub fn push<F: Frame>(&mut self, datagram: &[u8]) -> Result<Option<F>, CodecError> {
        let (&version, rest) = datagram.split_first().ok_or(CodecError::Broken)?;
        if version != VERSION {
            return Err(CodecError::Version(version));
        }
        let (&flags, mut piece) = rest.split_first().ok_or(CodecError::Broken)?;
        if flags & !(FIRST | LAST) != 0 || (flags & FIRST != 0) != self.expected.is_none() {
            return Err(CodecError::Broken);
        }
        if flags & FIRST != 0 {
            let (length, body) = piece
                .split_first_chunk::<LENGTH>()
                .ok_or(CodecError::Broken)?;
            let bytes =
                usize::try_from(u32::from_le_bytes(*length)).map_err(|_| CodecError::Broken)?;
            if bytes > F::MAX_BYTES {
                return Err(CodecError::TooLarge {
                    bytes,
                    max: F::MAX_BYTES,
                });
            }
            self.expected = Some(bytes);
            piece = body;
        }
        let expected = self.expected.ok_or(CodecError::Broken)?;
        if self.pieces.len() + piece.len() > expected {
            return Err(CodecError::Broken);
        }
        if flags & LAST == 0 {
            self.pieces.extend_from_slice(piece);
            return Ok(None);
        }
        self.expected = None;
        if self.pieces.is_empty() {
            return if piece.len() == expected {
                F::decode(piece).map(Some)
            } else {
                Err(CodecError::Broken)
            };
        }
        self.pieces.extend_from_slice(piece);
        let whole = std::mem::take(&mut self.pieces);
        if whole.len() == expected {
            F::decode(&whole).map(Some)
        } else {
            Err(CodecError::Broken)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::to_daemon::DaemonCall;

    fn leaf(name: String) -> ToDaemon {
        let call = DaemonCall::Leaf(name);
        ToDaemon::Call { token: 1, call }
    }

    fn wire<F: Frame>(frame: &F) -> Vec<Vec<u8>> {
        let encoded = encode(frame).unwrap();
        datagrams(&encoded)
            .map(|(head, piece)| [&head[..], piece].concat())
            .collect()
    }

    #[test]
    fn a_frame_longer_than_a_datagram_comes_back_whole() {
        for length in [0, 1, 65_520, 65_530, 65_540, 200_000] {
            let name = "x".repeat(length);
            let sent = wire(&leaf(name.clone()));
            assert!(sent.iter().all(|datagram| datagram.len() <= MAX_DATAGRAM));
            let mut assembler = Assembler::default();
            let mut got = Vec::new();
            // Twice, to see that the assembler starts afresh.
            for datagram in sent.iter().chain(&sent) {
                got.extend(assembler.push::<ToDaemon>(datagram).unwrap());
            }
            assert_eq!(got.len(), 2, "length {length}");
            for frame in got {
                assert!(
                    matches!(frame, ToDaemon::Call { call: DaemonCall::Leaf(n), .. } if n == name)
                );
            }
        }
    }

    #[test]
    fn what_is_not_a_frame_is_an_error() {
        let good = wire(&ToDaemon::Lost { netns: 7 }).remove(0);
        let long = wire(&leaf("y".repeat(100_000)));
        let mut version = good.clone();
        version[0] = 9;
        let mut flags = good.clone();
        flags[1] |= 4;
        let mut trailing = good.clone();
        trailing.push(0);
        let mut oversized = good.clone();
        oversized[HEAD..HEAD + LENGTH].copy_from_slice(&u32::MAX.to_le_bytes());
        let cut = good[..good.len() - 1].to_vec();
        let cases: [(&str, Vec<Vec<u8>>); 8] = [
            ("empty", vec![vec![]]),
            ("version only", vec![vec![VERSION]]),
            ("another version", vec![version]),
            ("unknown flag", vec![flags]),
            ("trailing byte", vec![trailing]),
            ("longer than allowed", vec![oversized]),
            ("cut short", vec![cut]),
            (
                "a new frame inside another",
                vec![long[0].clone(), good.clone()],
            ),
        ];
        for (name, datagrams) in cases {
            let mut assembler = Assembler::default();
            let result = datagrams
                .iter()
                .try_for_each(|d| assembler.push::<ToDaemon>(d).map(drop));
            assert!(result.is_err(), "{name}");
        }
        let mut assembler = Assembler::default();
        assert!(
            assembler.push::<ToDaemon>(&long[1]).is_err(),
            "a frame without its beginning"
        );
    }

    #[test]
    fn every_prefix_of_a_datagram_is_refused() {
        let good = wire(&leaf("origin.test".into())).remove(0);
        for end in 0..good.len() {
            assert!(
                Assembler::default().push::<ToDaemon>(&good[..end]).is_err(),
                "{end} bytes"
            );
        }
    }

    #[test]
    fn a_frame_over_its_limit_is_not_sent() {
        let name = "z".repeat(ToDaemon::MAX_BYTES + 1);
        assert!(matches!(
            encode(&leaf(name)),
            Err(CodecError::TooLarge { .. })
        ));
    }
}
