//! `syncpoint runtime`: tells an engine of `syncpoint-runtime`, and takes that back.
//!
//! Three of the engines read folders of configuration, and get a file of their own there. Docker has one file
//! for everything; of that file only the entry `runtimes.syncpoint` is touched.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::output::{Format, Report};

/// What engines call the runtime.
const NAME: &str = "syncpoint";

/// Tell a container engine of the OCI runtime that restores, or take that back
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    #[command(subcommand)]
    command: RuntimeCommand,
}

#[derive(Debug, Subcommand)]
enum RuntimeCommand {
    Install(InstallArgs),
    Remove(RemoveArgs),
}

/// Make an engine know the runtime `syncpoint`
///
/// The runtime is runc for every container but those that `syncpoint restore` makes, so that it may be an engine's
/// default runtime too. Nothing else of the engine's configuration is changed.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {engine, file, changed, next}.")]
pub struct InstallArgs {
    #[command(flatten)]
    whom: Whom,

    /// The program of the runtime [default: syncpoint-runtime beside syncpoint]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Print what the file would say, and change nothing
    #[arg(long)]
    print: bool,

    #[command(flatten)]
    format: Format,
}

/// Make an engine forget the runtime `syncpoint`
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {engine, file, changed, next}.")]
pub struct RemoveArgs {
    #[command(flatten)]
    whom: Whom,

    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
struct Whom {
    /// The engine
    #[arg(long, value_name = "ENGINE")]
    engine: Engine,

    /// The folder with the configurations of engines
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    etc: PathBuf,
}

/// An engine that takes OCI runtimes from a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Engine {
    Docker,
    Podman,
    Containerd,
    CriO,
}

impl Engine {
    /// The file that tells of the runtime, below /etc.
    fn file(self) -> &'static str {
        match self {
            Self::Docker => "docker/daemon.json",
            Self::Podman => "containers/containers.conf.d/syncpoint.conf",
            Self::Containerd => "containerd/conf.d/syncpoint.toml",
            Self::CriO => "crio/crio.conf.d/10-syncpoint.conf",
        }
    }

    /// What the file says with the runtime in it. `now` is what it says at the moment.
    fn with(self, now: Option<&str>, program: &str) -> Result<String, serde_json::Error> {
        // A JSON text is a TOML text as well.
        let quoted = Value::from(program);
        Ok(match self {
            Self::Docker => {
                let mut all = daemon(now)?;
                let runtimes = all.entry("runtimes").or_insert_with(|| Value::Object(Map::new()));
                if !runtimes.is_object() {
                    *runtimes = Value::Object(Map::new());
                }
                runtimes[NAME] = json!({ "path": program });
                in_lines(&all)?
            }
            Self::Podman => format!("[engine.runtimes]\n{NAME} = [{quoted}]\n"),
            // The two names of the plugin are those of versions 3 and 2 of containerd's configuration; it passes over
            // the one that it does not know.
            Self::Containerd => ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
                .map(|plugin| {
                    let table = format!("plugins.\"{plugin}\".containerd.runtimes.{NAME}");
                    format!(
                        "[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n\
                         pod_annotations = [\"io.syncpoint.*\"]\ncontainer_annotations = [\"io.syncpoint.*\"]\n\
                         [{table}.options]\nBinaryName = {quoted}\n"
                    )
                })
                .concat(),
            Self::CriO => format!(
                "[crio.runtime.runtimes.{NAME}]\nruntime_path = {quoted}\nruntime_type = \"oci\"\n\
                 runtime_root = \"/run/runc\"\n"
            ),
        })
    }

    /// What the file says without the runtime; `None` if nothing is left of the file.
    fn without(self, now: &str) -> Result<Option<String>, serde_json::Error> {
        let Self::Docker = self else { return Ok(None) };
        let mut all = daemon(Some(now))?;
        let Some(runtimes) = all.get_mut("runtimes").and_then(Value::as_object_mut) else {
            return Ok(Some(now.into()));
        };
        if runtimes.remove(NAME).is_none() {
            return Ok(Some(now.to_owned()));
        }
        if runtimes.is_empty() {
            all.remove("runtimes");
        }
        if all.is_empty() { Ok(None) } else { in_lines(&all).map(Some) }
    }

    /// What has to be done for the engine to read its configuration again.
    fn next(self) -> &'static str {
        match self {
            Self::Docker => "systemctl reload docker",
            Self::Podman => "podman reads it by itself: podman run --runtime syncpoint ...",
            Self::Containerd => {
                "let /etc/containerd/config.toml import /etc/containerd/conf.d/*.toml, then systemctl restart containerd"
            }
            Self::CriO => "systemctl restart crio",
        }
    }
}

/// Docker's configuration; nothing where there is no file, or an empty one.
fn daemon(now: Option<&str>) -> Result<Map<String, Value>, serde_json::Error> {
    match now.filter(|text| !text.trim().is_empty()) {
        Some(text) => serde_json::from_str(text),
        None => Ok(Map::new()),
    }
}

fn in_lines(all: &Map<String, Value>) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(all)? + "\n")
}

/// What was done.
#[derive(Debug, Serialize)]
struct Changed {
    engine: Engine,
    file: PathBuf,
    changed: bool,
    /// What the engine needs to read its configuration again.
    next: &'static str,
}

