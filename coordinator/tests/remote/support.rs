//! Authorities and certificates for tests, made on the spot.

use std::path::{Path, PathBuf};

use coordinator::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

/// An authority and the folder of what it issued.
pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        // Every one has a name of its own: its folder's.
        params.distinguished_name.push(DnType::CommonName, folder.path().to_string_lossy().as_ref());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let ca = folder.path().join("ca.crt");
        std::fs::write(&ca, issuer.pem()).expect("written");
        Self { folder, issuer, ca }
    }

    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// A rendezvous' files, for these hosts.
    pub fn coordinator(&self, hosts: &[&str]) -> TlsFiles {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("coordinator", &params)
    }

    /// A member's files.
    pub fn member(&self, id: &str) -> TlsFiles {
        self.issue(id, &Self::member_params(id))
    }

    /// Those of a member whose time is over.
    pub fn expired(&self, id: &str) -> TlsFiles {
        let mut params = Self::member_params(id);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        self.issue(&format!("{id}-expired"), &params)
    }

    /// Those of a member that only the subject's common name tells of, as other authorities make them.
    pub fn common_name(&self, name: &str) -> TlsFiles {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        self.issue(&format!("cn-{}", name.len()), &params)
    }

    fn member_params(id: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        let uri = format!("{}{id}", coordinator::MEMBER_URI);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn issue(&self, name: &str, params: &CertificateParams) -> TlsFiles {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |ending: &str, text: String| {
            let path = self.folder.path().join(format!("{name}.{ending}"));
            std::fs::write(&path, text).expect("written");
            path
        };
        TlsFiles {
            ca: self.ca.clone(),
            certificate: file("crt", certificate.pem()),
            key: file("key", key.serialize_pem()),
        }
    }
}
