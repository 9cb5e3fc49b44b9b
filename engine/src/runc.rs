//! runc alone: a bundle and a folder of CRIU's images, no engine above it.
//!
//! The bundle is one made for the restore: the caller's own, with the annotation that marks the container. What the
//! container prints goes to `container.log` in the caller's bundle, for there is nobody to hand it to.

pub mod bundle;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use async_trait::async_trait;
use runtime::criu_log::{RESTORE_LOG, log_lines};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::attach::Attachment;
use crate::beside::{OciRuntime, State, make_folder};
use crate::container::{DumpInto, Files, Present, RunningContainer, criu_configs};
use crate::driver::{Engine, Labelled, kill_left};
use crate::error::EngineError;
use crate::processes::Marks;
use crate::program::Program;
use crate::survey::{Container, Survey};
use crate::target::{Found, MARK, RuncPaths, Target};
use crate::ties::{Pod, Ties};

/// The driver.
#[derive(Debug)]
pub(crate) struct Runc;

#[async_trait]
impl Engine for Runc {
    async fn survey(&self, _: &BTreeSet<String>, _: &BTreeSet<String>) -> Result<Survey, EngineError> {
        let version = version(&Program::new("runc", ["--version"]).answer().await?);
        let question = Program::new("runc", ["list", "--format", "json"]);
        let command = question.line();
        let containers = containers(&question.answer().await?);
        let containers = containers.map_err(|source| EngineError::Answer { command, source })?;
        Ok(Survey { version, containers, ..Survey::default() })
    }

    async fn pods(&self) -> Result<Vec<Pod>, EngineError> {
        Ok(Vec::new())
    }

    async fn secrets(&self) -> Result<BTreeSet<String>, EngineError> {
        Ok(BTreeSet::new())
    }

    /// runc has no images; nothing asks for one.
    async fn pull(&self, image: &str) -> Result<String, EngineError> {
        Ok(image.to_owned())
    }

    async fn restore(&self, target: &Target, kill: &CancellationToken) -> Result<(), String> {
        let Some(lone) = &target.lone else { return Err("it has no bundle".to_owned()) };
        make_folder(&lone.work)?;
        let output = OpenOptions::new().append(true).create(true).mode(0o600).open(&lone.output);
        let output = output.map_err(|error| format!("{} cannot be written: {error}", lone.output.display()))?;
        runc().finish(restore_command(target, lone), &lone.work, &output, kill).await
    }

    /// runc's containers have no labels.
    async fn labelled(&self, _: &str, _: &str) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn with_label(&self, _: &str) -> Result<Vec<Labelled>, EngineError> {
        Ok(Vec::new())
    }

    async fn source(&self, container: &str) -> Result<Option<RunningContainer>, EngineError> {
        let Some(state) = runc().state(container).await? else { return Ok(None) };
        let annotation = |name: &str| state.annotations.get(name).map(String::as_str);
        let (criu_config, own_config) = criu_configs("runc", annotation);
        let pid = if state.runs() { state.pid } else { 0 };
        Ok(Some(RunningContainer {
            container: container.to_owned(),
            id: container.to_owned(),
            labels: state.annotations,
            criu_config,
            own_config,
            pid,
            log: None,
            // The root of a bundle is its maker's, and has no layers.
            files: Files::default(),
            ties: Ties::default(),
        }))
    }

    /// A container whose state runc cannot read, since a restore was cut off before that was written, is there all the same.
    async fn present(&self, container: &str) -> Result<Option<Present>, EngineError> {
        let Some(state) = runc().known(container).await? else { return Ok(None) };
        let (id, pid) = (container.to_owned(), if state.runs() { state.pid } else { 0 });
        Ok(Some(Present { container: id.clone(), id, pid, volumes: BTreeSet::new() }))
    }

    async fn dump(
        &self,
        source: &RunningContainer,
        attachment: Attachment,
        into: DumpInto,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        let DumpInto::Folder(folder) = into else { return Err("runc dumps into a folder".to_owned()) };
        runc().dump(&source.id, &folder.join("images"), &folder.join("work"), attachment, kill).await
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        Program::new("runc", ["kill", id, "KILL"]).answer().await?;
        Ok(())
    }

    async fn evict(&self, present: &Present) -> Result<(), EngineError> {
        kill_left(&present.container, Marks { id: Some(present.id.clone()), ..Marks::default() }).await?;
        runc().take_away(&present.id).await
    }

