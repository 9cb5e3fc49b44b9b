//! A member comes back as a new container of Docker's, made by Docker's own client, under the runtime that restores.
//!
//! ```text
//! ticket ─▶ docker create ─▶ docker start ─▶ containerd's shim ─▶ syncpoint-runtime create: held at post-restore
//!                                                               └▶ syncpoint-runtime start: the session's barriers ─▶ running
//! ```
//!
//! The ticket says where everything of the member is; the container's annotation says which ticket is its own.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use coordinator::SessionId;
use image_format::files::extract;
use image_format::{CONTAINER_VERSION, Container, Limits};
use runtime::ticket::{ANNOTATION, RootDiff, Ticket};
use runtime::{CRIU_CONFIG, OWN_CONFIG};
use rustix::fs::{Mode, OFlags, open};
use tokio_util::sync::CancellationToken;

use super::create::{Making, arguments};
use super::{answers, ask, docker, failed, inspect, parsed, write};
use crate::answers::mountpoint;
use crate::attach::own_lines;
use crate::beside::make_folder;
use crate::error::EngineError;
use crate::target::{MARK, Target};
use crate::volumes::{Volume, own};
use runtime::criu_log::{RESTORE_LOG, log_lines};
use runtime::words::chain;

/// The most that is read of what a member says of its container.
const LARGEST: u64 = 8 << 20;

/// Where everything of a member is.
#[derive(Debug)]
struct Dump<'a> {
    target: &'a Target,
    /// The folder with what the dump has besides CRIU's images.
    files: &'a Path,
}

impl<'a> Dump<'a> {
    fn of(target: &'a Target) -> Self {
        Self { target, files: target.dump.parent().unwrap_or(Path::new("/")) }
    }

    /// A file of the dump, if it has one of this name.
    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.files.join(name)).filter(|path| path.is_file())
    }

    /// Where CRIU works and writes its log.
    fn work(&self) -> PathBuf {
        self.target.follows.clone().unwrap_or_else(|| self.files.with_file_name("work"))
    }

    fn container(&self) -> Result<Container, String> {
        let path = self.files.join("container.json");
        let failed = |reason: &dyn std::fmt::Display| format!("{} cannot be used: {reason}", path.display());
        match fs::metadata(&path) {
            Ok(facts) if facts.len() > LARGEST => return Err(failed(&"it is too large")),
            Ok(_) => {}
            Err(error) => return Err(failed(&error)),
        }
        let bytes = fs::read(&path).map_err(|error| failed(&error))?;
        let container: Container = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
        match container.version {
            CONTAINER_VERSION => Ok(container),
            version => Err(failed(&format!("it is of version {version}"))),
        }
    }

    fn ticket(&self) -> Ticket {
        let Target { member, session, dump, criu_config, follows, .. } = self.target;
        let difference = self.file("rootfs-diff.tar");
        let rootfs = difference.map(|tar| RootDiff { tar, deleted: self.file("deleted.files") });
        Ticket {
            version: Ticket::VERSION,
            member: member.clone(),
            session: *session,
            images: dump.clone(),
            work: self.work(),
            criu_config: criu_config.clone(),
            rootfs,
            shm: self.file("devshm-checkpoint.tar"),
            spec: self.file("spec.dump"),
            lazily: follows.is_some(),
        }
    }
}

/// Restores a member; returns when its tasks run.
pub(super) async fn restore(target: &Target, kill: &CancellationToken) -> Result<(), String> {
    let dump = Dump::of(target);
    let container = dump.container()?;
    let runtime = runtime().await.map_err(|error| chain(&error))?;
    let runtime =
        runtime.ok_or("Docker knows no runtime that restores: `syncpoint runtime install --engine docker`")?;
    let image = image(&container).await.map_err(|error| chain(&error))?;
    let image = image.ok_or("the image that the member was made of is not in Docker, and its name is not known")?;
    let environment = dump.files.with_file_name("environment");
    write_environment(&container, &environment)?;
    make_folder(&dump.work())?;
    let ticket = dump.ticket();
    // `<run root>/<session>/<member>/criu.conf`
    let run_root = target.criu_config.ancestors().nth(3).unwrap_or(Path::new("/"));
    ticket.write(run_root).map_err(|error| chain(&error))?;
    let settings = target.criu_config.with_file_name("target.conf");
    write_settings(target, &settings)?;
    let (seat, session) = (ticket.seat().to_string(), target.session.to_string());
    let path = |path: &Path| path.display().to_string();
    let making = Making {
        name: &target.container,
        image: &image,
        runtime: &runtime,
        annotations: &[
            (ANNOTATION, seat),
            (MARK, session.clone()),
            (CRIU_CONFIG, path(&settings)),
            (OWN_CONFIG, path(&target.own_config)),
        ],
        labels: &[(MARK, session)],
        environment: &environment.to_string_lossy(),
    };
    // One that is there already is not taken for ours.
    docker(arguments(&container, &making)).finish(Stdio::null(), kill).await?;
    docker(["start", &target.container]).finish(Stdio::null(), kill).await
}

