//! The flags of every command that talks to a registry, and what the registry library is told for them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use registry::{Registries, Settings};

use crate::environment::{Environment, files};
use crate::error::{CommandError, While};

/// How registries are reached. OCI layouts take no notice of these, `--jobs` excepted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub struct Transport {
    /// Trust the certificate authorities in this PEM file too; may be repeated
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,

    /// Trust the *.crt in this folder, and show its *.cert with its *.key, as podman does
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,

    /// Show this certificate to the registry (PEM)
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,

    /// The private key of --client-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,

    /// Read credentials from this file instead of where podman and docker keep them
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,

    /// Use these credentials. Everyone on the machine can read them in the list of processes: prefer `syncpoint login`
    #[arg(long, value_name = "USER:PASSWORD", value_parser = credentials)]
    creds: Option<Credentials>,

    /// Talk plain http, without TLS: memory and passwords can be read on the way
    #[arg(long)]
    plain_http: bool,

    /// Send blobs in pieces of 4 MiB, for proxies that limit the size of a request
    #[arg(long)]
    chunked_upload: bool,

    /// Allow blobs to be sent to this other host; may be repeated
    #[arg(long, value_name = "HOST")]
    upload_host: Vec<String>,

    /// Move so many blobs at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,

    /// Try so many times again when a registry does not answer or is busy
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,

    /// Give up on a connection over which nothing came for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// User and password from the command line.
#[derive(Clone)]
struct Credentials(String, String);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:***", self.0)
    }
}

fn credentials(text: &str) -> Result<Credentials, &'static str> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok(Credentials(user.to_owned(), password.to_owned())),
        _ => Err("USER:PASSWORD is needed"),
    }
}

impl Transport {
    /// What the libraries are told.
    pub fn settings(&self, environment: &Environment) -> Result<Settings, CommandError> {
        let mut ca_files = self.ca.clone();
        let mut client_cert = self.client_cert.clone().zip(self.client_key.clone());
        if let Some(dir) = &self.cert_dir {
            let files = files(dir).doing(|| format!("the folder {} cannot be read", dir.display()))?;
            let with =
                |extension| files.iter().filter(move |file| file.extension().is_some_and(|found| found == extension));
            ca_files.extend(with("crt").cloned());
            let pair = with("cert")
                .map(|cert| (cert.clone(), cert.with_extension("key")))
                .find(|(_, key)| files.contains(key));
            client_cert = client_cert.or(pair);
        }
        let registries = environment.registries_files().doing(|| "registries.conf.d cannot be read".to_owned())?;
        Ok(Settings {
            registries: Registries::read(&registries)?,
            plain_http: self.plain_http,
            ca_files,
            certs_dirs: environment.certs_dirs(),
            client_cert,
            auth_files: self.authfile.clone().map_or_else(|| environment.auth_files(), |file| vec![file]),
            credentials: self.creds.clone().map(|Credentials(user, password)| (user, password)),
            jobs: self.jobs(),
            retries: self.retries,
            timeout: Duration::from_secs(self.timeout),
            chunked_upload: self.chunked_upload,
            upload_hosts: self.upload_host.clone(),
            user_agent: concat!("syncpoint/", env!("CARGO_PKG_VERSION")).to_owned(),
        })
    }

    /// How many blobs move at the same time.
    pub fn jobs(&self) -> usize {
        self.jobs.into()
    }

    /// The file with credentials that was named.
    pub fn authfile(&self) -> Option<&PathBuf> {
        self.authfile.as_ref()
    }
}
