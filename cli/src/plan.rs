//! The plan file of `syncpoint checkpoint`: which containers make up an application, and how it is to be checkpointed.
//!
//! It is TOML, or YAML where its name ends so; its JSON Schema is `docs/checkpoint-plan.schema.json`, its manual `docs/guide/plan.md`. Whatever is wrong
//! with a plan is said with its line, its column and the line itself, before anything is touched.

mod fields;
mod problem;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use engine::EngineKind;
use guard::sdp::Storage;
use image_format::{ApplicationId, MemberId};
use launcher::PageTransport;
use registry::{Policy, Reference};
use toml::Spanned;
use toml::de::DeTable;

use self::fields::{Fields, List};
use self::problem::Problem;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::values::{Age, Time};

/// Bytes of a plan; the most members take some 400 KiB.
const MAX_BYTES: u64 = 1 << 20;
/// As many as a global checkpoint can have.
const MAX_MEMBERS: usize = 4096;
/// What a plan says. A value that exists makes sense by itself: ids and containers are there once, dependencies are members
/// and form no circle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPlan {
    /// The application, if the plan names it.
    pub application: Option<ApplicationId>,
    /// Where the checkpoint goes.
    pub to: Option<Reference>,
    /// The private key that signs it.
    pub key: Option<PathBuf>,
    /// Whether the containers end once the checkpoint is permanent (`true`) or run on.
    pub stop: Option<bool>,
    /// How long members are waited for before anything is frozen.
    pub gather: Option<Duration>,
    /// How long they may be frozen.
    pub freeze: Option<Duration>,
    /// Which way memory takes.
    pub pages: Option<PageTransport>,
    /// How it is guarded.
    pub guard: GuardPlan,
    /// The members, in the order of the file.
    pub members: Vec<PlanMember>,
}

/// What a plan says to `syncpoint guard`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardPlan {
    /// From one checkpoint to the next.
    pub interval: Option<Duration>,
    /// What becomes of the application when the guard is told to stop.
    pub on_terminate: Option<OnTerminate>,
    /// Rollbacks in a row before it is given up.
    pub attempts: Option<u32>,
    /// How long it must run after a rollback for that to have been one.
    pub probation: Option<Duration>,
    /// Which checkpoints stay when a new one is permanent; all of them if it is not said.
    pub retention: Option<Policy>,
    /// Below which places checkpoints may go where somebody else says where to.
    pub storage: Vec<Storage>,
}

/// What becomes of a guarded application when its guard is told to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnTerminate {
    /// It runs on.
    #[default]
    LeaveRunning,
    /// It is checkpointed, and ended once that is permanent.
    Preempt,
}

impl FromStr for OnTerminate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "leave-running" => Ok(Self::LeaveRunning),
            "preempt" => Ok(Self::Preempt),
            _ => Err("it is leave-running or preempt"),
        }
    }
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanMember {
    /// What it is called within the application.
    pub id: MemberId,
    /// Its name or id with its engine; the member's id if the plan does not say.
    pub container: String,
    /// What runs it: its own, or the plan's default.
    pub engine: Option<EngineKind>,
    /// Members that must exist before it when the checkpoint is restored.
    pub depends_on: Vec<MemberId>,
    /// Of runc's containers, the bundle's folder, if the plan says it.
    pub bundle: Option<PathBuf>,
    /// Of runc's containers, whether the files of its root filesystem are cared for elsewhere.
    pub without_rootfs: bool,
}

/// Reads a plan. Relative paths in it are relative to its own folder.
pub fn read(path: &Path) -> Result<CheckpointPlan, CommandError> {
    read_as(path, Extent::Whole)
}

/// Reads what is the same for many applications: a plan that names none, nor its members, interval and repository.
pub fn read_pattern(path: &Path) -> Result<CheckpointPlan, CommandError> {
    read_as(path, Extent::Pattern)
}

/// How much a plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    Pattern,
}

fn read_as(path: &Path, extent: Extent) -> Result<CheckpointPlan, CommandError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.doing(|| format!("the plan {} cannot be read", path.display()))?;
    let bad = |reason: &str| CommandError::new(Exit::Usage, format!("{} is no plan: {reason}", path.display()));
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad("it has more than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| bad("it is no UTF-8 text"))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, Language::of(path), extent, folder).map_err(|problem| problem.in_file(path, &text))
}

/// What a plan is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Toml,
    Yaml,
}

impl Language {
    /// By the end of its name.
    fn of(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Toml,
        }
    }

    fn read(self, text: &str) -> Result<Spanned<DeTable<'_>>, Problem> {
        match self {
            Self::Toml => {
                DeTable::parse(text).map_err(|error| Problem::new(error.span().unwrap_or(0..0), error.message()))
            }
            Self::Yaml => yaml::parse(text),
        }
    }
}