    /// runc has no volumes.
    async fn volume_users(&self, _: &[&str]) -> Result<Vec<Container>, EngineError> {
        Ok(Vec::new())
    }

    async fn remove_volume(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    async fn log_lines(&self, target: &Target) -> Vec<String> {
        target.lone.as_ref().map_or_else(Vec::new, |lone| log_lines(&lone.work.join(RESTORE_LOG)))
    }

    async fn find(&self, target: &Target) -> Result<Option<Found>, EngineError> {
        let Some(state) = runc().state(&target.container).await? else { return Ok(None) };
        let ours = target.made(state.annotations.get(MARK).map(String::as_str));
        Ok(Some(Found { running: state.runs(), ours, id: target.container.clone() }))
    }

    async fn remove(&self, target: &Target, marks: &Marks) -> Result<(), EngineError> {
        let found = self.find(target).await?;
        if found.as_ref().is_some_and(|found| !found.ours) {
            return Ok(());
        }
        kill_left(&target.container, Marks { id: Some(target.container.clone()), ..marks.clone() }).await?;
        match found {
            // Whatever still runs of it is in no control group of its name, and is its runtime's to end.
            Some(_) => runc().take_away(&target.container).await,
            None => runc().forget(&target.container).await,
        }
    }
}

fn runc() -> OciRuntime {
    OciRuntime::named("runc")
}

fn restore_command(target: &Target, lone: &RuncPaths) -> Program {
    let lazily = target.follows.as_ref().map(|_| "--lazy-pages");
    runc()
        .logging(&lone.work)
        .args(["restore", "--detach", "--tcp-established", "--file-locks"])
        .args(lazily)
        .arg("--image-path")
        .arg(&target.dump)
        .arg("--work-path")
        .arg(&lone.work)
        .arg("--bundle")
        .arg(&lone.bundle)
        .arg(&target.container)
        .criu_reads(&target.criu_config)
}

/// `runc version 1.1.15+ds1`, in the first line.
fn version(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.lines().next().unwrap_or_default().trim_start_matches("runc version ").trim().to_owned()
}

/// `runc list`; `null` when there are none.
fn containers(answer: &[u8]) -> Result<Vec<Container>, serde_json::Error> {
    let entries: Option<Vec<Value>> = serde_json::from_slice(answer)?;
    let container = |entry: &Value| {
        let State { id, status, .. } = State::read(entry);
        let id = id?;
        Some(Container { names: vec![id.clone()], id, state: status.unwrap_or_default() })
    };
    Ok(entries.unwrap_or_default().iter().filter_map(container).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runc_1_1_says() {
        assert_eq!(version(b"runc version 1.1.15+ds1\ncommit: 1.1.15+ds1-2+b4\n"), "1.1.15+ds1");
        let answer =
            br#"[{"ociVersion":"1.2.0","id":"lone","pid":570,"status":"running","bundle":"/b","owner":"root"}]"#;
        let expected = Container { id: "lone".to_owned(), names: vec!["lone".to_owned()], state: "running".to_owned() };
        assert_eq!(containers(answer).unwrap(), [expected]);
        assert_eq!(containers(b"null").unwrap(), []);
        let odd = br#"[null, {"pid":3}, {"id":"lone","status":7,"annotations":null,"pid":"x"}]"#;
        let lone = Container { id: "lone".to_owned(), names: vec!["lone".to_owned()], state: String::new() };
        assert_eq!(containers(odd).unwrap(), [lone], "an entry that cannot be read does not hide the others");
        assert!(containers(b"{}").is_err());
    }

    #[test]
    fn the_command_names_everything() {
        let lone = RuncPaths { bundle: "/w/b".into(), work: "/w/work".into(), output: "/b/container.log".into() };
        let target = Target {
            member: "lone".parse().unwrap(),
            engine: crate::EngineKind::Runc,
            container: "lone".to_owned(),
            id: None,
            renamed: false,
            volumes: Vec::new(),
            dump: "/w/images/checkpoint".into(),
            pod: None,
            lone: Some(lone.clone()),
            session: coordinator::SessionId::from_bytes([7; 16]),
            criu_config: "/run/syncpoint/s/lone/criu.conf".into(),
            own_config: "/etc/criu/runc.conf".into(),
            follows: None,
        };
        assert_eq!(
            restore_command(&target, &lone).line(),
            "runc --log /w/work/runc.log restore --detach --tcp-established --file-locks \
             --image-path /w/images/checkpoint --work-path /w/work --bundle /w/b lone"
        );
    }
}
