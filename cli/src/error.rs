//! The one error of the program's edge: what went wrong, why, how the program ends for it, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use coordinator::{AttendError, Hook};
use guard::sdp::DatabaseError;
use image_format::{ArchiveError, ArtifactError, DumpError, GlobalError, ImageError, MemberId, PackError, UnpackError};
use launcher::{
    CheckpointError, CheckpointErrorKind, LoadError, PagesError, ReceiveDumpError, RestoreError, RestoreErrorKind,
};
use registry::sign::{Finding, KeyError, SignError};
use registry::{
    CatalogueError, CopyError, LoginError, ParseReferenceError, PinError, PruneError, RegistriesError, StoreError,
};

use crate::cancel::Interrupted;
use crate::exit::Exit;

/// What a command fails with. Made from any error; the exit code follows from the errors of the libraries in its chain.
///
/// It is no `Error` itself, so that `?` can make one of everything that is.
#[derive(Debug)]
pub struct CommandError {
    exit: Exit,
    source: Box<dyn Error + Send + Sync>,
    details: Vec<String>,
    hints: Vec<String>,
}

impl CommandError {
    /// An error whose exit code is known here.
    pub fn new(exit: Exit, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, source: source.into(), details: Vec::new(), hints: Vec::new() }
    }

    /// A command line that makes no sense, in words.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, Message(message.into()))
    }

    /// The same error with a sentence in front that says what was being done.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        let Self { exit, source, details, hints } = self;
        Self { exit, source: Box::new(Doing { doing: doing.into(), source }), details, hints }
    }

    /// The same error with further lines of what is known about it.
    #[must_use]
    pub fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// The same error with a sentence that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same error with a sentence that says what to do before all others.
    #[must_use]
    pub fn first_hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.insert(0, hint.into());
        self
    }

    /// How the program ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// All of it, a line each, for a person.
    pub fn lines(&self) -> Vec<String> {
        let mut messages = self.messages().into_iter();
        let mut lines = vec![format!("error: {}", messages.next().unwrap_or_default())];
        lines.extend(messages.map(|cause| format!("  because: {cause}")));
        lines.extend(self.details.iter().map(|detail| format!("  {detail}")));
        lines.extend(self.hints.iter().map(|hint| format!("hint: {hint}")));
        lines
    }

    /// The error, then its causes from the outermost to the innermost, without repeating what was said already.
    pub fn messages(&self) -> Vec<String> {
        messages(&*self.source)
    }
}

fn messages(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if !messages.last().is_some_and(|last| last.contains(&message)) {
            messages.push(message);
        }
        next = cause(error);
    }
    messages
}

/// An error with its causes, in one line.
pub fn in_a_line(error: &(dyn Error + 'static)) -> String {
    messages(error).join(": ")
}

impl<E: Error + Send + Sync + 'static> From<E> for CommandError {
    fn from(error: E) -> Self {
        let (exit, hint) = classify(&error);
        let error = Self::new(exit, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Says what was being done when an error came up.
pub trait While<T> {
    /// Puts a sentence in front of the error.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, CommandError>;
}

impl<T, E: Into<CommandError>> While<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, CommandError> {
        self.map_err(|error| error.into().context(doing()))
    }
}

/// Where a session failed: the member, and CRIU's hook.
pub fn place(member: Option<&MemberId>, hook: Option<Hook>) -> Option<String> {
    let parts = [member.map(|member| format!("member {member}")), hook.map(|hook| format!("hook {hook}"))];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("at {}", parts.join(", ")))
}

/// An error that is nothing but words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Message(String);

/// A sentence and what it explains.
#[derive(Debug)]
struct Doing {
    doing: String,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl Error for Doing {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// An error whose message goes on from the name of what it is about.
#[derive(Debug)]
pub struct About<E> {
    name: String,
    error: E,
}

impl<E> About<E> {
    /// Puts the name in front.
    pub fn new(name: String, error: E) -> Self {
        Self { name, error }
    }
}

impl<E: Error> fmt::Display for About<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.error)
    }
}

