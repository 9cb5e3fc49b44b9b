//! Key files: reading them, and asking for what opens them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use coordinator::is_open_to_others;
use image_format::Descriptor;
use registry::sign::{Password, PrivateKey, PublicKey, errors};
use registry::{Store, Trust};

use crate::context::Context;
use crate::environment::Secret;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::terminal::{Question, blocking};

/// A key file has some 700 bytes; the library refuses what is larger than this.
const MAX_FILE: u64 = (64 << 10) + 1;

/// What the pass phrase is called.
pub const PASS_PHRASE: Question = Question { what: "pass phrase", instead: "set COSIGN_PASSWORD" };

/// Reads a private key. The pass phrase is `COSIGN_PASSWORD`'s, or asked for.
pub async fn private(file: &Path, context: &Context) -> Result<PrivateKey, CommandError> {
    let text = read(file)?;
    warn_if_open(file, context);
    let password = match context.environment.password() {
        Some(Secret(password)) => password,
        None if text.contains("ENCRYPTED") => PASS_PHRASE.ask_secret(&context.cancel).await?,
        None => String::new(),
    };
    // Opening a key is slow on purpose.
    let loaded = blocking(move || Ok(PrivateKey::load(&text, &Password::new(password))?)).await;
    loaded.doing(|| format!("the private key in {} cannot be used", file.display()))
}

/// Says so where others may read a private key. It is used all the same: there are places that cannot have it otherwise, such as
/// volumes of secrets.
pub fn warn_if_open(file: &Path, context: &Context) {
    if is_open_to_others(file) {
        let file = file.display();
        context.reporter.warn(&format!("the private key {file} is open to others than its owner: `chmod 600 {file}`"));
    }
}

/// Reads public keys.
pub fn public<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<Vec<PublicKey>, CommandError> {
    let load = |file: &Path| {
        let text = read(file)?;
        PublicKey::load(&text).doing(|| format!("the public key in {} cannot be used", file.display()))
    };
    files.into_iter().map(load).collect()
}

/// Who may have signed a line of checkpoints: whoever signs the next one, and the owners of these public keys. Without any, nobody is
/// asked, which is told once.
pub fn of_line<'a>(
    signer: Option<&PrivateKey>,
    files: impl IntoIterator<Item = &'a Path>,
    context: &Context,
) -> Result<Trust, CommandError> {
    let mut keys = public(files)?;
    keys.extend(signer.map(PrivateKey::public_key));
    if keys.is_empty() {
        context.reporter.warn(
            "no key is given, so that signatures are not asked for: what anybody wrote into the repository counts as a checkpoint",
        );
        return Ok(Trust::InsecureNoVerify);
    }
    Ok(Trust::Keys(keys))
}

/// An error with all that speaks against it unless a key of the trust signed a root. `what` is what
/// the person called it.
pub async fn check(trust: &Trust, store: &dyn Store, root: &Descriptor, what: &str) -> Result<(), CommandError> {
    let Err(findings) = trust.check(store, root).await? else { return Ok(()) };
    Err(CommandError::new(Exit::Unverified, format!("{what} is not to be trusted"))
        .details(errors(&findings).map(ToString::to_string)))
}

fn read(file: &Path) -> Result<String, CommandError> {
    let mut text = String::new();
    let read = File::open(file).and_then(|opened| opened.take(MAX_FILE).read_to_string(&mut text));
    read.doing(|| format!("the key file {} cannot be read", file.display()))?;
    Ok(text)
}
