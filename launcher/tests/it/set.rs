//! The demo application under a fake engine, and what its checkpoints and restores are told and where they go.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use coordinator::Deadlines;
use engine::{Engine, EngineKind, Engines};
use image_format::{Descriptor, MemberId};
use launcher::{
    CheckpointError, CheckpointOptions, CheckpointReport, ContainerSpec, Destination, Host, MemberStep, Observer,
    PageTransport, Phase, RestoreError, RestoreOptions, RestoreReport, Signer, checkpoint, restore,
};
use registry::sign::PrivateKey;
use registry::{Create, Location, Progress, Put, Selector, Settings, Store, Trust};
use tempfile::TempDir;
use tokio::time::Duration;

use super::fake::FakeEngine;

/// The members of the demo application, in the order of their ids.
pub const MEMBERS: [&str; 3] = ["auditor", "consumer", "producer"];

/// Longer than any step takes, shorter than a person waits.
const LONG: Duration = Duration::from_secs(20);

/// The application, and all that its checkpoints need.
pub struct Set {
    top: TempDir,
    pub engine: Arc<FakeEngine>,
    pub store: Arc<dyn Store>,
    pub to: Destination,
    pub checkpoint: CheckpointOptions,
    pub restore: RestoreOptions,
    pub told: Told,
}

impl Set {
    /// Its three containers run.
    pub async fn running() -> Self {
        let top = tempfile::tempdir().expect("a folder");
        let engine = Arc::new(FakeEngine::new(&top.path().join("engine")));
        MEMBERS.iter().for_each(|member| engine.start(member));
        let driver: Arc<dyn Engine> = engine.clone();
        let host = Host { engines: Engines::all(&driver), root: true, criu: Some("99.0".to_owned()) };
        let layout = Location::Layout(top.path().join("store"));
        let store = registry::open(&layout, &Settings::default(), Create::Layout).await.expect("a layout");
        let key = Arc::new(PrivateKey::generate().expect("a key"));
        let trust = Trust::Keys(vec![key.public_key()]);
        let to = Destination {
            store: Arc::clone(&store),
            reference: layout.to_string(),
            tag: None,
            signer: Some(Signer { key, identity: Some("demo".to_owned()) }),
            trust: trust.clone(),
        };
        let (work_dir, run_root) = (top.path().join("work"), top.path().join("run"));
        let deadlines = Deadlines { gather: LONG, hold: LONG };
        let container = |name: &&str| ContainerSpec {
            engine: Some(EngineKind::Podman),
            depends_on: Some(Vec::new()),
            ..ContainerSpec::named(*name)
        };
        let checkpoint = CheckpointOptions {
            host: host.clone(),
            members: MEMBERS.iter().map(container).collect(),
            work_dir: work_dir.clone(),
            run_root: run_root.clone(),
            deadlines,
            pages: PageTransport::Disk,
            ..CheckpointOptions::new("demo".parse().expect("an id"), hook())
        };
        let restore =
            RestoreOptions { host, work_dir, run_root, deadlines, attempts: 1, ..RestoreOptions::new(hook(), trust) };
        Self { top, engine, store, to, checkpoint, restore, told: Told::default() }
    }

    /// Takes a checkpoint.
    pub async fn take(&self) -> Result<CheckpointReport, CheckpointError> {
        checkpoint(&self.to, &self.checkpoint, &self.told).await
    }

    /// Takes a checkpoint and ends the containers: what is there to be restored.
    pub async fn taken_and_gone(&self) -> Descriptor {
        let report = self.take().await.expect("a checkpoint");
        self.engine.clear();
        self.store.resolve(&Selector::Tag(report.tag)).await.expect("it is permanent")
    }

    /// Restores it.
    pub async fn bring_back(&self, root: &Descriptor) -> Result<RestoreReport, RestoreError> {
        restore(Arc::clone(&self.store), root.clone(), &self.restore, &self.told).await
    }

    /// The tags in the store, but for those of signatures.
    pub async fn tags(&self) -> Vec<String> {
        let tags = self.store.tags().await.expect("tags");
        tags.iter().map(ToString::to_string).filter(|tag| !tag.ends_with(".sig")).collect()
    }

    /// What sessions and attempts have left.
    pub fn leftovers(&self) -> Vec<String> {
        let folders = ["work", "run"].map(|folder| self.top.path().join(folder));
        let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        // Locks stay, since somebody else may wait for them.
        names.filter(|name| !name.ends_with("lock") && name != "claims").collect()
    }
}

/// `examples/hook.rs`, which cargo builds beside the tests.
fn hook() -> PathBuf {
    let own = std::env::current_exe().expect("this program");
    let deps = own.parent().and_then(|deps| deps.parent()).expect("target/debug/deps");
    let hook = deps.join("examples/hook");
    assert!(hook.exists(), "{} is built by `cargo test`, or by `--examples`", hook.display());
    hook
}

/// Keeps what it is told.
#[derive(Debug, Default)]
pub struct Told {
    phases: Mutex<Vec<Phase>>,
    warnings: Mutex<Vec<String>>,
    steps: Mutex<Vec<(MemberId, MemberStep)>>,
}

impl Told {
    pub fn phases(&self) -> Vec<Phase> {
        self.phases.lock().unwrap().clone()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }

    /// Who did this, in the order in which it was told.
    pub fn who(&self, step: &MemberStep) -> Vec<MemberId> {
        let steps = self.steps.lock().unwrap();
        steps.iter().filter(|(_, its)| its == step).map(|(member, _)| member.clone()).collect()
    }
}

impl Observer for Told {
    fn phase(&self, phase: Phase) {
        self.phases.lock().unwrap().push(phase);
    }

    fn member(&self, member: &MemberId, step: MemberStep) {
        self.steps.lock().unwrap().push((member.clone(), step));
    }

    fn warning(&self, warning: &str) {
        self.warnings.lock().unwrap().push(warning.to_owned());
    }

    fn note(&self, _: &str) {}
}

impl Progress for Told {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: &str, _: u64) {}
    fn end(&self, _: &str, _: Option<Put>) {}
}
