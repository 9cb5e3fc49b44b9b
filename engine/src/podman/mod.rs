//! podman, as root, through its command line.
//!
//! The member's archive is podman's own export. From an archive podman keeps the container's id, name, addresses and MAC;
//! from a checkpoint image it would not keep addresses that it chose itself.
//!
//! While podman restores a container it holds that container's lock: `podman ps` and `podman inspect` of it wait until
//! CRIU is through. So nothing here is asked of podman between the start of a restore and its end.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self};
use std::io::{self};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use coordinator::SessionId;
use futures_util::future::try_join_all;
use runtime::criu_log::{RESTORE_LOG, log_lines};
use tokio_util::sync::CancellationToken;

use self::answers::{Inspected, Seen};
use crate::answers::{mountpoint, volumes};
use crate::attach::Attachment;
use crate::beside::OciRuntime;
use crate::container::{DumpInto, Files, Layers, Present, RunningContainer, criu_configs};
use crate::driver::{Engine, Labelled, kill_left};
use crate::error::EngineError;
use crate::processes::{Marks, is_alive};
use crate::program::{Program, ProgramError};
use crate::survey::{Container, Survey};
use crate::target::{Found, MARK, Target};
use crate::ties::{Pod, Ties};
use crate::volumes::{Volume, own};
use runtime::mounts::{remove_folder, unmount_cgyards};
use runtime::words::chain;

/// How long filling a volume may take.
const IMPORT: Duration = Duration::from_secs(3600);

/// Options of volumes that podman lists besides those that it was given (podman 5.4,
/// `libpod/runtime_volume_common.go`).
const DERIVED: [&str; 5] = ["UID", "GID", "SIZE", "INODES", "NOQUOTA"];

/// How long pulling a base image may take.
const PULL: Duration = Duration::from_secs(1800);

/// The file in the container's folder that podman's archives take along.
const PRINTED: &str = "ctr.log";

/// How often a container is tried to be removed.
const REMOVALS: u32 = 3;

/// The driver.
#[derive(Debug)]
pub(crate) struct Podman;

#[async_trait]
impl Engine for Podman {
    async fn survey(&self, networks: &BTreeSet<String>, images: &BTreeSet<String>) -> Result<Survey, EngineError> {
        let (info, containers, volumes, networks, images) =
            tokio::try_join!(
                ask(["info", "--format", "json"], answers::info),
                ask(["ps", "--all", "--external", "--format", "json"], answers::containers),
                self.volumes(),
                try_join_all(networks.iter().map(async |network| {
                    Ok((network.clone(), inspect("network", network, answers::network).await?))
                })),
                try_join_all(images.iter().map(async |image| Ok((image.clone(), exists("image", image).await?)))),
            )?;
        let there = |(name, found): (String, Option<_>)| Some((name, found?));
        Ok(Survey {
            version: info.version.unwrap_or_default(),
            runtime: info.runtime,
            storage: info.storage,
            containers,
            volumes: volumes.into_iter().map(|volume| (volume.name.clone(), volume)).collect(),
            networks: networks.into_iter().filter_map(there).collect(),
            images: images.into_iter().filter_map(|(image, there)| there.then_some(image)).collect(),
            ..Survey::default()
        })
    }

    async fn pods(&self) -> Result<Vec<Pod>, EngineError> {
        ask(["pod", "ps", "--format", "json"], answers::pods).await
    }

    async fn secrets(&self) -> Result<BTreeSet<String>, EngineError> {
        ask(["secret", "ls", "--format", "{{.Name}}"], answers::secrets).await
    }

    async fn pull(&self, image: &str) -> Result<String, EngineError> {
        let answer = podman(["pull", "--quiet", image]).answer_within(PULL).await?;
        Ok(String::from_utf8_lossy(&answer).trim().to_owned())
    }

    async fn restore(&self, target: &Target, kill: &CancellationToken) -> Result<(), String> {
        restore_command(target).finish(Stdio::null(), kill).await
    }

    async fn labelled(&self, label: &str, value: &str) -> Result<Vec<String>, EngineError> {
        let filter = format!("label={label}={value}");
        let found = ask(["ps", "--filter", &filter, "--format", "json"], answers::containers).await?;
        Ok(found.into_iter().map(|container| container.id).collect())
    }