impl<E: Error + 'static> Error for About<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// The next error of a chain. An `io::Error` that wraps another error leaves it out of its own chain.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The exit code and the hint of the first error of the chain that has one.
fn classify(error: &(dyn Error + 'static)) -> (Exit, Option<&'static str>) {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = known(error) {
            return found;
        }
        next = cause(error);
    }
    (Exit::Failure, None)
}

type Known = (Exit, Option<&'static str>);

/// The exit code and the hint of one error, by its type.
fn known(error: &(dyn Error + 'static)) -> Option<Known> {
    let exit = |exit: Option<Exit>| exit.map(|exit| (exit, None));
    if let Some(error) = error.downcast_ref() {
        return store(error);
    }
    if let Some(error) = error.downcast_ref() {
        return transfer(error);
    }
    if let Some(error) = error.downcast_ref() {
        return listed(error);
    }
    if let Some(error) = error.downcast_ref() {
        return prune(error);
    }
    if let Some(error) = error.downcast_ref() {
        return pin(error);
    }
    if let Some(error) = error.downcast_ref() {
        return sign(error);
    }
    if let Some(error) = error.downcast_ref() {
        return login(error);
    }
    if let Some(error) = error.downcast_ref() {
        return exit(key(error));
    }
    if let Some(error) = error.downcast_ref() {
        return exit(pack(error));
    }
    if let Some(error) = error.downcast_ref() {
        return exit(dump(error));
    }
    // A box around an error is an error of its own, which hides what is in it.
    let boxed = error.downcast_ref::<Box<UnpackError>>().map(AsRef::as_ref);
    if let Some(error) = boxed.or_else(|| error.downcast_ref()) {
        return exit(unpack(error));
    }
    if let Some(error) = error.downcast_ref() {
        return restore(error);
    }
    if let Some(error) = error.downcast_ref() {
        return checkpoint(error);
    }
    if let Some(error) = error.downcast_ref() {
        return exit(received(error));
    }
    if let Some(error) = error.downcast_ref() {
        return database(error);
    }
    if error.is::<ImageError>() || error.is::<GlobalError>() || error.is::<ArtifactError>() {
        return exit(Some(Exit::Damaged));
    }
    if error.is::<ParseReferenceError>() || error.is::<RegistriesError>() {
        return exit(Some(Exit::Usage));
    }
    if error.is::<Interrupted>() {
        return exit(Some(Exit::Interrupted));
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::NotFound => exit(Some(Exit::NotFound)),
        io::ErrorKind::PermissionDenied => exit(Some(Exit::Denied)),
        _ => None,
    }
}

fn store(error: &StoreError) -> Option<Known> {
    match error {
        StoreError::NotFound { .. } => Some((Exit::NotFound, None)),
        StoreError::Denied { .. } => Some((Exit::Denied, Some("log in with `syncpoint login HOST`"))),
        StoreError::Corrupt { .. } | StoreError::TooLarge { .. } => Some((Exit::Damaged, None)),
        StoreError::ShortName(_) => Some((Exit::Usage, None)),
        StoreError::Cancelled { .. } => Some((Exit::Interrupted, None)),
        StoreError::Unreachable { source, .. } if is_refused(&**source) => {
            Some((Exit::Unreachable, Some("nobody listens there: is the registry running at that address?")))
        }
        StoreError::Unreachable { .. } => Some((
            Exit::Unreachable,
            Some(
                "if the registry's certificate is not trusted, name its authority with --ca; if it speaks plain http, say --plain-http",
            ),
        )),
        // Trouble of the file system says more by its own kind.
        _ => None,
    }
}

/// Whether a machine answered that nobody listens at this port.
fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        next = cause(error);
    }
    false
}

fn received(error: &ReceiveDumpError) -> Option<Exit> {
    match error {
        ReceiveDumpError::Open { .. } => Some(Exit::Usage),
        ReceiveDumpError::Failed
        | ReceiveDumpError::NotWhole { .. }
        | ReceiveDumpError::Pages(PagesError::Torn(_) | PagesError::Stream(_)) => Some(Exit::Damaged),
        _ => None,
    }
}

