//! Keys of those who make bundles: Ed25519 (RFC 8032), as PKCS #8 and SubjectPublicKeyInfo in PEM, so that other tools read
//! them too. Signing is deterministic; keys are made elsewhere.

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a signature.
pub const SIGNATURE: usize = 64;
/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "it is no Ed25519 public key in PEM; take the .pub file that `agentguard policy keygen` made"
    )]
    Public,
    #[error("it is no Ed25519 private key in PEM; make one with `agentguard policy keygen`")]
    Private,
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// SHA-256 of a public key's 32 bytes, lower-case hex.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    pub(super) fn of(raw: &[u8]) -> Self {
        Self(hex(&Sha256::digest(raw)))
    }

    /// As it is written in a packed bundle.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Enough of it to tell keys apart.
impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0[..16])
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[derive(Clone, Debug)]
pub struct PublicKey {
    raw: [u8; 32],
    id: KeyId,
}

impl PublicKey {
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::Public)?;
        let raw = der.strip_prefix(&SPKI_PREFIX).ok_or(KeyError::Public)?;
        let raw = raw.try_into().map_err(|_| KeyError::Public)?;
        Ok(Self {
            raw,
            id: KeyId::of(&raw),
        })
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.raw);
        key.verify(message, signature).is_ok()
    }
}

/// A private key; what it holds is on no output.
pub struct SecretKey(KeyPair);

impl SecretKey {
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = KeyPair::from_pem(pem).map_err(|_| KeyError::Private)?;
        if key.algorithm() != &PKCS_ED25519 {
            return Err(KeyError::Private);
        }
        Ok(Self(key))
    }

    pub fn id(&self) -> KeyId {
        KeyId::of(self.0.der_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE], KeyError> {
        let signature = self.0.sign(message)?;
        signature.try_into().map_err(|_| KeyError::Private)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SecretKey({})", self.id())
    }
}

/// Lower-case.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads exactly `N` bytes of lower-case hex.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A fresh pair.
    pub(crate) fn pair() -> (SecretKey, PublicKey) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let public = PublicKey::from_pem(key.public_key_pem().as_bytes()).unwrap();
        (SecretKey::from_pem(&key.serialize_pem()).unwrap(), public)
    }

    #[test]
    fn a_signature_holds_for_its_message_and_key_alone() {
        let (secret, public) = pair();
        assert_eq!(secret.id(), *public.id());
        let signature = secret.sign(b"message").unwrap();
        assert_eq!(signature, secret.sign(b"message").unwrap());
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));
        assert!(!pair().1.verifies(b"message", &signature));
        let mut other = signature;
        other[63] ^= 1;
        assert!(!public.verifies(b"message", &other));
    }

    #[test]
    fn the_first_test_vector_of_rfc_8032() {
        let raw =
            unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        let key = PublicKey {
            raw,
            id: KeyId::of(&raw),
        };
        let signature = unhex("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b").unwrap();
        assert!(key.verifies(b"", &signature));
    }

    #[test]
    fn what_is_no_key_of_this_kind_is_refused() {
        let other = KeyPair::generate().unwrap();
        assert!(PublicKey::from_pem(other.public_key_pem().as_bytes()).is_err());
        assert!(SecretKey::from_pem(&other.serialize_pem()).is_err());
        let right = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert!(PublicKey::from_pem(right.serialize_pem().as_bytes()).is_err());
        assert!(SecretKey::from_pem(&right.public_key_pem()).is_err());
        assert!(PublicKey::from_pem(b"").is_err());
    }
}