    async fn with_label(&self, label: &str) -> Result<Vec<Labelled>, EngineError> {
        let filter = format!("label={label}");
        ask(["ps", "--all", "--filter", &filter, "--format", "json"], answers::labels).await
    }

    async fn source(&self, container: &str) -> Result<Option<RunningContainer>, EngineError> {
        let Some(inspected) = inspect("container", container, answers::container).await? else { return Ok(None) };
        let mut source = source(inspected);
        if let Some(tie) = &mut source.ties.pod {
            let pod = self.pods().await?.into_iter().find(|pod| pod.id == tie.id);
            tie.name = pod.as_ref().map(|pod| pod.name.clone());
            let infra = pod.and_then(|pod| pod.infra);
            tie.alone = infra.is_none();
            infra.map(|infra| source.ties.containers.remove(&infra));
        }
        Ok(Some(source))
    }

    async fn present(&self, container: &str) -> Result<Option<Present>, EngineError> {
        Ok(see(container).await?.map(|seen| present(seen, container)))
    }

    async fn dump(
        &self,
        source: &RunningContainer,
        attachment: Attachment,
        into: DumpInto,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        let DumpInto::Pipe(pipe) = into else { return Err("podman dumps into a pipe".to_owned()) };
        if let Some(images) = images(source) {
            let shown = images.display().to_string();
            let cleared = tokio::task::spawn_blocking(move || clear(&images)).await.map_err(std::io::Error::other);
            cleared.flatten().map_err(|error| format!("cannot clear {shown} of an earlier checkpoint: {error}"))?;
        }
        dump_command(source).attached(attachment).finish(pipe.into(), kill).await
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        // Its state is kept; nobody is to begin with tidying up.
        podman(["stop", "--time", "0", id]).answer().await?;
        Ok(())
    }

    async fn evict(&self, present: &Present) -> Result<(), EngineError> {
        kill_left(&present.container, Marks { id: Some(present.id.clone()), ..Marks::default() }).await?;
        remove_container(&present.id).await
    }

    async fn volume_users(&self, volumes: &[&str]) -> Result<Vec<Container>, EngineError> {
        let filters = volumes.iter().map(|volume| format!("--filter=volume={volume}")).collect::<Vec<_>>();
        let question = ["ps", "--all", "--format", "json"].into_iter().chain(filters.iter().map(String::as_str));
        ask(question, answers::containers).await
    }

    async fn dependencies(&self, containers: &[Container]) -> Result<BTreeMap<String, Vec<String>>, EngineError> {
        if containers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids = containers.iter().map(|container| container.id.as_str());
        let question = podman(["container", "inspect"].into_iter().chain(ids));
        let command = question.line();
        // One that is gone by now, or that only the storage knows, makes podman fail; it tells of the others all the same.
        let ran = question.ask().await?;
        answers::dependencies(&ran.answer).map_err(|source| EngineError::Answer { command, source })
    }

    async fn remove_volume(&self, volume: &str) -> Result<(), EngineError> {
        let removed = podman(["volume", "rm", volume]).answer().await;
        if removed.is_err() && !exists("volume", volume).await? {
            return Ok(());
        }
        removed.map(drop).map_err(EngineError::from)
    }

    async fn log_lines(&self, target: &Target) -> Vec<String> {
        if let Some(work) = &target.follows {
            let log = work.join(RESTORE_LOG);
            return if log.exists() { log_lines(&log) } else { Vec::new() };
        }
        match find(target).await {
            // What goes wrong before there is a container is in podman's own words.
            Ok(None) => Vec::new(),
            Ok(Some(found)) if !is_ours(&found, target) => Vec::new(),
            // podman tells its runtime to write CRIU's log beside its configuration.
            Ok(Some(found)) => {
                found.config_path.map_or_else(Vec::new, |config| log_lines(&config.with_file_name(RESTORE_LOG)))
            }
            Err(error) => vec![format!("CRIU's log cannot be found: {}", chain(&error))],
        }
    }

    async fn find(&self, target: &Target) -> Result<Option<Found>, EngineError> {
        Ok(find(target).await?.map(|seen| found(seen, target)))
    }

