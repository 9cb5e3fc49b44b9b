//! An engine of whose containers only the first process is real.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use engine::attach::Attachment;
use engine::{
    Container, DumpInto, Engine, EngineError, Files, Found, Labelled, Layers, Marks, Network, Pod, Present,
    RunningContainer, Survey, Target, Ties, is_alive,
};
use image_format::Digest;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Runs a session's hook at each of CRIU's actions, as CRIU does, and ends with the first that says no.
///
/// A restored task tells in the file `$ran` that it ran one instruction, and is let go of when all hooks said yes.
const CRIU: &str = r#"
export CRTOOLS_IMAGE_DIR=/proc/$$/fd/9
act() {
  [ "$1" != "$fails" ] || exit 3
  CRTOOLS_SCRIPT_ACTION=$1 "$hook" || exit 1
}
case $kind in
dump)
  export CRTOOLS_INIT_PID=$init
  for action in pre-dump network-lock post-dump; do act $action; done
  ;;
restore)
  act pre-restore
  sh -c 'kill -STOP $$; : >"$ran"; exec sleep 1000' >/dev/null 2>&1 &
  export CRTOOLS_INIT_PID=$!
  echo $! >"$pid"
  trap 'kill -KILL $CRTOOLS_INIT_PID; exit 1' EXIT
  act post-restore
  act pre-resume
  trap - EXIT
  kill -CONT $CRTOOLS_INIT_PID
  act post-resume
  ;;
esac
"#;

/// What goes wrong with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// CRIU fails before the hook of this action.
    At(&'static str),
    /// The engine is content, and CRIU has run no hook.
    WithoutHooks,
    /// Its first process ends while it is dumped.
    Dies,
    /// It was restored, and its engine says that it does not run.
    SaysThatItDoesNotRun,
    /// Its engine never comes to CRIU.
    Hangs,
}

#[derive(Debug)]
struct FakeContainer {
    id: String,
    pid: i32,
    /// The session that made it.
    mark: Option<String>,
    /// The process, if this process has to collect it.
    _child: Option<Child>,
}

/// The engine.
#[derive(Debug)]
pub struct FakeEngine {
    folder: PathBuf,
    containers: Mutex<BTreeMap<String, FakeContainer>>,
    faults: Mutex<BTreeMap<String, Fault>>,
}