fn database(error: &DatabaseError) -> Option<Known> {
    match error {
        DatabaseError::Unreachable { .. } => Some((
            Exit::Unreachable,
            Some("where it is, $SDP_CONFIG_HOST, $SDP_CONFIG_PORT and $SDP_CONFIG_PROTOCOL say"),
        )),
        DatabaseError::Denied { .. } => {
            Some((Exit::Denied, Some("who asks, $SDP_CONFIG_USERNAME and $SDP_CONFIG_PASSWORD say")))
        }
        DatabaseError::Settings { .. } => Some((Exit::Usage, None)),
        DatabaseError::Answer { .. } | DatabaseError::Value { .. } => Some((Exit::Damaged, None)),
        DatabaseError::Busy { .. } | DatabaseError::Fenced { .. } => Some((Exit::Refused, None)),
        _ => None,
    }
}

fn listed(error: &CatalogueError) -> Option<Known> {
    match error {
        CatalogueError::Store(error) => store(error),
        CatalogueError::Member { .. } => Some((Exit::Usage, None)),
        CatalogueError::Untrusted { .. } => Some((Exit::Unverified, Some("give the key that signed it with --key"))),
        _ => None,
    }
}

fn prune(error: &PruneError) -> Option<Known> {
    match error {
        PruneError::Store(error) => store(error),
        PruneError::NoRule => Some((Exit::Usage, Some("say what to keep, such as --keep-last 10"))),
        _ => None,
    }
}

fn pin(error: &PinError) -> Option<Known> {
    match error {
        PinError::Store(error) => store(error),
        PinError::NotGlobal { source: None, .. } => Some((Exit::Usage, None)),
        PinError::NotGlobal { .. } => Some((Exit::Damaged, None)),
        PinError::OnlyTag { .. } => Some((Exit::Refused, None)),
        _ => None,
    }
}

fn transfer(error: &CopyError) -> Option<Known> {
    match error {
        CopyError::Store(error) => store(error),
        CopyError::TooMuch { .. } | CopyError::Attachment { .. } => Some((Exit::Damaged, None)),
        _ => None,
    }
}

fn sign(error: &SignError) -> Option<Known> {
    match error {
        SignError::Store(error) => store(error),
        SignError::Attachment { .. } | SignError::NotAnImage { .. } => Some((Exit::Damaged, None)),
        _ => None,
    }
}

/// Credentials that were just given and are wrong are not there to log in with.
fn login(error: &LoginError) -> Option<Known> {
    match error {
        LoginError::Check(StoreError::Denied { .. }) => Some((Exit::Denied, None)),
        _ => None,
    }
}

fn key(error: &KeyError) -> Option<Exit> {
    match error {
        KeyError::WrongPassword => Some(Exit::Denied),
        KeyError::Random(_) | KeyError::Encode => None,
        _ => Some(Exit::Damaged),
    }
}

/// Nothing where the causes say more, such as that a file is missing.
fn pack(error: &PackError) -> Option<Exit> {
    match error {
        PackError::Store { .. } => None,
        PackError::Dump(error) => dump(error),
        PackError::Facts { .. } => Some(Exit::Damaged),
        PackError::Describe(_) | PackError::HardLinkAcrossLayers { .. } => Some(Exit::Usage),
        _ => None,
    }
}

fn dump(error: &DumpError) -> Option<Exit> {
    match error {
        DumpError::Open { .. } => None,
        DumpError::Content { source, .. } => archive(source),
        _ => Some(Exit::Damaged),
    }
}

fn unpack(error: &UnpackError) -> Option<Exit> {
    match error {
        UnpackError::FetchConfig { .. } | UnpackError::FetchLayer { .. } => None,
        UnpackError::Write(_) | UnpackError::Folder { .. } => None,
        UnpackError::Layer { source, .. } => archive(source),
        _ => Some(Exit::Damaged),
    }
}