    async fn find_all(&self, targets: &[&Target]) -> Result<Vec<Option<Found>>, EngineError> {
        let question = ["container", "inspect"].into_iter().chain(targets.iter().map(|target| name(target)));
        match ask(question, answers::all_seen).await {
            Ok(all) if all.len() == targets.len() && all.iter().all(Option::is_some) => {
                Ok(all.into_iter().zip(targets).map(|(seen, target)| Some(found(seen?, target))).collect())
            }
            // One of them is missing, or cannot be looked at: which one?
            _ => try_join_all(targets.iter().map(|target| self.find(target))).await,
        }
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        ask(["volume", "ls", "--format", "json"], volumes).await
    }

    async fn make_volume(&self, volume: &Volume, session: SessionId, content: &Path) -> Result<(), EngineError> {
        create_volume(volume, session).answer().await?;
        if volume.is_mount() {
            podman(["volume", "mount", &volume.name]).answer().await?;
        }
        podman(["volume", "import", &volume.name]).arg(content).answer_within(IMPORT).await?;
        let folder = ask(["volume", "inspect", &volume.name], mountpoint).await?;
        let content = content.to_owned();
        let owned = tokio::task::spawn_blocking(move || own(&folder, &content)).await.map_err(io::Error::other);
        owned.flatten().map_err(|source| EngineError::Volume { volume: volume.name.clone(), source })
    }

    async fn release_volume(&self, volume: &Volume) -> Result<(), EngineError> {
        if volume.is_mount() {
            podman(["volume", "unmount", &volume.name]).answer().await?;
        }
        Ok(())
    }

    async fn remove(&self, target: &Target, marks: &Marks) -> Result<(), EngineError> {
        let found = see(name(target)).await?;
        if found.as_ref().is_some_and(|found| !is_ours(found, target)) {
            return Ok(());
        }
        let id = found.as_ref().map(|found| found.id.clone()).or_else(|| target.id.clone());
        kill_left(&target.container, Marks { id: id.clone(), ..marks.clone() }).await?;
        if let Some(found) = &found {
            remove_container(&found.id).await?;
        }
        if let Some(id) = id {
            let runtime = found.and_then(|found| found.runtime);
            let runtime = if runtime.as_deref() == Some("crun") { "crun" } else { "runc" };
            OciRuntime::named(runtime).forget(&id).await?;
        }
        Ok(())
    }
}

fn podman<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Program {
    Program::new("podman", arguments)
}

/// `--name` and `--tcp-established` exclude each other in podman. `--file-locks`: without it CRIU leaves out locks that a
/// dump has, without a word.
fn restore_command(target: &Target) -> Program {
    let command = podman(["container", "restore", "--file-locks", "--import"]).arg(&target.dump);
    // Where memory follows, the container's annotation names the same file.
    let command = if target.follows.is_some() { command } else { command.criu_reads(&target.criu_config) };
    // They are there, with their content: podman would bring neither their options nor one that two
    // members share.
    let command = if target.volumes.is_empty() { command } else { command.arg("--ignore-volumes") };
    let command = match &target.pod {
        Some(pod) => command.args(["--pod", pod]),
        None => command,
    };
    if target.renamed {
        command.args(["--ignore-static-ip", "--ignore-static-mac", "--name", &target.container])
    } else {
        command.arg("--tcp-established")
    }
}

/// What podman makes of `o` itself is left out.
fn create_volume(volume: &Volume, session: SessionId) -> Program {
    let labels = volume.labels.iter().filter(|(key, _)| *key != MARK);
    let labels = labels.map(|(key, value)| format!("--label={key}={value}"));
    let mark = [format!("--label={MARK}={session}")];
    let given = volume.options.iter().filter(|(key, _)| !DERIVED.contains(&key.as_str()));
    let options = given.map(|(key, value)| format!("--opt={key}={value}"));
    podman(["volume", "create"]).args(labels.chain(mark).chain(options)).arg(&volume.name)
}

/// The archive is taken from the standard input's place, which is the writing end of a pipe: it goes when either side dies, as a
/// named pipe would not. What is left out, podman would read only when the tasks run again.
fn dump_command(source: &RunningContainer) -> Program {
    podman(["container", "checkpoint", "--leave-running", "--tcp-established", "--file-locks"])
        .args(["--ignore-rootfs", "--ignore-volumes", "--compress", "none", "--export", "/dev/stdin"])
        .arg(&source.id)
}

