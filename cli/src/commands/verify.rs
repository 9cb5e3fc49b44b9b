//! `syncpoint verify`.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use futures_util::future::try_join_all;
use image_format::{
    Artifact, ArtifactError, CheckpointImage, Compression, Descriptor, Digest, GlobalError, ImageError, UnpackOptions,
};
use registry::sign::{Depth, Finding, GoodSignature, Severity, VerifyReport, errors};
use registry::{Bridge, Reference, Store};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::context::Context;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::expected::Expected;
use crate::keys;
use crate::output::{Format, Report, count, size};
use crate::progress::Watched;
use crate::store;
use crate::terminal::blocking;
use crate::transport::Transport;

/// Check the signatures of an image, and every manifest and byte below it
///
/// Of a checkpoint it is also checked that its manifests can be read as such: members, dependencies, versions; and, with every byte, all
/// that a restore checks: that each page of memory is what the table of pages says.
/// Accepts signatures of syncpoint and of cosign, in both of cosign's forms, by any of the keys given; no network is needed
/// beyond the store. Everything that is wrong is said, not only the first thing. What a valid signature does not say is checked
/// by whoever restores.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, good, findings: [{severity, message, hint}], \
signatures: [{manifest, form, key, identity}], manifests, blobs, bytes}. severity is note, warning or error; good means that there \
is no error. The exit code is 5 if it is not good.")]
pub struct VerifyArgs {
    /// A public key whose signatures count; may be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "insecure_no_signature")]
    key: Vec<PathBuf>,

    /// Ask for no signature; only whether everything is there and undamaged
    #[arg(long, conflicts_with = "key")]
    insecure_no_signature: bool,

    /// How deep to look: at the signatures only, at what there is, or at every byte
    #[arg(long, value_name = "HOW", default_value = "blobs")]
    depth: DepthWord,

    /// What to verify
    #[arg(value_name = "REF")]
    reference: Reference,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,

    #[command(flatten)]
    expected: Expected,
}

/// How deep to look, on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DepthWord {
    /// The signatures of the image, which vouch for everything below it
    Signature,
    /// Also that every manifest and blob is there with its size, and the signatures of the members
    Manifests,
    /// Also every byte of every blob, and all that a restore checks
    Blobs,
}

