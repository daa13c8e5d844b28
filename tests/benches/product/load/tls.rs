//! Dials the target: TCP without Nagle, TLS with verification, ALPN for one protocol.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Protocol, Target};

pub(super) struct Dialer {
    address: SocketAddr,
    authority: String,
    name: ServerName<'static>,
    http1: TlsConnector,
    http1_resuming: TlsConnector,
    http2: TlsConnector,
}

impl Dialer {
    pub(super) fn new(target: &Target) -> anyhow::Result<Self> {
        let file = std::env::var("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&file).with_context(|| file.clone())? {
            // System bundles hold the odd root that webpki does not take.
            let _ = roots.add(certificate?);
        }
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = |alpn: &[u8], resume: bool| {
            let mut config = config.clone();
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = if resume {
                Resumption::in_memory_sessions(256)
            } else {
                Resumption::disabled()
            };
            TlsConnector::from(Arc::new(config))
        };
        let name = target
            .authority
            .rsplit_once(':')
            .map_or(target.authority.as_str(), |(name, _)| name);
        Ok(Self {
            address: target.address,
            authority: target.authority.clone(),
            name: ServerName::try_from(name.to_owned())?,
            http1: connector(b"http/1.1", false),
            http1_resuming: connector(b"http/1.1", true),
            http2: connector(b"h2", false),
        })
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) async fn dial(
        &self,
        protocol: Protocol,
        resume: bool,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let connector = match (protocol, resume) {
            (Protocol::Http1, false) => &self.http1,
            (Protocol::Http1, true) => &self.http1_resuming,
            (Protocol::Http2, _) => &self.http2,
        };
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        connector
            .connect(self.name.clone(), stream)
            .await
            .with_context(|| format!("TLS with {}", self.authority))
    }
}