/// Where CRIU writes its images: beside its log.
fn images(source: &RunningContainer) -> Option<PathBuf> {
    source.log.as_ref().map(|log| log.with_file_name("checkpoint"))
}

/// Removes what an earlier checkpoint of a container that ran on left in its folder. CRIU would write over a part of it, and
/// podman export the rest too: images of processes that are gone.
fn clear(images: &Path) -> std::io::Result<()> {
    match remove_folder(images) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn source(found: Inspected) -> RunningContainer {
    let (criu_config, own_config) = criu_configs(&found.runtime, |name| found.annotation(name));
    let userdata = found.oci_config_path.parent().unwrap_or(Path::new("/"));
    let data = found.graph_driver.data.clone().unwrap_or_default();
    let root = data.get("UpperDir").filter(|_| found.graph_driver.name == "overlay").map(|upper| Layers {
        upper: upper.into(),
        lower: data.get("LowerDir").map(|lower| lower.split(':').map(PathBuf::from).collect()).unwrap_or_default(),
    });
    let volumes = found.mounts.iter().filter(|mount| mount.kind == "volume");
    let files = Files {
        root,
        volumes: volumes.map(|volume| (volume.name.clone(), volume.source.clone())).collect(),
        elsewhere: BTreeSet::new(),
        // A container that shares another's has none here.
        shm: Some(userdata.join("shm")).filter(|shm| shm.is_dir()),
        printed: Some(userdata.join(PRINTED)).filter(|log| log.is_file()),
    };
    let pid = if found.state.status == "running" { found.state.pid } else { 0 };
    let (labels, log) = (found.labels(), Some(userdata.join("dump.log")));
    let mounted = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let ties = Ties { secrets: secrets(&mounted, &found.id), ..found.ties() };
    RunningContainer { container: found.name, id: found.id, labels, criu_config, own_config, pid, log, files, ties }
}

/// Where secrets are mounted in a container, by its `/proc/PID/mountinfo`: podman mounts each from a file of its own.
fn secrets(mounted: &str, container: &str) -> BTreeMap<String, String> {
    let folder = format!("/{container}/userdata/secrets/");
    let secret = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let (_, name) = root.split_once(&folder)?;
        Some((place.to_owned(), name.to_owned()))
    };
    mounted.lines().filter_map(secret).collect()
}

/// Asks, and reads the answer with `parse`.
async fn ask<'a, T>(
    arguments: impl IntoIterator<Item = &'a str>,
    parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<T, EngineError> {
    let question = podman(arguments);
    let command = question.line();
    parse(&question.answer().await?).map_err(|source| EngineError::Answer { command, source })
}

/// podman's `exists` commands end with 0 for yes and 1 for no.
async fn exists(kind: &str, name: &str) -> Result<bool, EngineError> {
    let question = podman([kind, "exists", name]);
    let command = question.line();
    let ran = question.ask().await?;
    match ran.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(ProgramError::Failed { command, status: ran.status, words: ran.words }.into()),
    }
}

/// The container's id, which stays when somebody renames it, or its name where the id is podman's to choose.
fn name(target: &Target) -> &str {
    target.id.as_deref().unwrap_or(&target.container)
}

async fn find(target: &Target) -> Result<Option<Seen>, EngineError> {
    see(name(target)).await
}

fn found(seen: Seen, target: &Target) -> Found {
    Found { running: runs(&seen) && is_alive(seen.pid), ours: is_ours(&seen, target), id: seen.id }
}

fn present(seen: Seen, container: &str) -> Present {
    let pid = if runs(&seen) { seen.pid } else { 0 };
    let Seen { id, name, volumes, .. } = seen;
    Present { id, container: name.unwrap_or_else(|| container.to_owned()), pid, volumes }
}

/// Whether it runs, as far as podman says in which state it is; otherwise its first process tells.
fn runs(seen: &Seen) -> bool {
    seen.status.as_deref().is_none_or(|status| status == "running")
}

