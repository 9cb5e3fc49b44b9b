//! `syncpoint login` and `syncpoint logout`.

use std::path::PathBuf;

use clap::Args;

use crate::context::Context;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::terminal::{Question, blocking, line_of_stdin};
use crate::transport::Transport;

/// Log in to a registry
///
/// The credentials are checked with the registry and kept in the file that podman, skopeo and buildah read too: --authfile,
/// else $REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json. Anyone who can read that file can log in.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The registry: HOST[:PORT]
    #[arg(value_name = "HOST")]
    host: String,

    /// The user's name; asked for on the terminal if not given
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,

    /// Read the password from standard input instead of asking for it
    #[arg(long, requires = "username")]
    password_stdin: bool,

    #[command(flatten)]
    transport: Transport,
}

/// Forget the credentials of a registry
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// The registry, as it was given to `syncpoint login`
    #[arg(value_name = "HOST")]
    host: String,

    /// The file to forget them from
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

const NAME: Question = Question { what: "user name", instead: "give --username and --password-stdin" };
const PASSWORD: Question = Question { what: "password", instead: "give --password-stdin" };

/// Logs in.
pub async fn run(args: LoginArgs, context: &Context) -> Result<(), CommandError> {
    let file = args.transport.authfile().cloned().unwrap_or_else(|| context.environment.login_file());
    let username = match args.username {
        Some(name) => name,
        None => NAME.ask(&context.cancel).await?,
    };
    let password = match args.password_stdin {
        true => blocking(line_of_stdin).await?,
        false => PASSWORD.ask_secret(&context.cancel).await?,
    };
    let settings = args.transport.settings(&context.environment)?;
    registry::login(&args.host, &username, &password, &file, &settings).await?;
    context.reporter.note(&format!("logged in to {}; kept in {}", args.host, file.display()));
    Ok(())
}

/// Logs out.
pub async fn run_logout(args: LogoutArgs, context: &Context) -> Result<(), CommandError> {
    let file = args.authfile.unwrap_or_else(|| context.environment.login_file());
    if !registry::logout(&args.host, &file).await? {
        let reason = format!("there are no credentials for {} in {}", args.host, file.display());
        return Err(CommandError::new(Exit::NotFound, reason));
    }
    context.reporter.note(&format!("logged out of {}", args.host));
    Ok(())
}
