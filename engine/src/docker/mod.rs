//! Docker, through its command line, and beside it.
//!
//! A container is dumped by the runtime that containerd runs it with, called on that runtime's own
//! root: Docker notices nothing, and what it keeps of the container, its log among it, goes on. The
//! dump is laid out as podman's archive is, with Docker's own description of the container beside
//! it.
//!
//! ```text
//! FOLDER/images/checkpoint/      CRIU's images
//! FOLDER/images/container.json   what the container was made with (image_format::Container)
//! FOLDER/images/spec.dump        the bundle's config.json
//! FOLDER/images/config.dump      for checkpointctl
//! FOLDER/images/dump.log         the head of CRIU's log
//! FOLDER/images/stats-dump       CRIU's own timings
//! FOLDER/work/                   what CRIU and the runtime write besides
//! ```

mod answers;
mod create;
mod restore;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use coordinator::SessionId;
use futures_util::future::try_join_all;
use image_format::{canonical_json, rfc3339};
use tokio_util::sync::CancellationToken;

use self::answers::Inspected;
use crate::answers::{lines, volumes};
use crate::attach::Attachment;
use crate::beside::{Bundle, Places};
use crate::container::{DumpInto, Files, Layers, Present, RunningContainer, criu_configs};
use crate::driver::{Engine, Labelled, kill_left};
use crate::error::EngineError;
use crate::overlay::overlay_at_root;
use crate::processes::{Marks, is_alive};
use crate::program::{Program, ProgramError};
use crate::survey::{Container, Survey};
use crate::target::{Found, MARK, Target};
use crate::ties::{Pod, Ties};
use crate::volumes::Volume;
use runtime::words::chain;

/// Its namespace in containerd, unless its daemon was told another.
const NAMESPACE: &str = "moby";

/// Where a container's shared memory is.
const SHM: &str = "/dev/shm";

/// What Docker's client says of what is not there.
const NOT_THERE: &str = "no such";

/// What Docker's client says when no daemon answers, or none of this user's.
const NO_DAEMON: [&str; 2] = ["annot connect to the Docker daemon", "failed to connect to the docker API"];

/// How much of CRIU's log goes along: what it says of itself and of the kernel.
const LOG_HEAD: u64 = 16 << 10;

/// How long pulling a base image may take.
const PULL: Duration = Duration::from_secs(1800);

/// The driver.
#[derive(Debug)]
pub(crate) struct Docker;

#[async_trait]
impl Engine for Docker {
    async fn survey(&self, networks: &BTreeSet<String>, images: &BTreeSet<String>) -> Result<Survey, EngineError> {
        let (version, runtime, containers, volumes, networks, images) = tokio::try_join!(
            version(),
            restore::runtime(),
            listed([""; 0]),
            self.volumes(),
            try_join_all(networks.iter().map(async |network| {
                let found = inspect("network", network).await?;
                let found = found.map(|answer| parsed(&answer, answers::network)).transpose()?;
                Ok::<_, EngineError>((network.clone(), found))
            })),
            try_join_all(
                images.iter().map(async |image| Ok((image.clone(), inspect("image", image).await?.is_some())))
            ),
        )?;
        let there = |(name, found): (String, Option<_>)| Some((name, found?));
        Ok(Survey {
            version: version.unwrap_or_default(),
            containers,
            volumes: volumes.into_iter().map(|volume| (volume.name.clone(), volume)).collect(),
            networks: networks.into_iter().filter_map(there).collect(),
            images: images.into_iter().filter_map(|(image, there)| there.then_some(image)).collect(),
            lacks_runtime: runtime.is_none(),
            ..Survey::default()
        })
    }

    /// Docker has no pods.
    async fn pods(&self) -> Result<Vec<Pod>, EngineError> {
        Ok(Vec::new())
    }

    /// Docker has secrets only where a swarm runs its containers.
    async fn secrets(&self) -> Result<BTreeSet<String>, EngineError> {
        Ok(BTreeSet::new())
    }