/// The container of this name or id, if there is one. One whose restore was cut off before its configuration was written whole cannot be
/// inspected; podman lists it all the same.
async fn see(container: &str) -> Result<Option<Seen>, EngineError> {
    let seen = inspect("container", container, answers::seen).await;
    let Err(error @ (EngineError::Answer { .. } | EngineError::Program(ProgramError::Failed { .. }))) = seen else {
        return seen;
    };
    let list = ["ps", "--all", "--external", "--no-trunc", "--format", "json"];
    match ask(list, |answer| answers::listed(answer, container)).await {
        Ok(Some(listed)) => Ok(Some(listed)),
        Ok(None) | Err(_) => Err(error),
    }
}

/// What podman says of something, if it is there. Only where it says nothing is it asked whether that is so: each podman takes a tenth of
/// a second of a processor.
async fn inspect<T>(
    kind: &str,
    name: &str,
    parse: impl FnOnce(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<Option<T>, EngineError> {
    let inspected = ask([kind, "inspect", name], parse).await;
    if inspected.is_err() && !exists(kind, name).await? {
        return Ok(None);
    }
    inspected.map(Some)
}

/// After a killed podman or CRIU the first removal can fail at what is half there, such as a network, and yet remove it.
async fn remove_container(id: &str) -> Result<(), EngineError> {
    unmount_cgyards(id).map_err(|source| EngineError::Kill { container: id.to_owned(), source })?;
    let mut removed = Ok(Vec::new());
    for _ in 0..REMOVALS {
        removed = podman(["rm", "--force", "--time", "0", id]).answer().await;
        if removed.is_ok() || !exists("container", id).await? {
            return Ok(());
        }
    }
    removed.map(drop).map_err(EngineError::from)
}

/// The mark of a restore is in the annotations. Where podman does not say which a container has, it is known by its id: nobody else was to
/// make one of that id, which was not there before.
fn is_ours(found: &Seen, target: &Target) -> bool {
    match &found.annotations {
        Some(_) => target.made(found.annotation(MARK)),
        None => target.id.as_deref() == Some(&found.id),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_renamed_container_gives_up_its_connections_and_addresses() {
        let target = |renamed| Target {
            member: "auditor".parse().unwrap(),
            engine: crate::EngineKind::Podman,
            container: "clone".to_owned(),
            id: None,
            renamed,
            volumes: Vec::new(),
            pod: None,
            dump: "/w/auditor.tar".into(),
            lone: None,
            session: coordinator::SessionId::from_bytes([7; 16]),
            criu_config: "/run/syncpoint/s/auditor/criu.conf".into(),
            own_config: "/etc/criu/runc.conf".into(),
            follows: None,
        };
        assert_eq!(
            restore_command(&target(false)).line(),
            "podman container restore --file-locks --import /w/auditor.tar --tcp-established"
        );
        let shared = Volume { stored_in: Some("first".parse().unwrap()), ..Volume::named("data") };
        assert_eq!(
            restore_command(&Target { volumes: vec![shared], ..target(false) }).line(),
            "podman container restore --file-locks --import /w/auditor.tar --ignore-volumes --tcp-established",
            "a volume is made once, whoever of those that have it is restored first"
        );
        assert_eq!(
            restore_command(&target(true)).line(),
            "podman container restore --file-locks --import /w/auditor.tar --ignore-static-ip --ignore-static-mac --name clone"
        );
    }

    #[test]
    fn a_volume_is_made_with_what_its_maker_said_and_the_mark_of_this_restore() {
        let texts = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let volume = Volume {
            labels: texts(&[(MARK, "another restore"), ("made", "by=hand")]),
            options: texts(&[("SIZE", "2M"), ("UID", "7"), ("device", "tmpfs"), ("o", "size=2M,uid=7")]),
            ..Volume::named("data")
        };
        let session = SessionId::from_bytes([7; 16]);
        assert_eq!(
            create_volume(&volume, session).line(),
            format!(
                "podman volume create --label=made=by=hand --label={MARK}={session} --opt=device=tmpfs \
                 --opt=o=size=2M,uid=7 data"
            )
        );
    }

    #[test]
    fn a_volumes_folder_gets_its_mode_back() {
        let top = tempfile::tempdir().unwrap();
        let (folder, content) = (top.path().join("folder"), top.path().join("content.tar"));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1701)).unwrap();
        image_format::files::archive_folder(&folder, &mut File::create(&content).unwrap()).unwrap();
        let mode = || fs::metadata(&folder).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        own(&folder, &content).unwrap();
        assert_eq!(mode(), 0o1701);
        // An archive that says nothing of the folder leaves it as it is.
        fs::write(&content, [0; 1024]).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        own(&folder, &content).unwrap();
        assert_eq!(mode(), 0o755);
        fs::write(&content, "no archive").unwrap();
        own(&folder, &content).unwrap_err();
    }

    #[test]
    fn places_of_secrets_are_read_from_mounts() {
        let mounted = "93 60 0:44 / / rw - overlay overlay rw\n\
            100 93 0:45 /containers/storage/overlay-containers/1ec5/userdata/run/secrets /run/secrets rw - tmpfs run rw\n\
            106 100 254:0 /x/overlay-containers/1ec5/userdata/secrets/sec /run/secrets/sec rw - ext4 /dev/vda rw\n\
            107 93 254:0 /x/overlay-containers/1ec5/userdata/secrets/key /etc/key rw - ext4 /dev/vda rw\n";
        let expected = [("/run/secrets/sec", "sec"), ("/etc/key", "key")];
        let expected = expected.map(|(place, name)| (place.to_owned(), name.to_owned()));
        assert_eq!(secrets(mounted, "1ec5"), expected.into());
        assert_eq!(secrets("", "1ec5"), BTreeMap::new());
    }

    #[test]
    fn nothing_of_an_earlier_checkpoint_is_left() {
        let top = tempfile::tempdir().unwrap();
        let images = top.path().join("checkpoint");
        std::fs::create_dir(&images).unwrap();
        for name in ["pagemap-7.img", "pages-3.img"] {
            std::fs::write(images.join(name), b"of a process that is gone").unwrap();
        }
        clear(&images).unwrap();
        clear(&images).unwrap();
        assert!(!images.exists());
    }

    #[test]
    fn a_source_is_what_podman_says_and_crun_reads_another_file() {
        let answer = |runtime: &str, annotations: &str, driver: &str| {
            format!(
                r#"[{{"Id":"241c","Name":"auditor","State":{{"Status":"running","Pid":12}},"OCIRuntime":"{runtime}",
                "OCIConfigPath":"/no/userdata/config.json","Config":{{"Annotations":{annotations},"Labels":{{"a":"b"}}}},
                "GraphDriver":{{"Name":"{driver}","Data":{{"UpperDir":"/u","LowerDir":"/a:/b"}}}},
                "Mounts":[{{"Type":"volume","Name":"data","Source":"/v"}},{{"Type":"bind","Source":"/h"}}]}}]"#
            )
        };
        let read = |answer: String| source(answers::container(answer.as_bytes()).unwrap());
        let found = read(answer("runc", "null", "overlay"));
        assert_eq!(found.criu_config, Path::new("/etc/criu/runc.conf"));
        assert_eq!((found.container.as_str(), found.pid, found.labels["a"].as_str()), ("auditor", 12, "b"));
        let layers = Layers { upper: "/u".into(), lower: vec!["/a".into(), "/b".into()] };
        assert_eq!(found.files.root, Some(layers));
        assert_eq!(found.files.volumes, [("data".to_owned(), "/v".into())].into());
        assert_eq!(found.log.as_deref(), Some(Path::new("/no/userdata/dump.log")));
        assert_eq!(read(answer("crun", "null", "overlay")).criu_config, Path::new("/etc/criu/crun.conf"));
        let annotated = read(answer("runc", r#"{"org.criu.config":"/c"}"#, "vfs"));
        assert_eq!((annotated.criu_config.as_path(), annotated.files.root), (Path::new("/c"), None));
        assert_eq!(annotated.own_config, Path::new("/c"));
        let lazily = read(answer("runc", r#"{"org.criu.config":"/run/s","io.syncpoint.criu-config":"/c"}"#, "vfs"));
        assert_eq!((lazily.criu_config.as_path(), lazily.own_config.as_path()), (Path::new("/run/s"), Path::new("/c")));
    }
}
