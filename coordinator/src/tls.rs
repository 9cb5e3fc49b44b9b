//! Mutual TLS between hosts: who is who is what the certificates say.
//!
//! A member's certificate names it by the URI `syncpoint:member:<id>` among its alternative names, a form that takes
//! every member id. One without such a URI, of an authority of the user's own, names it by its subject's common name. The
//! rendezvous takes client certificates of one authority only; the hook takes a server certificate of the same authority
//! for the host that it connects to. TLS 1.3 alone: both ends are this project's.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::MemberId;
use rustls::client::WebPkiServerVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What stands before a member's id in the URI that names it in its certificate.
pub const MEMBER_URI: &str = "syncpoint:member:";

/// The PEM files by which one end proves who it is and knows whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// The authority of the other end's certificates.
    pub ca: PathBuf,
    /// The own certificate, with what it needs of its chain after it.
    pub certificate: PathBuf,
    /// The own private key.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read as PEM.
    #[error("cannot read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file without a certificate in it.
    #[error("{path:?} holds no PEM certificate")]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A certificate that is none of an authority.
    #[error("{path:?} holds a certificate that cannot be an authority")]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The check of the other end cannot be set up.
    #[error("the authority in {path:?} cannot be used")]
    Verifier {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
    /// A certificate and a key that do not work together.
    #[error("certificate {certificate:?} and key {key:?} cannot be used")]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The cryptography does not offer TLS 1.3.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

impl TlsFiles {
    /// A member's, where `{id}` in the paths stands for the member.
    #[must_use]
    pub fn of(&self, member: &MemberId) -> Self {
        // A path that is no text has no place for an id either.
        let file = |path: &PathBuf| {
            path.to_str().map_or_else(|| path.clone(), |text| text.replace("{id}", member.as_str()).into())
        };
        Self { ca: file(&self.ca), certificate: file(&self.certificate), key: file(&self.key) }
    }

    /// The rendezvous' side: only who shows a certificate of the authority is heard at all.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .build()
            .map_err(|source| TlsError::Verifier { path: self.ca.clone(), source })?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier);
        let (chain, key) = self.pair()?;
        let mut config = builder.with_single_cert(chain, key).map_err(|source| self.bad_pair(source))?;
        // Every hook is a process of its own: nobody comes back with a ticket.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The hook's side: only who shows a certificate of the authority for the host's name is told anything.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .build()
            .map_err(|source| TlsError::Verifier { path: self.ca.clone(), source })?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError::Setup)?
            .with_webpki_verifier(verifier);
        let (chain, key) = self.pair()?;
        let mut config = builder.with_client_auth_cert(chain, key).map_err(|source| self.bad_pair(source))?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|source| TlsError::Authority { path: self.ca.clone(), source })?;
        }
        Ok(roots)
    }

    fn pair(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| TlsError::Read { path: self.key.clone(), source })?;
        Ok((certificates(&self.certificate)?, key))
    }

    fn bad_pair(&self, source: rustls::Error) -> TlsError {
        TlsError::Pair { certificate: self.certificate.clone(), key: self.key.clone(), source }
    }
}

/// Whether others than its owner may read a file, which a private key is not to be; also those that are not there are not.
#[must_use]
pub fn is_open_to_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| facts.permissions().mode() & 0o077 != 0)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

/// The member that a certificate names, if it names exactly one. That the certificate is genuine was proved before.
#[must_use]
pub fn member_of(certificate: &CertificateDer<'_>) -> Option<MemberId> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let certificate = certificate.tbs_certificate();
    let names = match certificate.get_extension::<SubjectAltName>() {
        Ok(names) => names.map(|(_, names)| names.0).unwrap_or_default(),
        Err(_) => return None,
    };
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => uri.as_str().strip_prefix(MEMBER_URI),
        _ => None,
    });
    let uris: Vec<&str> = uris.collect();
    match uris.as_slice() {
        [] => {
            let names = certificate.subject().iter().filter(|name| name.oid == COMMON_NAME);
            if names.count() != 1 {
                return None;
            }
            certificate.subject().common_name().ok()??.value().parse().ok()
        }
        [only] => only.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn named(uris: &[&str], common_name: Option<&str>) -> Option<String> {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        let made = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        member_of(made.der()).map(|member| member.to_string())
    }

    #[test]
    fn a_certificate_names_one_member_or_none() {
        let named = |uris: &[&str], name| named(uris, name);
        assert_eq!(named(&["syncpoint:member:a_b.C-9"], None), Some("a_b.C-9".to_owned()));
        assert_eq!(named(&["syncpoint:member:a"], Some("b")), Some("a".to_owned()), "the URI comes first");
        assert_eq!(named(&["https://example.org/b"], Some("b")), Some("b".to_owned()));
        assert_eq!(named(&[], Some("receive-0")), Some("receive-0".to_owned()));
        assert_eq!(named(&["syncpoint:member:a", "syncpoint:member:b"], Some("a")), None, "which of them?");
        assert_eq!(named(&["syncpoint:member:../x"], Some("x")), None, "no way around a bad one");
        assert_eq!(named(&[], Some("not an id")), None);
        assert_eq!(named(&[], None), None);
        assert_eq!(member_of(&CertificateDer::from(vec![0x30, 0x80, 1])), None);
    }
}