impl FakeEngine {
    /// An engine without containers that keeps its files in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), containers: Mutex::default(), faults: Mutex::default() }
    }

    /// Starts a container of this name.
    pub fn start(&self, name: &str) {
        let child = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("a process");
        let pid = child.id().expect("it was not waited for").cast_signed();
        let id = id_of(name);
        for folder in [self.upper(name), self.lower(name)] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        std::fs::write(self.upper(name).join("written"), name).expect("a file");
        let container = FakeContainer { id, pid, mark: None, _child: Some(child) };
        self.containers.lock().unwrap().insert(name.to_owned(), container);
    }

    /// Lets this go wrong from now on, or nothing any more.
    pub fn fail(&self, name: &str, fault: Option<Fault>) {
        let mut faults = self.faults.lock().unwrap();
        match fault {
            Some(fault) => drop(faults.insert(name.to_owned(), fault)),
            None => drop(faults.remove(name)),
        }
    }

    /// Ends all containers.
    pub fn clear(&self) {
        self.containers.lock().unwrap().values().for_each(|container| kill(container.pid));
        self.containers.lock().unwrap().clear();
    }

    /// The names of the containers that are there.
    pub fn names(&self) -> Vec<String> {
        self.containers.lock().unwrap().keys().cloned().collect()
    }

    /// The names of those whose first process runs.
    pub fn running(&self) -> Vec<String> {
        let containers = self.containers.lock().unwrap();
        let running = containers.iter().filter(|(_, container)| is_alive(container.pid));
        running.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a restored task of this name ever ran an instruction.
    pub fn ever_ran(&self, name: &str) -> bool {
        self.folder.join(name).join("ran").exists()
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("upper")
    }

    fn lower(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("lower")
    }

    fn fault(&self, name: &str) -> Option<Fault> {
        self.faults.lock().unwrap().get(name).copied()
    }

    /// CRIU for this container, which finds its hook in the configuration `config`.
    fn criu(&self, name: &str, kind: &str, config: &Path) -> io::Result<Command> {
        let fails = match self.fault(name) {
            Some(Fault::At(action)) => action,
            // CRIU finds nobody to seize.
            Some(Fault::Dies) => "network-lock",
            _ => "",
        };
        let lines = std::fs::read_to_string(config)?;
        let hook = lines.lines().find_map(|line| line.strip_prefix("action-script="));
        let mut criu = Command::new("sh");
        criu.args(["-c", CRIU])
            .env("kind", kind)
            .env("hook", hook.ok_or_else(|| io::Error::other("the configuration names no hook"))?)
            .env("fails", fails)
            .env("ran", self.folder.join(name).join("ran"))
            .env("pid", self.folder.join(name).join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(criu)
    }

    /// Runs CRIU to its end.
    async fn run(&self, mut criu: Command, kill: &CancellationToken) -> Result<(), String> {
        let running = criu.spawn().map_err(|error| error.to_string())?;
        let output = tokio::select! {
            output = running.wait_with_output() => output.map_err(|error| error.to_string())?,
            () = kill.cancelled() => return Err("it was killed".to_owned()),
        };
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("CRIU failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
        }
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// 64 hexadecimal digits, as engines have them.
fn id_of(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string().trim_start_matches("sha256:").to_owned()
}

/// Ends a first process; a container whose restore failed early has none.
fn kill(pid: i32) {
    if pid <= 0 {
        return;
    }
    // One that is gone is fine.
    let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
}

/// The dump of the demo application's member of this name.
pub fn dump_of(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../fixtures/dumps/set/{name}.tar.zst"));
    zstd::decode_all(File::open(path).expect("a fixture")).expect("a fixture")
}

#[async_trait]
impl Engine for FakeEngine {
    async fn survey(&self, networks: &BTreeSet<String>, images: &BTreeSet<String>) -> Result<Survey, EngineError> {
        let containers = self.containers.lock().unwrap();
        let container = |(name, container): (&String, &FakeContainer)| Container {
            id: container.id.clone(),
            names: vec![name.clone()],
            state: "running".to_owned(),
        };
        Ok(Survey {
            version: "99".to_owned(),
            containers: containers.iter().map(container).collect(),
            networks: networks.iter().map(|network| (network.clone(), Network::default())).collect(),
            images: images.clone(),
            ..Survey::default()
        })
    }

    async fn pods(&self) -> Result<Vec<Pod>, EngineError> {
        Ok(Vec::new())
    }

    async fn secrets(&self) -> Result<BTreeSet<String>, EngineError> {
        Ok(BTreeSet::new())
    }

    async fn pull(&self, image: &str) -> Result<String, EngineError> {
        Ok(image.to_owned())
    }

    async fn restore(&self, target: &Target, kill: &CancellationToken) -> Result<(), String> {
        let name = &target.container;
        match self.fault(name) {
            Some(Fault::WithoutHooks) => return Ok(()),
            Some(Fault::Hangs) => {
                kill.cancelled().await;
                return Err("it was killed".to_owned());
            }
            _ => {}
        }
        assert!(target.dump.is_file(), "the archive is here before its engine is started");
        std::fs::create_dir_all(self.folder.join(name)).map_err(|error| error.to_string())?;
        let criu = self.criu(name, "restore", &target.criu_config).map_err(|error| error.to_string())?;
        let restored = self.run(criu, kill).await;
        let pid = std::fs::read_to_string(self.folder.join(name).join("pid")).unwrap_or_default();
        let pid = pid.trim().parse().unwrap_or(0);
        let (id, mark) = (id_of(name), Some(target.session.to_string()));
        self.containers.lock().unwrap().insert(name.clone(), FakeContainer { id, pid, mark, _child: None });
        restored
    }

    async fn labelled(&self, _: &str, _: &str) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn with_label(&self, _: &str) -> Result<Vec<Labelled>, EngineError> {
        Ok(Vec::new())
    }

    async fn source(&self, name: &str) -> Result<Option<RunningContainer>, EngineError> {
        let containers = self.containers.lock().unwrap();
        let Some(container) = containers.get(name) else { return Ok(None) };
        let config = self.folder.join(name).join("criu.conf");
        Ok(Some(RunningContainer {
            container: name.to_owned(),
            id: container.id.clone(),
            labels: BTreeMap::new(),
            criu_config: config.clone(),
            own_config: config,
            pid: if is_alive(container.pid) { container.pid } else { 0 },
            log: None,
            files: Files {
                root: Some(Layers { upper: self.upper(name), lower: vec![self.lower(name)] }),
                ..Files::default()
            },
            ties: Ties::default(),
        }))
    }

    async fn present(&self, name: &str) -> Result<Option<Present>, EngineError> {
        let containers = self.containers.lock().unwrap();
        let present = |container: &FakeContainer| Present {
            id: container.id.clone(),
            container: name.to_owned(),
            pid: container.pid,
            volumes: BTreeSet::new(),
        };
        Ok(containers.get(name).map(present))
    }

    async fn dump(
        &self,
        source: &RunningContainer,
        attachment: Attachment,
        into: DumpInto,
        kill: &CancellationToken,
    ) -> Result<(), String> {
        let DumpInto::Pipe(mut pipe) = into else { return Err("this engine writes archives".to_owned()) };
        let name = &source.container;
        match self.fault(name) {
            Some(Fault::Dies) => self::kill(source.pid),
            Some(Fault::Hangs) => {
                kill.cancelled().await;
                return Err("it was killed".to_owned());
            }
            _ => {}
        }
        if self.fault(name) != Some(Fault::WithoutHooks) {
            let mut criu = self.criu(name, "dump", attachment.cover.reads()).map_err(|error| error.to_string())?;
            criu.env("init", source.pid.to_string());
            self.run(criu, kill).await?;
        }
        let archive = dump_of(name);
        let written = tokio::task::spawn_blocking(move || pipe.write_all(&archive)).await;
        written.map_err(io::Error::other).flatten().map_err(|error| error.to_string())
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        let containers = self.containers.lock().unwrap();
        containers.values().filter(|container| container.id == id).for_each(|container| kill(container.pid));
        Ok(())
    }

    async fn evict(&self, present: &Present) -> Result<(), EngineError> {
        let evicted = self.containers.lock().unwrap().remove(&present.container);
        evicted.iter().for_each(|container| kill(container.pid));
        Ok(())
    }

    async fn volume_users(&self, _: &[&str]) -> Result<Vec<Container>, EngineError> {
        Ok(Vec::new())
    }

    async fn remove_volume(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    async fn log_lines(&self, target: &Target) -> Vec<String> {
        vec![format!("CRIU's log of {}", target.container)]
    }

    async fn find(&self, target: &Target) -> Result<Option<Found>, EngineError> {
        let containers = self.containers.lock().unwrap();
        let found = |container: &FakeContainer| Found {
            id: container.id.clone(),
            running: is_alive(container.pid) && self.fault(&target.container) != Some(Fault::SaysThatItDoesNotRun),
            ours: target.made(container.mark.as_deref()),
        };
        Ok(containers.get(&target.container).map(found))
    }

    async fn remove(&self, target: &Target, _: &Marks) -> Result<(), EngineError> {
        let mut containers = self.containers.lock().unwrap();
        let ours = |container: &FakeContainer| target.made(container.mark.as_deref());
        if containers.get(&target.container).is_some_and(ours)
            && let Some(container) = containers.remove(&target.container)
        {
            kill(container.pid);
        }
        Ok(())
    }
}

/// Waits until something is so, which is soon.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never {what}"));
}