    async fn pull(&self, image: &str) -> Result<String, EngineError> {
        docker(["pull", "--quiet", image]).answer_within(PULL).await?;
        let id = ask(["image", "inspect", "--format", "{{.Id}}", image]).await?;
        Ok(String::from_utf8_lossy(&id).trim().trim_start_matches("sha256:").to_owned())
    }

    async fn restore(&self, target: &Target, kill: &CancellationToken) -> Result<(), String> {
        restore::restore(target, kill).await
    }

    async fn labelled(&self, label: &str, value: &str) -> Result<Vec<String>, EngineError> {
        let filter = format!("label={label}={value}");
        Ok(lines(&ask(["ps", "--quiet", "--no-trunc", "--filter", &filter]).await?))
    }

    async fn with_label(&self, label: &str) -> Result<Vec<Labelled>, EngineError> {
        let filter = format!("label={label}");
        let ids = lines(&ask(["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await?);
        parsed(&all("container", &ids).await?, answers::labels)
    }

    async fn source(&self, container: &str) -> Result<Option<RunningContainer>, EngineError> {
        let Some(found) = find(container).await? else { return Ok(None) };
        found.check_mounts().map_err(|source| EngineError::Answer { command: command("container"), source })?;
        let pid = found.pid();
        // What does not run has no bundle, and is refused by whoever asked for it.
        let bundle = if pid == 0 { None } else { Some(bundle(&found)?) };
        Ok(Some(source(&found, bundle.as_ref())))
    }

    async fn present(&self, container: &str) -> Result<Option<Present>, EngineError> {
        let present = |found: Inspected| Present {
            id: found.id().to_owned(),
            container: found.name().to_owned(),
            pid: found.pid(),
            volumes: found.volumes().into_keys().collect(),
        };
        Ok(find(container).await?.map(present))
    }

    async fn dump(
        &self,
        source: &RunningContainer,
        attachment: Attachment,
        into: DumpInto,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        let DumpInto::Folder(folder) = into else {
            return Err("Docker's containers are dumped into a folder".to_owned());
        };
        let asked = tokio::try_join!(version(), find(&source.id));
        let (version, found) = asked.map_err(|error| chain(&error))?;
        let found = found.ok_or("Docker has no such container any more")?;
        let bundle = bundle(&found).map_err(|error| chain(&error))?;
        let (images, work) = (folder.join("images"), folder.join("work"));
        bundle.runtime.dump(&source.id, &images.join("checkpoint"), &work, attachment, kill).await?;
        describe(&found, version, &bundle.config, &images, &work)
            .map_err(|error| format!("what Docker says of the container cannot be noted: {error}"))
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        ask(["stop", "-t", "0", id]).await?;
        Ok(())
    }

    async fn evict(&self, present: &Present) -> Result<(), EngineError> {
        // Docker would start it again if it were killed behind Docker's back.
        remove_container(&present.id).await?;
        kill_left(&present.container, Marks { id: Some(present.id.clone()), ..Marks::default() }).await
    }

    async fn volume_users(&self, volumes: &[&str]) -> Result<Vec<Container>, EngineError> {
        let filters = volumes.iter().map(|volume| format!("--filter=volume={volume}"));
        listed(filters).await
    }

    async fn remove_volume(&self, volume: &str) -> Result<(), EngineError> {
        absent_is_fine(docker(["volume", "rm", volume])).await
    }

    async fn log_lines(&self, target: &Target) -> Vec<String> {
        restore::words(target)
    }

    async fn find(&self, target: &Target) -> Result<Option<Found>, EngineError> {
        let found = find(target.id.as_deref().unwrap_or(&target.container)).await?;
        Ok(found.map(|found| Found {
            id: found.id().to_owned(),
            running: found.pid() != 0 && is_alive(found.pid()),
            ours: is_ours(&found, target),
        }))
    }

    async fn remove(&self, target: &Target, marks: &Marks) -> Result<(), EngineError> {
        let found = find(target.id.as_deref().unwrap_or(&target.container)).await?;
        if found.as_ref().is_some_and(|found| !is_ours(found, target)) {
            return Ok(());
        }
        let id = found.as_ref().map(|found| found.id().to_owned()).or_else(|| target.id.clone());
        if let Some(found) = &found {
            remove_container(found.id()).await?;
        }
        kill_left(&target.container, Marks { id, ..marks.clone() }).await
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        let names = lines(&ask(["volume", "ls", "--quiet"]).await?);
        parsed(&all("volume", &names).await?, volumes)
    }

    async fn make_volume(&self, volume: &Volume, session: SessionId, content: &Path) -> Result<(), EngineError> {
        restore::make_volume(volume, session, content).await
    }
}

fn docker<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Program {
    Program::new("docker", arguments)
}

/// The question about one thing, for messages.
fn command(kind: &str) -> String {
    format!("docker {kind} inspect")
}

fn parsed<T>(answer: &[u8], parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>) -> Result<T, EngineError> {
    parse(answer).map_err(|source| EngineError::Answer { command: "docker".to_owned(), source })
}

/// Asks what must be answered.
async fn ask<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Vec<u8>, EngineError> {
    docker(arguments).answer().await.map_err(failed)
}

/// A client that finds no daemon has an error of its own.
fn failed(error: ProgramError) -> EngineError {
    match error {
        ProgramError::Failed { words, .. } if NO_DAEMON.iter().any(|said| words.contains(said)) => {
            EngineError::NoDaemon { engine: "Docker", words }
        }
        error => error.into(),
    }
}

/// Whether Docker's client says that what it was asked for is not there.
fn is_not_there(error: &ProgramError) -> bool {
    matches!(error, ProgramError::Failed { words, .. } if words.to_lowercase().contains(NOT_THERE))
}

async fn absent_is_fine(program: Program) -> Result<(), EngineError> {
    match program.answer().await {
        Err(error) if !is_not_there(&error) => Err(failed(error)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What Docker says of something, if it is there.
async fn inspect(kind: &str, name: &str) -> Result<Option<Vec<u8>>, EngineError> {
    match docker([kind, "inspect", name]).answer().await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_not_there(&error) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// The same of several, without those that are gone meanwhile.
async fn all(kind: &str, names: &[String]) -> Result<Vec<u8>, EngineError> {
    if names.is_empty() {
        return Ok(b"[]".to_vec());
    }
    let question = docker([kind, "inspect"]).args(names);
    // Of those that it finds it tells all the same.
    Ok(question.ask().await?.answer)
}

async fn find(container: &str) -> Result<Option<Inspected>, EngineError> {
    let answer = inspect("container", container).await?;
    answer.map(|answer| parsed(&answer, answers::container)).transpose()
}

/// Containers, running or not.
async fn listed(filters: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Result<Vec<Container>, EngineError> {
    let question = docker(["ps", "--all", "--no-trunc", "--format", "{{json .}}"]).args(filters);
    parsed(&question.answer().await.map_err(failed)?, answers::listed)
}

/// The daemon's version.
async fn version() -> Result<Option<String>, EngineError> {
    let answer = ask(["version", "--format", "{{.Server.Version}}"]).await?;
    Ok(lines(&answer).into_iter().next())
}

async fn remove_container(id: &str) -> Result<(), EngineError> {
    absent_is_fine(docker(["rm", "--force", id])).await
}

/// The mark of a restore is in the annotations.
fn is_ours(found: &Inspected, target: &Target) -> bool {
    target.made(found.annotations().get(MARK).or(found.labels().get(MARK)).map(String::as_str))
}

fn bundle(found: &Inspected) -> Result<Bundle, EngineError> {
    let bundle = Places::usual().find(NAMESPACE, found.id(), found.pid());
    bundle.ok_or_else(|| EngineError::NoBundle { engine: "Docker", container: found.name().to_owned() })
}

fn source(found: &Inspected, bundle: Option<&Bundle>) -> RunningContainer {
    let pid = found.pid();
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let annotation = |name: &str| bundle?.annotations.get(name).map(String::as_str);
    let runtime = if bundle.is_some_and(|bundle| bundle.is_crun) { "crun" } else { "runc" };
    let (criu_config, own_config) = criu_configs(runtime, annotation);
    let mounted = fs::read(proc.join("mountinfo")).unwrap_or_default();
    // What the runtime itself mounted there is in CRIU's images.
    let shm = bundle.and_then(|bundle| bundle.mounts.get(Path::new(SHM)));
    let shm = shm.filter(|(kind, _)| kind == "bind").map(|(_, source)| PathBuf::from(source));
    let files = Files {
        root: overlay_at_root(&mounted).and_then(layers),
        volumes: found.volumes(),
        elsewhere: BTreeSet::new(),
        shm: shm.filter(|shm| shm.is_dir()),
        // Docker's log stays with Docker.
        printed: None,
    };
    let ties = Ties {
        containers: found.shared_with(),
        user_namespace: has_own_users(&fs::read_to_string(proc.join("uid_map")).unwrap_or_default()),
        ..Ties::default()
    };
    RunningContainer {
        container: found.name().to_owned(),
        id: found.id().to_owned(),
        labels: found.labels(),
        criu_config,
        own_config,
        pid,
        log: None,
        files,
        ties,
    }
}

/// The layers as this process finds them: an overlay names those that are deep down by links, or
/// from the folder above.
fn layers(layers: Layers) -> Option<Layers> {
    let Layers { upper, lower } = layers;
    let real = |layer: &PathBuf| {
        let above = upper.ancestors().skip(1).map(|folder| folder.join(layer));
        above.filter_map(|path| path.canonicalize().ok()).find(|path| path.is_dir())
    };
    // Without the one that it lies over nothing can be told of what a folder hides.
    let lower = lower.iter().map(real).collect::<Option<Vec<_>>>()?;
    Some(Layers { upper: upper.canonicalize().ok().filter(|upper| upper.is_dir())?, lower })
}

/// Whether a map of user ids, as in `/proc/PID/uid_map`, is another than the host's own.
fn has_own_users(map: &str) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    !matches!(fields[..], [] | ["0", "0", "4294967295"])
}

/// Writes what is in the dump besides CRIU's images.
fn describe(found: &Inspected, version: Option<String>, spec: &[u8], images: &Path, work: &Path) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let container = serde_json::to_value(found.describe(version))?;
    write(&images.join("container.json"), &canonical_json(&container)?)?;
    write(&images.join("config.dump"), &canonical_json(&found.config_dump(&rfc3339(since.as_secs())))?)?;
    write(&images.join("spec.dump"), spec)?;
    for name in ["dump.log", "stats-dump"] {
        match File::open(work.join(name)) {
            Ok(file) => {
                let mut head = Vec::new();
                file.take(LOG_HEAD).read_to_end(&mut head)?;
                write(&images.join(name), &head)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Its environment and its arguments may hold secrets.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_real_folders() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().canonicalize().unwrap().join(name);
        for folder in ["l", "up/diff", "low/diff"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        std::os::unix::fs::symlink("../low/diff", at("l/ABC")).unwrap();
        let found = |lower: &str| layers(Layers { upper: at("up/diff"), lower: vec![lower.into()] });
        let expected = Layers { upper: at("up/diff"), lower: vec![at("low/diff")] };
        assert_eq!(found(at("l/ABC").to_str().unwrap()), Some(expected.clone()));
        assert_eq!(found("l/ABC"), Some(expected.clone()), "from the folder above");
        assert_eq!(found("low/diff"), Some(expected));
        assert_eq!(found("gone"), None);
        assert_eq!(layers(Layers { upper: at("gone"), lower: Vec::new() }), None);
    }

    #[test]
    fn users_of_its_own() {
        assert!(!has_own_users("         0          0 4294967295\n"));
        assert!(!has_own_users(""));
        assert!(has_own_users("0 100000 65536\n"));
    }

    #[test]
    fn a_daemon_that_does_not_run_has_no_container() {
        let said = |words: &str| {
            let status = std::process::Command::new("false").status().unwrap();
            ProgramError::Failed { command: "docker".to_owned(), status, words: words.to_owned() }
        };
        for words in [
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct",
        ] {
            assert!(failed(said(words)).is_absent(), "{words}");
        }
        assert!(!failed(said("permission denied")).is_absent());
        assert!(is_not_there(&said("Error response from daemon: No such container: x")));
        assert!(is_not_there(&said("Error: No such object: x")) && !is_not_there(&said("conflict")));
    }
}