impl Report for Changed {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let file = self.file.display();
        if !self.changed {
            return writeln!(out, "unchanged  {file}   it is so already");
        }
        writeln!(out, "changed  {file}\nnext     {}", self.next)
    }
}

/// Does what was asked about the runtime.
pub fn run(args: RuntimeArgs, context: &Context) -> Result<(), CommandError> {
    match args.command {
        RuntimeCommand::Install(args) => install(&args, context),
        RuntimeCommand::Remove(args) => remove(&args, context),
    }
}

fn install(args: &InstallArgs, context: &Context) -> Result<(), CommandError> {
    let engine = args.whom.engine;
    let program = program(args.program.as_deref())?;
    let file = args.whom.etc.join(engine.file());
    let now = read(&file)?;
    let then = engine.with(now.as_deref(), &program).map_err(|error| odd(&file, error))?;
    if args.print {
        return context.output.write(then.as_bytes());
    }
    let changed = now.as_deref() != Some(then.as_str());
    if changed {
        write(&file, &then).doing(|| format!("{} cannot be written", file.display()))?;
    }
    context.output.print(args.format, &Changed { engine, file, changed, next: engine.next() })
}

fn remove(args: &RemoveArgs, context: &Context) -> Result<(), CommandError> {
    let engine = args.whom.engine;
    let file = args.whom.etc.join(engine.file());
    let now = read(&file)?;
    let then = now.as_deref().map(|now| engine.without(now)).transpose().map_err(|error| odd(&file, error))?.flatten();
    let changed = now != then;
    if changed {
        let done = match then {
            Some(then) => write(&file, &then),
            None => fs::remove_file(&file),
        };
        done.doing(|| format!("{} cannot be changed", file.display()))?;
    }
    context.output.print(args.format, &Changed { engine, file, changed, next: engine.next() })
}

/// The runtime's program, which is there.
fn program(given: Option<&Path>) -> Result<String, CommandError> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("syncpoint-runtime"));
    let program = given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PathBuf::from("syncpoint-runtime"));
    let found = program.canonicalize().doing(|| format!("the runtime {} is not there", program.display()));
    let found = found.map_err(|error| error.hint("name the program with --program"))?;
    let text = found.into_os_string().into_string();
    text.map_err(|path| CommandError::usage(format!("{} is no text, as configurations need it", path.display())))
}

fn read(file: &Path) -> Result<Option<String>, CommandError> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("{} cannot be read", file.display())),
    }
}

fn odd(file: &Path, error: serde_json::Error) -> CommandError {
    CommandError::new(Exit::Damaged, error)
        .context(format!("{} is not JSON, and stays as it is", file.display()))
        .hint("mend the file, or add what --print shows by hand")
}

/// Puts a file in the place of another, whole or not at all; it keeps the other's permissions.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    DirBuilder::new().mode(0o755).recursive(true).create(folder)?;
    let mode = fs::metadata(file).map_or(0o644, |facts| facts.permissions().mode());
    // What a link leads to is written, and the link stays.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let mut new = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(folder))?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(file).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_other_settings_stay() {
        let before = r#"{"log-driver": "json-file", "runtimes": {"other": {"path": "/o"}}}"#;
        let with = Engine::Docker.with(Some(before), "/opt/syncpoint-runtime").unwrap();
        let all: Value = serde_json::from_str(&with).unwrap();
        assert_eq!(all["runtimes"]["syncpoint"]["path"], "/opt/syncpoint-runtime");
        assert_eq!((&all["log-driver"], &all["runtimes"]["other"]["path"]), (&json!("json-file"), &json!("/o")));
        assert_eq!(Engine::Docker.with(Some(&with), "/opt/syncpoint-runtime").unwrap(), with, "twice is once");
        let without = Engine::Docker.without(&with).unwrap().unwrap();
        let expected: Value = serde_json::from_str(before).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&without).unwrap(), expected);
        assert_eq!(Engine::Docker.without(before).unwrap().as_deref(), Some(before), "nothing of it was ours");
        let alone = Engine::Docker.with(None, "/p").unwrap();
        assert_eq!(Engine::Docker.without(&alone).unwrap(), None);
        for bad in ["{", "[]", "{} x"] {
            assert!(Engine::Docker.with(Some(bad), "/p").is_err() && Engine::Docker.without(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_for_the_others_is_toml_that_names_the_program() {
        let program = "/opt/a \"b\"/syncpoint-runtime";
        for (engine, path) in [
            (Engine::Podman, &["engine", "runtimes", "syncpoint"][..]),
            (
                Engine::Containerd,
                &[
                    "plugins",
                    "io.containerd.cri.v1.runtime",
                    "containerd",
                    "runtimes",
                    "syncpoint",
                    "options",
                    "BinaryName",
                ],
            ),
            (Engine::CriO, &["crio", "runtime", "runtimes", "syncpoint", "runtime_path"]),
        ] {
            let text = engine.with(None, program).unwrap();
            let all: toml::Value = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            let found = path.iter().try_fold(&all, |value, key| value.get(key)).expect(&text);
            let found = found.as_array().and_then(|array| array.first()).unwrap_or(found);
            assert_eq!(found.as_str(), Some(program), "{text}");
            assert_eq!(engine.without(&text).unwrap(), None);
        }
    }
}