/// CRIU's words about a restore.
pub(super) fn words(target: &Target) -> Vec<String> {
    let log = Dump::of(target).work().join(RESTORE_LOG);
    if log.exists() { log_lines(&log) } else { Vec::new() }
}

/// What Docker calls the runtime that restores, if it knows one.
pub(super) async fn runtime() -> Result<Option<String>, EngineError> {
    parsed(&ask(["info", "--format", "{{json .Runtimes}}"]).await?, answers::restoring_runtime)
}

/// The image by its name, where that is still the image, and otherwise by its id.
async fn image(container: &Container) -> Result<Option<String>, EngineError> {
    let (name, id) = (container.image.name.as_deref(), container.image.id.as_deref());
    if let Some(name) = name.filter(|name| !name.starts_with('-')) {
        let found = inspect("image", name).await?.map(|answer| parsed(&answer, answers::image_id)).transpose()?;
        if found.is_some() && (id.is_none() || found.flatten().as_deref() == id) {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(id.map(str::to_owned))
}

/// Writes what the runtime tells CRIU besides the session: the host's own lines, and that the tasks stay in the control
/// group of the new container. With cgroup v2 runc 1.1 tells CRIU nothing of that group, and CRIU puts the tasks into
/// the one of the dump, where no engine looks for them. The file goes with the session; a later dump finds by the
/// annotation [`OWN_CONFIG`] what is to be in force then.
fn write_settings(target: &Target, path: &Path) -> Result<(), String> {
    let written = || {
        let own = own_lines(&target.own_config)?;
        replace(path, &[own.as_slice(), b"manage-cgroups=ignore\n"].concat())
    };
    written().map_err(|error: io::Error| format!("{} cannot be written: {error}", path.display()))
}

/// A file of root alone, in the place of one that an earlier attempt left.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    write(path, content)
}

/// A file as `--env-file` takes it. A command line would show the secrets in it to everybody on the host.
fn write_environment(container: &Container, path: &Path) -> Result<(), String> {
    let mut lines = String::new();
    for variable in &container.environment {
        let name = variable.split('=').next().unwrap_or_default();
        if variable.contains(['\n', '\r'])
            || name.is_empty()
            || name.starts_with('#')
            || name.contains(char::is_whitespace)
        {
            return Err(format!(
                "its variable {name:?} cannot be handed to Docker's client, which takes no line breaks in values and no \
                 blanks in names"
            ));
        }
        // A name alone stands for what the client's own environment has.
        lines.push_str(variable);
        if !variable.contains('=') {
            lines.push('=');
        }
        lines.push('\n');
    }
    replace(path, lines.as_bytes()).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// Makes a volume with the content of a tar.
pub(super) async fn make_volume(volume: &Volume, session: SessionId, content: &Path) -> Result<(), EngineError> {
    let bad = |source: io::Error| EngineError::Volume { volume: volume.name.clone(), source };
    if volume.is_mount() {
        let reason = "it is mounted from elsewhere, and Docker mounts it for running containers only";
        return Err(bad(io::Error::new(io::ErrorKind::Unsupported, reason)));
    }
    let labels = volume.labels.iter().filter(|(key, _)| *key != MARK).map(|(key, value)| (key.clone(), value.clone()));
    let labels = labels.chain([(MARK.to_owned(), session.to_string())]);
    let labels = labels.map(|(key, value)| format!("--label={key}={value}"));
    let options = volume.options.iter().map(|(key, value)| format!("--opt={key}={value}"));
    let making = docker(["volume", "create"]).args(labels.chain(options)).args(["--", &volume.name]);
    making.answer().await.map_err(failed)?;
    let folder = parsed(&ask(["volume", "inspect", &volume.name]).await?, mountpoint)?;
    let content = content.to_owned();
    let filling = tokio::task::spawn_blocking(move || fill(&folder, &content)).await.map_err(io::Error::other);
    filling.flatten().map_err(bad)
}

fn fill(folder: &Path, content: &Path) -> io::Result<()> {
    let root = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let archive = BufReader::with_capacity(256 << 10, File::open(content)?);
    extract(archive, root.as_fd(), &Limits::default()).map_err(io::Error::other)?;
    own(folder, content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_of_an_environment_are_in_a_file_of_root_alone() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("environment");
        let of = |environment: &[&str]| Container {
            environment: environment.iter().map(|variable| (*variable).to_owned()).collect(),
            ..Container::default()
        };
        write_environment(&of(&["A=b=c", "EMPTY=", "ALONE", "PASSWORD= x# "]), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "A=b=c\nEMPTY=\nALONE=\nPASSWORD= x# \n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for odd in ["A=b\nc", "=x", "#A=b", "A B=c"] {
            let refused = write_environment(&of(&[odd]), &path).unwrap_err();
            assert!(refused.contains("no line breaks") && !refused.contains("=b"), "{refused}");
        }
    }
}
