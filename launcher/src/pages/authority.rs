//! The certificates of one session: an authority in memory, and files that only root can read and that are gone with the session.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::MemberId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, RootCertStore, ServerConfig, version};

use super::{Admit, PagesError};

/// The authority of one session.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, for CRIU.
    file: PathBuf,
    config: Arc<ServerConfig>,
}

impl Authority {
    /// Makes one. `folder` is for root alone.
    pub fn make(folder: &Path) -> Result<Self, PagesError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "syncpoint pages");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let own = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);

        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, Ipv4Addr::LOCALHOST.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let server = params.signed_by(&key, &issuer)?;

        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone())?;
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // GnuTLS would take the one of 256 bits, and tasks stand frozen meanwhile.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der().clone()], key)?;
        // CRIU takes a ticket for a page server that does not answer (seen with GnuTLS and CRIU 4.2.1).
        config.send_tls13_tickets = 0;
        config.ignore_client_order = true;
        let file = folder.join("pages-ca.pem");
        write(&file, &own.pem())?;
        Ok(Self { issuer, file, config: Arc::new(config) })
    }

    /// Makes a certificate for the member. Gives who is let in by it, and what its CRIU must be told.
    pub fn issue(&self, member: &MemberId, folder: &Path) -> Result<(Admit, String), PagesError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // A common name is short, and this one is for people: who it is is told by the whole certificate.
        params.distinguished_name.push(DnType::CommonName, member.as_str().chars().take(64).collect::<String>());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = [folder.join(format!("pages-{member}.crt")), folder.join(format!("pages-{member}.key"))];
        write(&files[0], &certificate.pem())?;
        write(&files[1], &key.serialize_pem())?;
        let [crt, key, ca] = [&files[0], &files[1], &self.file].map(|file| file.display());
        let lines = format!("tls\ntls-cacert={ca}\ntls-cert={crt}\ntls-key={key}\n");
        Ok((Admit::Certificate(certificate.der().clone(), Arc::clone(&self.config)), lines))
    }
}

fn write(path: &Path, text: &str) -> Result<(), PagesError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| PagesError::Io { what: path.display().to_string(), source })
}
