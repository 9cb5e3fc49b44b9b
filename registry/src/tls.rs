//! Whom to trust and how to prove who one is, as podman and docker users set it up.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::Settings;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read as PEM.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A folder of certificates that cannot be read.
    #[error("failed to read {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without a certificate in it.
    #[error("{} holds no PEM certificate", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Something in PEM that is no usable authority.
    #[error("{} holds a certificate that cannot be an authority", path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A client certificate and a key that do not work together.
    #[error("client certificate {} and key {} cannot be used", certificate.display(), key.display())]
    Client {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A `.cert` without its `.key`, or the other way round.
    #[error("{} has no {} beside it", there.display(), missing.display())]
    Half {
        /// What is there.
        there: PathBuf,
        /// What belongs to it.
        missing: PathBuf,
    },
    /// The system has no authorities, and none were given.
    #[error("no certificate authorities: the system has none, and none were given")]
    NoRoots,
    /// The authorities cannot be used together.
    #[error("failed to set up the check of certificates")]
    Verifier(#[source] VerifierBuilderError),
    /// The cryptography does not offer the protocol versions wanted.
    #[error("failed to set up TLS")]
    Setup(#[source] rustls::Error),
}

/// What connections are made with.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// For the registry itself: shows the client certificate when asked.
    pub(crate) inside: ClientConfig,
    /// For hosts that the registry refers to: trusts the same authorities, shows nothing.
    pub(crate) outside: ClientConfig,
}

impl Tls {
    /// Reads all files that concern `host` (`HOST` or `HOST:PORT`). With `insecure` any certificate
    /// will do, since the administrator says so.
    pub(crate) fn load(host: &str, settings: &Settings, insecure: bool) -> Result<Self, TlsError> {
        let found = Found::read(host, settings)?;
        let mut roots = system_roots();
        let mut given = Vec::new();
        for path in &found.authorities {
            for certificate in read_certificates(path)? {
                let added = roots.add(certificate.clone());
                added.map_err(|source| TlsError::Authority { path: path.clone(), source })?;
                given.push(certificate);
            }
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = Arc::new(Verifier { usual: usual.build().map_err(TlsError::Verifier)?, given, insecure });
        let builder = || -> Result<_, TlsError> {
            let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
            let builder = builder.map_err(TlsError::Setup)?.dangerous();
            Ok(builder.with_custom_certificate_verifier(verifier.clone()))
        };
        let outside = builder()?.with_no_client_auth();
        let inside = match found.client {
            None => outside.clone(),
            Some((certificate, key)) => {
                let chain = read_certificates(&certificate)?;
                let secret = PrivateKeyDer::from_pem_file(&key)
                    .map_err(|source| TlsError::Read { path: key.clone(), source })?;
                builder()?.with_client_auth_cert(chain, secret).map_err(|source| TlsError::Client {
                    certificate,
                    key,
                    source,
                })?
            }
        };
        Ok(Self { inside, outside })
    }
}

/// The files that concern one host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    authorities: Vec<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl Found {
    fn read(host: &str, settings: &Settings) -> Result<Self, TlsError> {
        let mut found = Self { authorities: settings.ca_files.clone(), client: settings.client_cert.clone() };
        for dir in &settings.certs_dirs {
            found.add_folder(&dir.join(host))?;
        }
        Ok(found)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<(), TlsError> {
        let failed = |source| TlsError::Folder { path: folder.to_owned(), source };
        let entries = match folder.read_dir() {
            Ok(entries) => entries,
            // As podman: a folder that is kept for root does not concern other users.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut files =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        files.sort();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.authorities.push(file),
                Some("cert") => {
                    let key = file.with_extension("key");
                    if !key.exists() {
                        return Err(TlsError::Half { there: file, missing: key });
                    }
                    self.client.get_or_insert((file, key));
                }
                Some("key") if !file.with_extension("cert").exists() => {
                    let missing = file.with_extension("cert");
                    return Err(TlsError::Half { there: file, missing });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The system's authorities. Single broken ones in its bundle are its own affair; none at all is noticed later.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The usual rules, and one more that podman and docker have, too: a certificate that is itself among those given needs
/// no issuer. It is how many small registries are set up, with one self-signed certificate that says it is an authority,
/// which the usual rules do not take for a server's. Its names, its dates and the proof that the server has its key are
/// checked as ever.
#[derive(Debug)]
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
    /// Whatever the certificate says is good.
    insecure: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.usual.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(_) if self.insecure => Ok(ServerCertVerified::assertion()),
            Err(_) if self.given.contains(certificate) => verify_given(certificate, name, now),
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn verify_given(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    let now = Duration::from_secs(now.as_secs());
    if now < validity.not_before.to_unix_duration() {
        Err(CertificateError::NotValidYet.into())
    } else if now > validity.not_after.to_unix_duration() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(ServerCertVerified::assertion())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings { certs_dirs: vec![dir.to_owned()], ..Settings::default() }
    }

    #[test]
    fn a_host_has_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("localhost:5000");
        fs::create_dir(&host).unwrap();
        for name in ["b.crt", "a.crt", "me.cert", "me.key", "README"] {
            fs::write(host.join(name), "").unwrap();
        }
        let found = Found::read("localhost:5000", &settings(dir.path())).unwrap();
        assert_eq!(found.authorities, [host.join("a.crt"), host.join("b.crt")]);
        assert_eq!(found.client, Some((host.join("me.cert"), host.join("me.key"))));
        assert_eq!(Found::read("localhost:5001", &settings(dir.path())).unwrap(), Found::default());
    }

    #[test]
    fn a_client_certificate_given_by_hand_wins() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("localhost")).unwrap();
        fs::write(dir.path().join("localhost/me.cert"), "").unwrap();
        fs::write(dir.path().join("localhost/me.key"), "").unwrap();
        let client_cert = Some(("mine.pem".into(), "mine.key".into()));
        let found = Found::read("localhost", &Settings { client_cert: client_cert.clone(), ..settings(dir.path()) });
        assert_eq!(found.unwrap().client, client_cert);
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for path in [file("empty.pem", ""), file("broken.pem", broken), dir.path().join("missing.pem")] {
            let settings = Settings { ca_files: vec![path.clone()], ..Settings::default() };
            let error = Tls::load("localhost", &settings, false).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_certificate_without_its_key_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("localhost")).unwrap();
        fs::write(dir.path().join("localhost/me.cert"), "").unwrap();
        let error = Found::read("localhost", &settings(dir.path())).unwrap_err();
        assert!(error.to_string().contains("me.key"), "{error}");
    }
}