impl From<DepthWord> for Depth {
    fn from(word: DepthWord) -> Self {
        match word {
            DepthWord::Signature => Self::Signature,
            DepthWord::Manifests => Self::Manifests,
            DepthWord::Blobs => Self::Blobs,
        }
    }
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Verified {
    reference: String,
    digest: Digest,
    good: bool,
    findings: Vec<Found>,
    signatures: Vec<Good>,
    manifests: usize,
    blobs: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Found {
    severity: &'static str,
    message: String,
    hint: &'static str,
}

#[derive(Debug, Serialize)]
struct Good {
    manifest: Digest,
    form: String,
    key: Digest,
    identity: Option<String>,
}

impl Report for Verified {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for Good { manifest, form, key, .. } in &self.signatures {
            writeln!(out, "signed   {} by {} ({form})", manifest.short(), key.short())?;
        }
        let (manifests, blobs) = (count(self.manifests as u64, "manifest"), count(self.blobs as u64, "blob"));
        writeln!(out, "checked  {manifests}, {blobs}, {}", size(self.bytes))?;
        match self.good {
            true => writeln!(out, "good     {}", self.reference),
            false => writeln!(out, "bad      {}", self.reference),
        }
    }

    fn brief(&self) -> Option<String> {
        self.good.then(|| self.reference.clone())
    }
}

/// Verifies.
pub async fn run(args: VerifyArgs, context: &Context) -> Result<(), CommandError> {
    let keys = keys::public(args.key.iter().map(PathBuf::as_path))?;
    let (store, root) = store::find(&args.reference, &args.transport, context).await?;
    let mut seen = registry::sign::verify(&*store, &root, &keys, args.depth.into(), &*context.reporter).await?;
    if args.insecure_no_signature {
        context.reporter.warn("signatures are not asked for: anybody may have made this image");
        seen.findings.retain(about_content);
    }
    for finding in &seen.findings {
        match finding.severity() {
            Severity::Note => context.reporter.detail(&format!("note: {finding}")),
            Severity::Warning => context.reporter.warn(&format!("{finding}; {}", finding.hint())),
            Severity::Error => {}
        }
    }
    let mut misread = match args.depth {
        DepthWord::Signature => Vec::new(),
        DepthWord::Manifests | DepthWord::Blobs => misread(&*store, &root).await,
    };
    if let Ok(artifact) = store::artifact(&*store, &root).await {
        let own: Vec<_> = seen.signatures.iter().filter(|good| good.manifest == root.digest).cloned().collect();
        misread.extend(args.expected.against(&args.reference, &*store, &artifact, &own));
        if let (Artifact::Member(image), false) = (&artifact, args.expected.member_alone)
            && let Some(member) = image.member()
        {
            context.reporter.warn(&format!("it is the image of the member {member} alone, not a whole application"));
        }
        if matches!(args.depth, DepthWord::Blobs) && seen.findings.iter().all(|finding| !about_content(finding)) {
            misread.extend(unfit(&store, artifact, context).await?);
        }
    }
    let verified = verified(store::pinned(&args.reference, root.digest).to_string(), &root, &seen, &misread);
    context.output.print(args.format, &verified)?;
    if verified.good { Ok(()) } else { Err(refused(&args.reference, &seen, misread)) }
}

/// What no reader takes of the manifests of a checkpoint, each with why. Images that are none of a checkpoint can be verified
/// too; nothing is said about them, nor about manifests that are not there or damaged, which was found before.
async fn misread(store: &dyn Store, root: &Descriptor) -> Vec<String> {
    let Ok(document) = store.manifest(&root.digest).await else { return Vec::new() };
    let say = |digest: &Digest, error: ArtifactError| {
        let why = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("the manifest {digest} {error}{why}")
    };
    let global = match Artifact::parse(&document) {
        Ok(Artifact::Member(_)) => return Vec::new(),
        Ok(Artifact::Global(global)) => global,
        Err(
            ArtifactError::Image(
                ImageError::NotACheckpoint | ImageError::ConfigType { .. } | ImageError::Docker { .. },
            )
            | ArtifactError::Global(GlobalError::ArtifactType { .. })
            | ArtifactError::MediaType { .. },
        ) => return Vec::new(),
        Err(error) => return vec![say(&root.digest, error)],
    };
    let mut misread = Vec::new();
    for entry in global.members() {
        let digest = &entry.manifest.digest;
        let Ok(document) = store.manifest(digest).await else { continue };
        if let Err(error) = CheckpointImage::parse(&document) {
            misread.push(say(digest, error.into()));
        }
    }
    misread
}

/// What keeps images from being restored though each of their blobs is what its digest says: above all pages of memory that are not
/// what the image's table of pages says.
async fn unfit(store: &Arc<dyn Store>, artifact: Artifact, context: &Context) -> Result<Vec<String>, CommandError> {
    let images = match artifact {
        Artifact::Member(image) => vec![image],
        Artifact::Global(global) => {
            let members = global.members().iter().map(|entry| store.manifest(&entry.manifest.digest));
            let documents = try_join_all(members).await?;
            documents.iter().filter_map(|document| CheckpointImage::parse(document).ok()).collect()
        }
    };
    let mut unfit = Vec::new();
    for image in images {
        let name = image.member().map_or_else(|| image.manifest().digest.to_string(), |id| format!("member {id}"));
        let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(store)), context);
        let unpacked = blocking(move || {
            let options = UnpackOptions::default();
            Ok(image_format::unpack_archive(&image, &blobs, Compression::None, &options, io::sink()).map(drop)?)
        });
        if let Err(error) = unpacked.await {
            if error.exit() != Exit::Damaged {
                return Err(error);
            }
            unfit.push(format!("{name} cannot be restored: {}", error.messages().join(": ")));
        }
    }
    Ok(unfit)
}

/// Whether a finding is about what there is, and not about who signed it.
pub fn about_content(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::MissingManifest { .. }
            | Finding::DamagedManifest { .. }
            | Finding::MissingBlob { .. }
            | Finding::DamagedBlob { .. }
            | Finding::WrongSize { .. }
            | Finding::TooMuch { .. }
    )
}

/// Whether a finding is that something is not there.
pub fn is_missing(finding: &Finding) -> bool {
    matches!(finding, Finding::MissingManifest { .. } | Finding::MissingBlob { .. })
}

/// The error that an image which is not good ends with: every finding that matters, each with what to do.
fn refused(reference: &Reference, seen: &VerifyReport, misread: Vec<String>) -> CommandError {
    let errors: Vec<_> = errors(&seen.findings).collect();
    let mut hints: Vec<_> = errors.iter().map(|finding| finding.hint()).collect();
    hints.dedup();
    let error = CommandError::new(Exit::Unverified, format!("{reference} is not good"));
    let error = error.details(errors.iter().map(ToString::to_string)).details(misread);
    hints.into_iter().fold(error, CommandError::hint)
}

fn verified(reference: String, root: &Descriptor, seen: &VerifyReport, misread: &[String]) -> Verified {
    let found = |finding: &Finding| Found {
        severity: match finding.severity() {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        },
        message: finding.to_string(),
        hint: finding.hint(),
    };
    let misread = misread.iter().map(|message| Found {
        severity: "error",
        message: message.clone(),
        hint: "make it again with `syncpoint pack` or `syncpoint link`, or use a newer syncpoint if it says so",
    });
    let findings: Vec<_> = seen.findings.iter().map(found).chain(misread).collect();
    let good = |good: &GoodSignature| Good {
        manifest: good.manifest,
        form: good.form.to_string(),
        key: good.key,
        identity: good.identity.clone(),
    };
    Verified {
        reference,
        digest: root.digest,
        good: findings.iter().all(|found| found.severity != "error"),
        findings,
        signatures: seen.signatures.iter().map(good).collect(),
        manifests: seen.manifests,
        blobs: seen.blobs,
        bytes: seen.bytes,
    }
}
