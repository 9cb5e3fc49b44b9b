//! OCI runtimes, called by this program: alone, or beside an engine that knows nothing of it, on
//! the root where the engine's own runtime keeps its containers.

mod shim;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) use self::shim::{Bundle, Places};
use crate::answers::texts;
use crate::attach::Attachment;
use crate::error::EngineError;
use crate::processes::is_alive;
use crate::program::{Program, Ran, ended, words_of};
use runtime::mounts::unmount_all;
use runtime::words::chain;

/// The runtime's own log, in the work folder.
const RUNTIME_LOG: &str = "runc.log";

/// What runc and crun say of a container that they do not know.
const NOT_THERE: &str = "does not exist";

/// A runtime's program, and where it keeps its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OciRuntime {
    program: Cow<'static, str>,
    /// The folder with the states of its containers, if it is not the runtime's own choice.
    root: Option<PathBuf>,
}

/// `runc state`, or an entry of `runc list`: what it does not say is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) id: Option<String>,
    pub(crate) pid: i32,
    pub(crate) status: Option<String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl State {
    pub(crate) fn read(answer: &Value) -> Self {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            id: text("id"),
            pid: answer.get("pid").and_then(Value::as_i64).and_then(|pid| pid.try_into().ok()).unwrap_or_default(),
            status: text("status"),
            annotations: texts(answer, "/annotations"),
        }
    }

    /// Whether it runs, as far as the runtime says in which state it is; otherwise its first
    /// process tells.
    pub(crate) fn runs(&self) -> bool {
        self.status.as_deref().map_or_else(|| is_alive(self.pid), |status| status == "running")
    }
}

impl OciRuntime {
    /// A runtime that keeps its containers where it wants.
    pub(crate) fn named(program: &'static str) -> Self {
        Self { program: Cow::Borrowed(program), root: None }
    }

    /// An engine's runtime.
    fn at(program: String, root: PathBuf) -> Self {
        Self { program: Cow::Owned(program), root: Some(root) }
    }

    /// Its program, on its root.
    pub(crate) fn command(&self) -> Program {
        let command = Program::new(self.program.clone(), [""; 0]);
        match &self.root {
            Some(root) => command.arg("--root").arg(root),
            None => command,
        }
    }

    /// The same, with its own log in the work folder.
    pub(crate) fn logging(&self, work: &Path) -> Program {
        self.command().arg("--log").arg(work.join(RUNTIME_LOG))
    }

    /// Runs a command that logs into the work folder; a failure is told with the runtime's own
    /// words.
    pub(crate) async fn finish(
        &self,
        command: Program,
        work: &Path,
        output: &File,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        let status = command.run_until(output, kill).await.map_err(|error| chain(&error))?;
        if status.success() {
            return Ok(());
        }
        let said = File::open(work.join(RUNTIME_LOG)).and_then(|log| words_of(&log)).unwrap_or_default();
        Err(ended(&self.program, status, &said))
    }

    /// Dumps a container, which runs on: CRIU's images into one new folder, logs into another.
    pub(crate) async fn dump(
        &self,
        id: &str,
        images: &Path,
        work: &Path,
        attachment: Attachment,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        for folder in [images, work] {
            make_folder(folder)?;
        }
        let output = tempfile::tempfile().map_err(|error| format!("no temporary file: {error}"))?;
        self.finish(self.dump_command(id, images, work).attached(attachment), work, &output, kill).await
    }

    fn dump_command(&self, id: &str, images: &Path, work: &Path) -> Program {
        self.logging(work)
            .args(["checkpoint", "--leave-running", "--tcp-established", "--file-locks", "--image-path"])
            .arg(images)
            .arg("--work-path")
            .arg(work)
            .arg(id)
    }

    /// What it says of a container; `None` if it has none of that id.
    pub(crate) async fn state(&self, id: &str) -> Result<Option<State>, EngineError> {
        let question = self.command().args(["state", id]);
        let command = question.line();
        let ran = question.ask().await?;
        if !ran.status.success() {
            return Ok(None);
        }
        let answer = serde_json::from_slice(&ran.answer).map_err(|source| EngineError::Answer { command, source })?;
        Ok(Some(State::read(&answer)))
    }

    /// Whether it knows a container, and what it can say of it: of one whose restore was cut off
    /// before its state was written, nothing.
    pub(crate) async fn known(&self, id: &str) -> Result<Option<State>, EngineError> {
        let ran = self.command().args(["state", id]).ask().await?;
        if !ran.status.success() && ran.words.contains(NOT_THERE) {
            return Ok(None);
        }
        Ok(Some(state_of(&ran)))
    }

    /// Makes it forget a container whose processes are gone; what still runs is not ours and stays.
    ///
    /// A runtime that was killed in the middle of a restore leaves its folder without a state that
    /// it could read, and in it the mount that CRIU was given as the root. Then the container can
    /// neither be restored again nor deleted.
    pub(crate) async fn forget(&self, id: &str) -> Result<(), EngineError> {
        let ran = match self.command().args(["state", id]).ask().await {
            Err(error) if error.is_missing() => return Ok(()),
            ran => ran?,
        };
        if ran.status.success() && state_of(&ran).runs() { Ok(()) } else { self.take_away(id).await }
    }

    /// Ends what still runs of a container, and makes the runtime forget it.
    pub(crate) async fn take_away(&self, id: &str) -> Result<(), EngineError> {
        let root = Path::new(id).join("criu-root");
        unmount_all(|point| point.ends_with(&root))
            .map_err(|source| EngineError::Kill { container: id.to_owned(), source })?;
        self.command().args(["delete", "--force", id]).answer().await?;
        Ok(())
    }
}

fn state_of(ran: &Ran) -> State {
    serde_json::from_slice(&ran.answer).map(|answer| State::read(&answer)).unwrap_or_default()
}

/// Makes a folder that only its owner may enter, and those above it.
pub(crate) fn make_folder(folder: &Path) -> Result<(), String> {
    let made: io::Result<()> = DirBuilder::new().mode(0o700).recursive(true).create(folder);
    made.map_err(|error| format!("{} cannot be made: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_with_a_field_less_is_a_state() {
        let whole = br#"{"ociVersion":"1.2.0","id":"lone","pid":570,"status":"running","annotations":{"a":"b","c":1}}"#;
        let whole: Value = serde_json::from_slice(whole).unwrap();
        assert!(State::read(&whole).runs());
        for key in whole.as_object().unwrap().keys() {
            let mut answer = whole.clone();
            answer[key] = Value::Null;
            let nulled = State::read(&answer);
            answer.as_object_mut().unwrap().remove(key);
            assert_eq!(State::read(&answer), nulled, "{key}");
        }
        let mut alive = whole;
        alive["status"] = Value::Null;
        alive["pid"] = std::process::id().into();
        assert!(State::read(&alive).runs(), "its process says so");
        assert!(!State::read(&Value::Null).runs());
    }

    #[test]
    fn an_engines_container_is_dumped_on_the_engines_root() {
        let line = |runtime: &OciRuntime| runtime.dump_command("1a", "/w/images".as_ref(), "/w/work".as_ref()).line();
        let rest = "--log /w/work/runc.log checkpoint --leave-running --tcp-established --file-locks \
                    --image-path /w/images --work-path /w/work 1a";
        assert_eq!(line(&OciRuntime::named("runc")), format!("runc {rest}"));
        let docker = OciRuntime::at("/opt/crun".to_owned(), "/run/docker/runtime-crun/moby".into());
        assert_eq!(line(&docker), format!("/opt/crun --root /run/docker/runtime-crun/moby {rest}"));
    }
}
