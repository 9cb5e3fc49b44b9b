//! `syncpoint key ca` and `syncpoint key issue`: the certificates by which hosts know each other.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};
use coordinator::MEMBER_URI;
use image_format::MemberId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::{new_files, write_pair};
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::keys;
use crate::output::{Format, Report};

/// Clocks of hosts differ.
const SKEW: Duration = Duration::from_secs(3600);

/// The longest common name that X.509 allows.
const LONGEST_COMMON_NAME: usize = 64;

/// Make an authority for certificates: PREFIX.key, to be kept secret, and PREFIX.crt, for every host
///
/// The rendezvous of a checkpoint on several hosts hears only members with a certificate of its authority, and members trust
/// only a rendezvous with one. Certificates are made with `syncpoint key issue`. Files that are there are never replaced.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {private, certificate, names, until}; the first two are file names.")]
pub struct CaArgs {
    /// What the two files are called before .key and .crt
    #[arg(long, value_name = "PREFIX", default_value = "syncpoint-ca")]
    output_prefix: String,

    /// What the authority is called
    #[arg(long, value_name = "NAME", default_value = "syncpoint")]
    name: String,

    /// For how many days it is good
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    #[command(flatten)]
    format: Format,
}

/// Make a certificate with its key for a member or for the coordinator: PREFIX.key and PREFIX.crt
///
/// A member's certificate names it by the URI syncpoint:member:ID; that of the coordinator is for the names and addresses by
/// which members reach it. Each is good for its own end of a connection only. Both are good for no longer than their
/// authority. Files that are there are never replaced.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("whom").required(true)),
    after_long_help = "With --json: {private, certificate, names, until}; the first two are file names."
)]
pub struct IssueArgs {
    /// The authority: what its two files are called before .key and .crt
    #[arg(long, value_name = "PREFIX", default_value = "syncpoint-ca")]
    ca: String,

    /// For the member with this id
    #[arg(long, value_name = "ID", group = "whom")]
    member: Option<MemberId>,

    /// For the coordinator, by these names and addresses
    #[arg(long, value_name = "HOST[,IP]", group = "whom", value_delimiter = ',')]
    coordinator: Vec<String>,

    /// What the two files are called before .key and .crt
    #[arg(long, value_name = "PREFIX")]
    output_prefix: String,

    /// For how many days it is good
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    #[command(flatten)]
    format: Format,
}

/// A key and a certificate that were made.
#[derive(Debug, Serialize)]
struct Issued {
    private: PathBuf,
    certificate: PathBuf,
    names: Vec<String>,
    until: String,
}

impl Report for Issued {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "private key  {}   keep it secret", self.private.display())?;
        writeln!(out, "certificate  {}   {}, until {}", self.certificate.display(), self.names.join(", "), self.until)
    }
}