/// What cannot be read of an archive is damaged, unless it is the store or the file system that cannot be read.
fn archive(error: &ArchiveError) -> Option<Exit> {
    match error {
        ArchiveError::Read(error) => match classify(error).0 {
            Exit::Failure => Some(Exit::Damaged),
            exit => Some(exit),
        },
        _ => Some(Exit::Damaged),
    }
}

fn restore(error: &RestoreError) -> Option<Known> {
    let exit = match &*error.kind {
        RestoreErrorKind::Store(error) | RestoreErrorKind::Load(LoadError::Store(error)) => return store(error),
        RestoreErrorKind::NoKeys => Exit::Usage,
        RestoreErrorKind::Untrusted { findings } => untrusted(findings),
        RestoreErrorKind::Preflight { .. } | RestoreErrorKind::OpenFiles(_) => Exit::Refused,
        RestoreErrorKind::Cancelled => Exit::Interrupted,
        RestoreErrorKind::Aborted { .. }
        | RestoreErrorKind::Pull { .. }
        | RestoreErrorKind::OtherImage { .. }
        | RestoreErrorKind::Bundle { .. }
        | RestoreErrorKind::Session(_) => Exit::Aborted,
        RestoreErrorKind::Volume { .. } => {
            let hint = "see that what its options name is on this host, and that podman's storage has room";
            return Some((Exit::Aborted, Some(hint)));
        }
        RestoreErrorKind::NoContent { .. } => {
            let hint = "restore another checkpoint; if podman exported this one, export it without --ignore-volumes";
            return Some((Exit::Damaged, Some(hint)));
        }
        RestoreErrorKind::Load(LoadError::Artifact { .. } | LoadError::Nested { .. } | LoadError::TooMany { .. }) => {
            Exit::Damaged
        }
        _ => return None,
    };
    Some((exit, None))
}

/// Nothing where the causes say more.
fn checkpoint(error: &CheckpointError) -> Option<Known> {
    let exit = match &*error.kind {
        CheckpointErrorKind::NotRoot
        | CheckpointErrorKind::Members(_)
        | CheckpointErrorKind::NotRestorable { .. }
        | CheckpointErrorKind::OpenFiles(_)
        | CheckpointErrorKind::Busy { .. }
        | CheckpointErrorKind::Newer { .. }
        | CheckpointErrorKind::Taken { .. }
        | CheckpointErrorKind::LastEpoch { .. }
        | CheckpointErrorKind::Attach { .. }
        | CheckpointErrorKind::Listen(_)
        | CheckpointErrorKind::Absent { .. }
        | CheckpointErrorKind::Join(AttendError::Refused { .. })
        | CheckpointErrorKind::NotBegun { .. }
        | CheckpointErrorKind::OtherStore { .. }
        | CheckpointErrorKind::Changed { .. } => Exit::Refused,
        CheckpointErrorKind::Session(_)
        | CheckpointErrorKind::Aborted { .. }
        | CheckpointErrorKind::NotHanded { .. }
        | CheckpointErrorKind::NotRunning { .. }
        | CheckpointErrorKind::Elsewhere { .. }
        | CheckpointErrorKind::NotStored { .. }
        | CheckpointErrorKind::NotPermanent { .. }
        | CheckpointErrorKind::Engine { .. } => Exit::Aborted,
        CheckpointErrorKind::NothingToResume { .. } => Exit::NotFound,
        CheckpointErrorKind::UnsignedBase { .. } => Exit::Unverified,
        CheckpointErrorKind::Cancelled => Exit::Interrupted,
        _ => return None,
    };
    Some((exit, None))
}

/// What is signed but damaged is damaged.
fn untrusted(findings: &[Finding]) -> Exit {
    let unsigned = |finding: &Finding| matches!(finding, Finding::Unsigned { .. } | Finding::NotAccepted { .. });
    if findings.iter().any(unsigned) { Exit::Unverified } else { Exit::Damaged }
}