/// Reads the text of a plan that lies in `folder`.
fn parse(text: &str, language: Language, extent: Extent, folder: &Path) -> Result<CheckpointPlan, Problem> {
    let table = language.read(text)?;
    let mut fields = Fields::new(table.get_ref(), table.span(), "the plan");
    let engine = fields.parsed("engine")?;
    let whole = extent == Extent::Whole;
    let application = if whole { fields.parsed("application")? } else { None };
    let to = if whole { fields.parsed("to")? } else { None };
    let key = fields.path("key", folder)?;
    let stop = stop(&mut fields)?;
    let (mut gather, mut freeze) = (None, None);
    if let Some(mut deadlines) = fields.table("deadlines", "deadlines")? {
        gather = deadlines.with("gather", duration)?;
        freeze = deadlines.with("freeze", duration)?;
        deadlines.finish()?;
    }
    let pages = fields.with("pages", pages)?;
    let interval = if whole { fields.with("interval", interval)? } else { None };
    let mut guard = GuardPlan { interval, ..GuardPlan::default() };
    guard.on_terminate = fields.with("on-terminate", str::parse::<OnTerminate>)?;
    if let Some(mut limits) = fields.table("guard", "guard")? {
        guard.attempts = limits.number("attempts", 1..=1000)?;
        guard.probation = limits.with("probation", duration)?;
        limits.finish()?;
    }
    if let Some(rules) = fields.table("retention", "retention")? {
        guard.retention = Some(retention(rules)?);
    }
    guard.storage = if whole { Vec::new() } else { fields.list("storage")?.values };
    let list = if whole { fields.members()? } else { Vec::new() };
    fields.finish()?;
    let members = list.into_iter().map(|fields| member(fields, engine, folder)).collect::<Result<Vec<_>, _>>()?;
    check(&members)?;
    let members = members.into_iter().map(|placed| placed.member).collect();
    Ok(CheckpointPlan { application, to, key, stop, gather, freeze, pages, guard, members })
}

/// What is kept; a plan that says so must say it, since everything else is removed.
fn retention(mut rules: Fields<'_>) -> Result<Policy, Problem> {
    let at = rules.at.clone();
    let mut some = |key| Ok::<_, Problem>(rules.number(key, 1..=1_000_000)?.unwrap_or(0));
    let (last, hourly) = (some("keep-last")?, some("keep-hourly")?);
    let (daily, weekly) = (some("keep-daily")?, some("keep-weekly")?);
    let age = |text: &str| text.parse().map(|Age(age)| age).map_err(|error| format!("{text:?} is {error}"));
    let within = rules.with("keep-within", age)?;
    let tags = rules.list("keep-tag")?.values;
    rules.finish()?;
    let policy = Policy { last, within, hourly, daily, weekly, tags };
    match policy.is_empty() {
        true => Err(Problem::new(at, "retention has no rule, so that only what is pinned would stay")),
        false => Ok(policy),
    }
}

/// The two words for one choice; whoever says both must mean the same.
fn pages(text: &str) -> Result<PageTransport, &'static str> {
    text.parse().map_err(|_| "it is stream, tls or disk")
}

fn stop(fields: &mut Fields<'_>) -> Result<Option<bool>, Problem> {
    let leave_running = fields.bool("leave-running")?;
    let stop = fields.bool("stop")?;
    match (stop, leave_running) {
        (Some((stop, at)), Some((leave_running, _))) if stop == leave_running => Err(Problem::new(
            at,
            format!("stop and leave-running are both {stop}, and one is the opposite of the other"),
        )),
        (Some((stop, _)), _) => Ok(Some(stop)),
        (None, leave_running) => Ok(leave_running.map(|(leave_running, _)| !leave_running)),
    }
}

/// A member, and where the parts of it stand that others may contradict.
struct Placed {
    member: PlanMember,
    id: Range<usize>,
    container: Range<usize>,
    depends_on: Vec<Range<usize>>,
}

