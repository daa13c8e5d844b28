//! The per-host CA: makes and keeps its key, signs leaves. Its key never leaves the process that opened it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentguard_link::calls::to_daemon::Leaf;
use agentguard_sys::SysError;
use agentguard_sys::file::ensure_folder;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::pair::Paths;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Five years; a new one is made when it has ended.
const CA_LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// From `not_before` to `not_after`.
const LEAF_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Upper bound of a subject's common name (RFC 5280 appendix A.1, `ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// The CA of this host. Lives in the daemon only.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Every leaf's key: a key per leaf would protect nothing, they are all in the forwarder.
    leaf_key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
    info: Info,
}

/// What users may know of the CA: what `agentguard ca show` prints and `GET /v1/ca` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub subject: String,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
    pub path: PathBuf,
    pub pem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot {call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write {}: {source}", path.display())]
    Sys { path: PathBuf, source: SysError },
    #[error(
        "the CA key {} must be a file of the daemon's user and nobody else's to read, but has uid {uid} and mode {mode:04o}: if nobody can have read it, chown and chmod 0600 it; else remove it and ca.crt, and a new CA is made",
        path.display()
    )]
    KeyExposed { path: PathBuf, uid: u32, mode: u32 },
    #[error("{} has no key beside it: restore ca.key, or remove ca.crt and a new CA is made", path.display())]
    KeyMissing { path: PathBuf },
    #[error("cannot read {}: {cause}: restore it, or remove ca.key and ca.crt and a new CA is made", path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("ca.crt and ca.key in {} do not belong together: restore the right pair, or remove both and a new CA is made", dir.display())]
    Mismatch { dir: PathBuf },
    #[error("{} is not valid now (see `openssl x509 -dates`): if the clock is right, remove ca.key and ca.crt and a new CA is made", path.display())]
    NotValidNow { path: PathBuf },
    #[error("cannot issue a certificate for `{name}`: not a DNS name or IP address")]
    BadName { name: String },
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

impl CaError {
    pub(super) fn io(call: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            call,
            path: path.to_owned(),
            source,
        }
    }
}

impl Authority {
    /// Reads the CA below `dir` (`ca.key`, `ca.crt`), or makes one there (key 0600, owned by the caller; ECDSA P-256).
    pub fn open_or_create(dir: &Path) -> Result<Self, CaError> {
        let paths = Paths::below(dir);
        match (paths.read_key()?, paths.read_certificate()?) {
            (Some(key), Some(pem)) => Self::load(&paths, &key, pem),
            (None, Some(_)) => Err(CaError::KeyMissing {
                path: paths.certificate,
            }),
            // The key is written first: a crash came before its certificate was.
            (Some(key), None) => {
                let key = parse_key(&paths, &key)?;
                let pem = certify(&key)?;
                paths.write_certificate(&pem)?;
                Self::assemble(&paths, key, pem)
            }
            (None, None) => {
                ensure_folder(dir, 0o755).map_err(|source| CaError::Sys {
                    path: dir.to_owned(),
                    source,
                })?;
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                let pem = certify(&key)?;
                paths.write_key(&zeroize::Zeroizing::new(key.serialize_pem()))?;
                paths.write_certificate(&pem)?;
                Self::assemble(&paths, key, pem)
            }
        }
    }

    /// The CA certificate, PEM: what agents must trust.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// A leaf for a DNS name or an IP literal, valid from an hour ago for 7 days or as long as the CA is.
    pub fn issue(&self, name: &str) -> Result<Leaf, CaError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![san(name)?];
        params.distinguished_name = DistinguishedName::new();
        if name.len() <= COMMON_NAME_MAX {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let from = now().saturating_sub(HOUR);
        let ca_ends = Duration::from_secs(u64::try_from(self.info.not_after).unwrap_or_default());
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + from;
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + (from + LEAF_LIFETIME).min(ca_ends);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        Ok(Leaf {
            chain: vec![leaf.der().to_vec(), self.certificate.to_vec()],
            key: self.leaf_key.serialize_der(),
        })
    }

    fn load(paths: &Paths, key: &str, pem: String) -> Result<Self, CaError> {
        let authority = Self::assemble(paths, parse_key(paths, key)?, pem)?;
        let at = i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
        if !(authority.info.not_before..authority.info.not_after).contains(&at) {
            return Err(CaError::NotValidNow {
                path: paths.certificate.clone(),
            });
        }
        Ok(authority)
    }

    fn assemble(paths: &Paths, key: KeyPair, pem: String) -> Result<Self, CaError> {
        let unreadable = |cause: String| CaError::Unreadable {
            path: paths.certificate.clone(),
            cause,
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| unreadable(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|error| unreadable(error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Mismatch {
                dir: paths.dir.clone(),
            });
        }
        if !parsed.is_ca() {
            return Err(unreadable("not a CA certificate".into()));
        }
        let info = Info {
            subject: parsed.subject().to_string(),
            sha256: hex(&Sha256::digest(&certificate)),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            path: paths.certificate.clone(),
            pem: pem.clone(),
        };
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            leaf_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            certificate,
            pem,
            info,
        })
    }
}

fn parse_key(paths: &Paths, pem: &str) -> Result<KeyPair, CaError> {
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map_err(|error| {
        CaError::Unreadable {
            path: paths.key.clone(),
            cause: error.to_string(),
        }
    })
}

/// The self-signed certificate of a new CA, PEM. Its subject is unique, so that clients can trust an old and a new one
/// at a time.
fn certify(key: &KeyPair) -> Result<String, CaError> {
    let host = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let tag = hex(&Sha256::digest(key.subject_public_key_info())[..4]);
    let host: String = host
        .chars()
        .filter(char::is_ascii_graphic)
        .take(40)
        .collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "AgentGuard");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("AgentGuard {host} {tag}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now().saturating_sub(DAY);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now() + CA_LIFETIME;
    Ok(params.self_signed(key)?.pem())
}

fn san(name: &str) -> Result<SanType, CaError> {
    let bad = || CaError::BadName {
        name: name.to_owned(),
    };
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    DnsName::try_from(name).map_err(|_| bad())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| bad())?))
}

/// 122 random bits, positive and within the 20 octets of RFC 5280 section 4.1.2.2.
fn serial() -> SerialNumber {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