/// Makes an authority.
pub fn ca(args: &CaArgs, context: &Context) -> Result<(), CommandError> {
    let [private, certificate] = new_files(&args.output_prefix, ["key", "crt"])?;
    if args.name.is_empty() || args.name.chars().count() > LONGEST_COMMON_NAME {
        return Err(CommandError::usage(format!("the name of an authority has 1 to {LONGEST_COMMON_NAME} characters")));
    }
    let mut params = good_for(args.days, None);
    params.distinguished_name.push(DnType::CommonName, args.name.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = new_key()?;
    let made = params.self_signed(&key).doing(|| "the authority cannot be made".to_owned())?;
    write_pair((&private, &key.serialize_pem()), (&certificate, &made.pem()))?;
    let until = params.not_after.date().to_string();
    context.output.print(args.format, &Issued { private, certificate, names: vec![args.name.clone()], until })
}

/// Makes a certificate of an authority.
pub fn issue(args: &IssueArgs, context: &Context) -> Result<(), CommandError> {
    let [private, certificate] = new_files(&args.output_prefix, ["key", "crt"])?;
    let authority = Authority::load(&args.ca, context)?;
    let mut params = good_for(args.days, Some(authority.until));
    let names = match &args.member {
        Some(member) => {
            let uri = format!("{MEMBER_URI}{member}");
            // A longer one is told by the URI alone.
            if member.as_str().len() <= LONGEST_COMMON_NAME {
                params.distinguished_name.push(DnType::CommonName, member.as_str());
            }
            let san = uri.try_into().doing(|| format!("{member} cannot stand in a certificate"))?;
            params.subject_alt_names = vec![SanType::URI(san)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            vec![member.to_string()]
        }
        None => {
            params.distinguished_name.push(DnType::CommonName, "syncpoint coordinator");
            params.subject_alt_names = args.coordinator.iter().map(|host| host_name(host)).collect::<Result<_, _>>()?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            args.coordinator.clone()
        }
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = new_key()?;
    let made = params.signed_by(&key, &authority.issuer).doing(|| "the certificate cannot be made".to_owned())?;
    write_pair((&private, &key.serialize_pem()), (&certificate, &made.pem()))?;
    let until = params.not_after.date().to_string();
    context.output.print(args.format, &Issued { private, certificate, names, until })
}

/// An authority's key and certificate, as read.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    until: SystemTime,
}

impl Authority {
    fn load(prefix: &str, context: &Context) -> Result<Self, CommandError> {
        let read = |ending: &str| {
            let file = PathBuf::from(format!("{prefix}.{ending}"));
            let text = fs::read_to_string(&file).doing(|| format!("{} cannot be read", file.display()));
            text.map(|text| (file, text))
        };
        let (key_file, key) = read("key")?;
        keys::warn_if_open(&key_file, context);
        let (file, certificate) = read("crt")?;
        let bad = |file: &Path| format!("{} cannot be used", file.display());
        let key = KeyPair::from_pem(&key).doing(|| bad(&key_file))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).doing(|| bad(&file))?;
        let certificate = Certificate::from_der(&certificate).doing(|| bad(&file))?;
        let certificate = certificate.tbs_certificate();
        let spki = certificate.subject_public_key_info().to_der().doing(|| bad(&file))?;
        if spki != key.subject_public_key_info() {
            return Err(CommandError::usage(format!("{} is not the key of {}", key_file.display(), file.display())));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name_of(certificate).doing(|| bad(&file))?;
        // What is issued names its authority's key as the authority itself does; without that name, by one of rcgen's own making.
        if let Some((_, SubjectKeyIdentifier(id))) = certificate.get_extension().doing(|| bad(&file))? {
            params.key_identifier_method = KeyIdMethod::PreSpecified(id.into_bytes().into());
        }
        let until = SystemTime::UNIX_EPOCH + certificate.validity().not_after.to_unix_duration();
        if until <= SystemTime::now() {
            return Err(CommandError::usage(format!("the authority {} is no longer good", file.display()))
                .hint("make a new one with `syncpoint key ca`"));
        }
        Ok(Self { issuer: Issuer::new(params, key), until })
    }
}

/// An authority whose name is not one of texts.
#[derive(Debug, thiserror::Error)]
#[error("its name holds something that is no text")]
struct OddName;

/// The subject, in the same kinds of text: what is issued must name it byte by byte.
fn name_of(certificate: &x509_cert::TbsCertificate) -> Result<DistinguishedName, OddName> {
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter() {
        let value = &attribute.value;
        let text = match value.tag() {
            Tag::Utf8String => {
                value.decode_as::<Utf8StringRef<'_>>().map(|text| DnValue::Utf8String(text.as_str().into()))
            }
            Tag::PrintableString => value.decode_as::<PrintableStringRef<'_>>().and_then(|text| {
                text.as_str().try_into().map(DnValue::PrintableString).map_err(|_| Tag::Null.value_error().into())
            }),
            Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().and_then(|text| {
                text.as_str().try_into().map(DnValue::Ia5String).map_err(|_| Tag::Null.value_error().into())
            }),
            _ => return Err(OddName),
        };
        let arcs: Vec<u64> = attribute.oid.arcs().map(u64::from).collect();
        name.push(DnType::from_oid(&arcs), text.map_err(|_| OddName)?);
    }
    Ok(name)
}

fn good_for(days: u32, at_most: Option<SystemTime>) -> CertificateParams {
    let now = SystemTime::now();
    let until = now + Duration::from_secs(u64::from(days) * 86_400);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - SKEW).into();
    params.not_after = at_most.map_or(until, |most| until.min(most)).into();
    params
}

fn new_key() -> Result<KeyPair, CommandError> {
    KeyPair::generate().doing(|| "no key can be made".to_owned())
}

/// A host's name or address, as it stands in a certificate.
fn host_name(host: &str) -> Result<SanType, CommandError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        inside && !label.is_empty() && label.len() <= 63
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err(CommandError::usage(format!("{host:?} is neither a host's name nor an address")));
    }
    Ok(SanType::DnsName(host.try_into().doing(|| format!("{host} cannot stand in a certificate"))?))
}