fn member(mut fields: Fields<'_>, engine: Option<EngineKind>, folder: &Path) -> Result<Placed, Problem> {
    let (id, id_at): (MemberId, _) = match fields.name.clone() {
        Some((name, at)) => (name.parse().map_err(|error| Problem::new(at.clone(), error))?, at),
        None => {
            let missing = Problem::new(fields.at.clone(), "a member without an id");
            fields.placed("id")?.ok_or(missing)?
        }
    };
    let (container, container_at) = match fields.text("container")? {
        Some(("", at)) => return Err(Problem::new(at, "the name of a container is empty")),
        Some((container, at)) => (container.to_owned(), at),
        None => (id.to_string(), id_at.clone()),
    };
    let own_engine = fields.placed("engine")?;
    let engine = own_engine.map(|(engine, _)| engine).or(engine);
    let List { values: depends_on, places } = fields.list("depends-on")?;
    let bundle_at = fields.place("bundle");
    let bundle = fields.path("bundle", folder)?;
    let without_rootfs = fields.bool("without-rootfs")?;
    fields.finish()?;
    if let Some(engine) = engine.filter(|engine| *engine != EngineKind::Runc) {
        if let Some((true, at)) = &without_rootfs {
            let message =
                format!("the member {id} runs with {engine}, of whose containers the root filesystem is always taken");
            return Err(Problem::new(at.clone(), message));
        }
        if let Some(at) = bundle_at {
            return Err(Problem::new(at, format!("the member {id} has a bundle, but runs with {engine}"))
                .hint("bundles are runc's; the member's engine is runc, or it has no bundle"));
        }
    }
    let without_rootfs = without_rootfs.is_some_and(|(without, _)| without);
    let member = PlanMember { id, container, engine, depends_on, bundle, without_rootfs };
    Ok(Placed { member, id: id_at, container: container_at, depends_on: places })
}

/// What no member can get wrong alone.
fn check(members: &[Placed]) -> Result<(), Problem> {
    if members.len() > MAX_MEMBERS {
        let (count, at) = (members.len(), members[MAX_MEMBERS].id.clone());
        return Err(Problem::new(at, format!("{count} members; at most {MAX_MEMBERS} are allowed")));
    }
    let mut ids = BTreeSet::new();
    let mut containers = BTreeMap::new();
    for Placed { member, id, container, .. } in members {
        if !ids.insert(&member.id) {
            return Err(Problem::new(id.clone(), format!("the member {} is there twice", member.id)));
        }
        if let Some(other) = containers.insert((member.engine, &member.container), &member.id) {
            let message = format!("the container {:?} is the member {other} already", member.container);
            return Err(Problem::new(container.clone(), message));
        }
    }
    for Placed { member, depends_on, .. } in members {
        let mut seen = BTreeSet::new();
        for (other, at) in member.depends_on.iter().zip(depends_on) {
            let problem = |message| Problem::new(at.clone(), message);
            if other == &member.id {
                return Err(problem(format!("{other} depends on itself")));
            }
            if !ids.contains(other) {
                let close = problem::closest(other.as_str(), ids.iter().map(|id| id.as_str()));
                return Err(problem(format!("{} depends on {other}, and no such member", member.id)).meant(close));
            }
            if !seen.insert(other) {
                return Err(problem(format!("{} depends on {other} twice", member.id)));
            }
        }
    }
    check_circles(members)
}

/// Takes away members that depend on nobody left, until there are none; of what remains, every chain ends in a circle.
fn check_circles(members: &[Placed]) -> Result<(), Problem> {
    let positions: BTreeMap<_, _> = members.iter().enumerate().map(|(at, placed)| (&placed.member.id, at)).collect();
    let depends_on: Vec<Vec<usize>> = members
        .iter()
        .map(|placed| placed.member.depends_on.iter().filter_map(|id| positions.get(id).copied()).collect())
        .collect();
    let mut needed_by = vec![Vec::new(); members.len()];
    let mut left: Vec<usize> = depends_on.iter().map(Vec::len).collect();
    for (member, others) in depends_on.iter().enumerate() {
        others.iter().for_each(|other| needed_by[*other].push(member));
    }
    let mut free: Vec<usize> = (0..members.len()).filter(|member| left[*member] == 0).collect();
    while let Some(member) = free.pop() {
        for other in &needed_by[member] {
            left[*other] -= 1;
            if left[*other] == 0 {
                free.push(*other);
            }
        }
    }
    let Some(first) = (0..members.len()).find(|member| left[*member] > 0) else {
        return Ok(());
    };
    let next = |member: usize| depends_on[member].iter().position(|other| left[*other] > 0);
    let mut path = vec![first];
    loop {
        let last = path[path.len() - 1];
        // Whatever is left depends on something that is left.
        let Some(place) = next(last) else {
            return Ok(());
        };
        let follows = depends_on[last][place];
        if let Some(begin) = path.iter().position(|member| *member == follows) {
            let circle = path[begin..].iter().chain([&follows]).map(|member| members[*member].member.id.as_str());
            let message = format!("dependencies in a circle: {}", circle.collect::<Vec<_>>().join(" -> "));
            return Err(Problem::new(members[last].depends_on[place].clone(), message));
        }
        path.push(follows);
    }
}

/// Anything shorter would be a checkpoint that never ends.
fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < Duration::from_millis(100) => Err("an interval is at least 100ms".to_owned()),
        time => Ok(time),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse().map(|Time(time)| time).map_err(|error| format!("{text:?} is {error}"))
}

#[cfg(test)]
mod tests;
