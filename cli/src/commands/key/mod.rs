//! `syncpoint key`.

mod authority;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use registry::sign::{Password, PrivateKey};
use serde::Serialize;

use crate::context::Context;
use crate::environment::Secret;
use crate::error::{CommandError, While};
use crate::keys::PASS_PHRASE;
use crate::output::{Format, Report};
use crate::terminal::blocking;

/// Make keys for signing, and certificates for hosts that checkpoint together
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    Generate(GenerateArgs),
    Ca(authority::CaArgs),
    Issue(authority::IssueArgs),
}

/// Make a key pair: PREFIX.key, sealed with a pass phrase, and PREFIX.pub
///
/// The files are cosign's: what they sign verifies with `cosign verify --key`, and keys made by `cosign generate-key-pair`
/// work here. The pass phrase is that of $COSIGN_PASSWORD, or asked for. Files that are there are never replaced.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {private, public, fingerprint}; the first two are file names.")]
pub struct GenerateArgs {
    /// What the two files are called before .key and .pub
    #[arg(long, value_name = "PREFIX", default_value = "cosign", visible_alias = "output-key-prefix")]
    output_prefix: String,

    #[command(flatten)]
    format: Format,
}

/// A key pair that was made.
#[derive(Debug, Serialize)]
struct Generated {
    private: PathBuf,
    public: PathBuf,
    fingerprint: String,
}

impl Report for Generated {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "private key  {}   keep it secret", self.private.display())?;
        writeln!(out, "public key   {}   {}", self.public.display(), self.fingerprint)
    }
}

/// Does what was asked about keys.
pub async fn run(args: KeyArgs, context: &Context) -> Result<(), CommandError> {
    match args.command {
        KeyCommand::Generate(args) => generate(args, context).await,
        KeyCommand::Ca(args) => authority::ca(&args, context),
        KeyCommand::Issue(args) => authority::issue(&args, context),
    }
}

async fn generate(args: GenerateArgs, context: &Context) -> Result<(), CommandError> {
    let [private, public] = new_files(&args.output_prefix, ["key", "pub"])?;
    let password = match context.environment.password() {
        Some(Secret(password)) => password,
        None => PASS_PHRASE.ask_new_secret(&context.cancel).await?,
    };
    // Sealing a key is slow on purpose.
    let (key, sealed) = blocking(move || {
        let key = PrivateKey::generate()?;
        let sealed = key.to_encrypted_pem(&Password::new(password))?;
        Ok((key.public_key(), sealed))
    })
    .await?;
    write_pair((&private, &sealed), (&public, &key.to_pem()))?;
    let generated = Generated { private, public, fingerprint: key.fingerprint().to_string() };
    context.output.print(args.format, &generated)
}

/// The names of two files that are not there yet.
fn new_files(prefix: &str, endings: [&str; 2]) -> Result<[PathBuf; 2], CommandError> {
    let files = endings.map(|ending| PathBuf::from(format!("{prefix}.{ending}")));
    match files.iter().find(|file| file.symlink_metadata().is_ok()) {
        Some(there) => Err(CommandError::usage(format!("{} is there already", there.display()))
            .hint("name other files with --output-prefix")),
        None => Ok(files),
    }
}

/// Writes both or neither.
fn write_pair(private: (&Path, &str), public: (&Path, &str)) -> Result<(), CommandError> {
    write_new(private.0, 0o600, private.1)?;
    write_new(public.0, 0o644, public.1).inspect_err(|_| {
        // Half a pair is of no use; the error that is told is the first one.
        let _ = fs::remove_file(private.0);
    })
}

fn write_new(file: &Path, mode: u32, text: &str) -> Result<(), CommandError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let written = opened.and_then(|mut opened| {
        opened.write_all(text.as_bytes())?;
        opened.sync_all()
    });
    written.doing(|| format!("{} cannot be written", file.display()))
}
