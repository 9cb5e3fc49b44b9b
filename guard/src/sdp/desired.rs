//! Which processing blocks are to be guarded, and how: worked out from what stood in the Configuration DB at one instant and the
//! containers of this machine. No IO, no clock.
//!
//! ```text
//!   status                                       interval and storage are set       something is missing or unclear
//!   RUNNING                                      Guard                              Unclear: nothing is begun, nothing ended
//!   FAILED                                       RollBack, once for each failure    Unclear
//!   STARTING, WAITING, FINISHED, CANCELLING,
//!   CANCELLED, none                              Leave                              Leave
//! ```
//!
//! What is not understood is never taken for an end: a guard goes on with what it does until it knows better.

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::{ApplicationId, MemberId};
use registry::Reference;
use serde_json::Value;

use super::database::{Database, Found};
use super::etcd::DatabaseError;
use super::ids::BlockId;
use super::settings::{Scope, Setting, SettingValue};

/// The deployment (`/deploy/<id>`) that a container belongs to: `proc-<pb-id>-<name>`.
pub const DEPLOYMENT_LABEL: &str = "io.syncpoint.sdp.deployment";
/// What it does in there.
pub const ROLE_LABEL: &str = "io.syncpoint.sdp.role";
/// Which of those that do the same it is, from 0.
pub const ORDINAL_LABEL: &str = "io.syncpoint.sdp.ordinal";

/// What stood in the Configuration DB at one instant, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// That instant.
    pub revision: i64,
    blocks: BTreeMap<BlockId, Option<State>>,
    settings: BTreeMap<(Scope, Setting), Result<SettingValue, String>>,
}

/// The state of a block, and the revision at which it came to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    text: String,
    changed: i64,
}

/// A container of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name; of no meaning here, since SKA's pods have random ones.
    pub name: String,
    /// What says whose it is.
    pub labels: BTreeMap<String, String>,
}

impl Container {
    /// Adds containers that are known to be members, with the labels that say so, where nothing on the machine is that member.
    pub(super) fn add_missing(containers: &mut Vec<Self>, members: &BTreeMap<MemberId, String>) {
        for (member, name) in members {
            let mut parts = member.as_str().rsplitn(3, '.');
            let (Some(ordinal), Some(role), Some(deployment)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let labels = [(DEPLOYMENT_LABEL, deployment), (ROLE_LABEL, role), (ORDINAL_LABEL, ordinal)];
            let labels: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            if !containers.iter().any(|container| container.member().as_ref() == Some(member)) {
                containers.push(Self { name: name.clone(), labels });
            }
        }
    }

    /// The member that its labels make it.
    fn member(&self) -> Option<MemberId> {
        let [deployment, role, ordinal] =
            [DEPLOYMENT_LABEL, ROLE_LABEL, ORDINAL_LABEL].map(|label| self.labels.get(label));
        let ordinal: u32 = ordinal?.parse().ok()?;
        format!("{}.{}.{ordinal}", deployment?, role?).parse().ok()
    }
}

/// How a block is to be guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPlan {
    /// Called as the block is.
    pub application: ApplicationId,
    /// The time between checkpoints.
    pub interval: Duration,
    /// Where they go.
    pub repository: Reference,
    /// Its containers, by the member that each one is: `<deployment>.<role>.<ordinal>`.
    pub members: BTreeMap<MemberId, String>,
}

/// What is to be done with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Desired {
    /// It is to be guarded.
    Guard(BlockPlan),
    /// It is to be rolled back, if that was not done for this failure yet, and then guarded.
    RollBack {
        /// How it is guarded afterwards.
        plan: BlockPlan,
        /// The failure: the revision at which the block came to be FAILED.
        failure: i64,
    },
    /// It is none of the guard's business, or not any more.
    Leave,
    /// It is not known; whatever is done is to be gone on with.
    Unclear {
        /// In words.
        reason: String,
    },
}

/// What is to be done with every block of the snapshot. A block that was guarded and is not there any more is to be left.
#[must_use]
pub fn desired(snapshot: &Snapshot, containers: &[Container]) -> BTreeMap<BlockId, Desired> {
    let wanted = |(block, state): (&BlockId, &Option<State>)| {
        let desired = match state {
            None => Ok(Desired::Leave),
            Some(state) => judge(snapshot, block, state, containers),
        };
        (block.clone(), desired.unwrap_or_else(|reason| Desired::Unclear { reason }))
    };
    snapshot.blocks.iter().map(wanted).collect()
}

fn judge(snapshot: &Snapshot, block: &BlockId, state: &State, containers: &[Container]) -> Result<Desired, String> {
    let value: Value = serde_json::from_str(&state.text).map_err(|_| "its state is no JSON".to_owned())?;
    match value.get("status").and_then(Value::as_str) {
        Some("RUNNING") => plan(snapshot, block, containers).map(Desired::Guard),
        Some("FAILED") => {
            let plan = plan(snapshot, block, containers)?;
            Ok(Desired::RollBack { plan, failure: state.changed })
        }
        // A block that is being cancelled loses its containers one by one, on purpose.
        Some("STARTING" | "WAITING" | "FINISHED" | "CANCELLING" | "CANCELLED") => Ok(Desired::Leave),
        Some(other) => Err(format!("its status {other:?} is not known")),
        None => Err("its state has no status".to_owned()),
    }
}

fn plan(snapshot: &Snapshot, block: &BlockId, containers: &[Container]) -> Result<BlockPlan, String> {
    let setting = |setting| {
        let own = snapshot.settings.get(&(Scope::Block(block.clone()), setting));
        own.or_else(|| snapshot.settings.get(&(Scope::Default, setting)))
    };
    let unset = |what: Setting| Err(format!("no {what} is set for it, and none by default"));
    let interval = match setting(Setting::Interval) {
        Some(Ok(SettingValue::Interval(interval))) => interval.duration(),
        Some(Err(reason)) => return Err(reason.clone()),
        _ => return unset(Setting::Interval),
    };
    let repository = match setting(Setting::Storage) {
        Some(Ok(SettingValue::Storage(storage))) => storage.repository(block).map_err(|error| error.to_string())?,
        Some(Err(reason)) => return Err(reason.clone()),
        _ => return unset(Setting::Storage),
    };
    let application = block.as_str().parse().map_err(|error| format!("{error}"))?;
    Ok(BlockPlan { application, interval, repository, members: members(block, containers)? })
}

/// The containers of a block's deployments.
fn members(block: &BlockId, containers: &[Container]) -> Result<BTreeMap<MemberId, String>, String> {
    let mut members = BTreeMap::new();
    let ours = format!("proc-{block}-");
    for Container { name, labels } in containers {
        let Some(deployment) = labels.get(DEPLOYMENT_LABEL).filter(|deployment| deployment.starts_with(&ours)) else {
            continue;
        };
        let label = |label: &str| labels.get(label).ok_or_else(|| format!("its container {name} has no label {label}"));
        let (role, ordinal) = (label(ROLE_LABEL)?, label(ORDINAL_LABEL)?);
        let ordinal: u32 = ordinal.parse().map_err(|_| format!("the ordinal of its container {name} is no number"))?;
        let member: MemberId = format!("{deployment}.{role}.{ordinal}")
            .parse()
            .map_err(|error| format!("the labels of its container {name} make no member: {error}"))?;
        if let Some(other) = members.insert(member.clone(), name.clone()) {
            return Err(format!("its containers {other} and {name} are both {member}"));
        }
    }
    match members.is_empty() {
        true => Err("none of its containers is on this machine".to_owned()),
        false => Ok(members),
    }
}

impl Database {
    /// What stands there now.
    ///
    /// # Errors
    /// The database does not answer; what is there is then not known, and nothing may be concluded from it.
    pub async fn now(&self) -> Result<Snapshot, DatabaseError> {
        let (blocks, settings) = (self.blocks(), self.settings());
        let (revision, found) = self.snapshot(&[blocks.clone(), settings.clone()]).await?;
        Ok(Snapshot::read(revision, &found, &blocks, &settings))
    }
}

impl Snapshot {
    /// The blocks that there are.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockId> {
        self.blocks.keys()
    }

    fn read(revision: i64, found: &BTreeMap<String, Found>, blocks: &str, settings: &str) -> Self {
        let mut snapshot = Self { revision, ..Self::default() };
        for (key, Found { value, changed, .. }) in found {
            if let Some(rest) = key.strip_prefix(blocks) {
                let (block, below) = rest.split_once('/').unwrap_or((rest, ""));
                let Ok(block) = block.parse() else { continue };
                let state = snapshot.blocks.entry(block).or_default();
                if below == "state" {
                    *state = Some(State { text: value.clone(), changed: *changed });
                }
            } else if let Some((scope, setting)) = key.strip_prefix(settings).and_then(|rest| rest.split_once('/')) {
                let scope = match scope.parse() {
                    Ok(block) => Scope::Block(block),
                    Err(_) if scope == "default" => Scope::Default,
                    Err(_) => continue,
                };
                let setting = match setting {
                    "interval" => Setting::Interval,
                    "storage" => Setting::Storage,
                    _ => continue,
                };
                let parsed = SettingValue::parse(setting, value).map_err(|reason| format!("{key}: {reason}"));
                snapshot.settings.insert((scope, setting), parsed);
            }
        }
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "pb-mvp01-20200425-00000";
    const DEFAULTS: [(&str, &str); 2] = [("default/interval", "30000"), ("default/storage", "\"host:5000/sdp\"")];

    fn snapshot(state: Option<&str>, settings: &[(&str, &str)]) -> Snapshot {
        let found = |value: &str| Found { value: value.to_owned(), changed: 7, created: 3 };
        let mut entries =
            BTreeMap::from([(format!("/pb/{BLOCK}"), found("{}")), ("/pb/other".to_owned(), found("{}"))]);
        entries.extend(state.map(|state| (format!("/pb/{BLOCK}/state"), found(state))));
        let settings = settings.iter().map(|(key, value)| (format!("/checkpoint/settings/{key}"), found(value)));
        entries.extend(settings);
        Snapshot::read(9, &entries, "/pb/", "/checkpoint/settings/")
    }

    fn container(name: &str, deployment: &str, role: &str, ordinal: &str) -> Container {
        let labels = [(DEPLOYMENT_LABEL, deployment), (ROLE_LABEL, role), (ORDINAL_LABEL, ordinal)];
        let labels = labels.iter().filter(|(_, value)| !value.is_empty());
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Container { name: name.to_owned(), labels }
    }

    fn two() -> Vec<Container> {
        let deployment = format!("proc-{BLOCK}-receive");
        vec![
            container("receive-x7f", &deployment, "receiver", "0"),
            container("receive-q2b", &deployment, "receiver", "1"),
            container("stranger", "proc-pb-mvp01-20200425-00001-receive", "receiver", "0"),
            container("unlabelled", "", "", ""),
        ]
    }

    fn judged(state: Option<&str>, settings: &[(&str, &str)], containers: &[Container]) -> Desired {
        let mut desired = desired(&snapshot(state, settings), containers);
        assert_eq!(desired.len(), 1, "only what has the id of a block");
        desired.pop_first().unwrap().1
    }

    fn status(status: &str) -> String {
        format!("{{\"resources_available\": true, \"status\": \"{status}\"}}")
    }

    fn reason(desired: Desired) -> String {
        let Desired::Unclear { reason } = desired else { panic!("it is clear: {desired:?}") };
        reason
    }

    #[test]
    fn a_block_is_guarded_while_it_runs() {
        let Desired::Guard(plan) = judged(Some(&status("RUNNING")), &DEFAULTS, &two()) else { panic!("it runs") };
        assert_eq!((plan.application.as_str(), plan.interval), (BLOCK, Duration::from_secs(30)));
        assert_eq!(plan.repository.to_string(), format!("host:5000/sdp/{BLOCK}"));
        let members: Vec<_> = plan.members.iter().map(|(member, name)| (member.as_str(), name.as_str())).collect();
        let expected = ["0", "1"].map(|ordinal| format!("proc-{BLOCK}-receive.receiver.{ordinal}"));
        assert_eq!(members, [(expected[0].as_str(), "receive-x7f"), (expected[1].as_str(), "receive-q2b")]);
        for over in ["STARTING", "WAITING", "FINISHED", "CANCELLING", "CANCELLED"] {
            assert_eq!(judged(Some(&status(over)), &DEFAULTS, &two()), Desired::Leave, "{over}");
        }
        assert_eq!(judged(None, &DEFAULTS, &two()), Desired::Leave);
    }

    #[test]
    fn what_a_killed_guard_had_taken_away_is_still_of_its_block() {
        let known = two();
        let Desired::Guard(plan) = judged(Some(&status("RUNNING")), &DEFAULTS, &known) else { panic!("it runs") };
        let mut left = known[1..].to_vec();
        Container::add_missing(&mut left, &plan.members);
        assert_eq!(judged(Some(&status("RUNNING")), &DEFAULTS, &left), Desired::Guard(plan.clone()));
        // One that is there under another name is the one.
        let mut renamed = known;
        renamed[0].name = "receive-new".to_owned();
        let before = renamed.clone();
        Container::add_missing(&mut renamed, &plan.members);
        assert_eq!(renamed, before);
    }

    #[test]
    fn a_failure_is_told_from_the_next_by_its_revision() {
        let failed = judged(Some(&status("FAILED")), &DEFAULTS, &two());
        assert!(matches!(failed, Desired::RollBack { failure: 7, .. }), "{failed:?}");
    }

    #[test]
    fn a_blocks_own_settings_come_first() {
        let interval = format!("{BLOCK}/interval");
        let mut settings = DEFAULTS.to_vec();
        settings.push((&interval, "500"));
        let Desired::Guard(plan) = judged(Some(&status("RUNNING")), &settings, &two()) else { panic!("it runs") };
        assert_eq!(plan.interval, Duration::from_millis(500));
        // One that is not understood is not passed over for the default's.
        settings[2].1 = "often";
        assert!(reason(judged(Some(&status("RUNNING")), &settings, &two())).contains(&interval));
    }

    #[test]
    fn what_is_not_understood_is_no_end() {
        for state in ["", "[]", "{}", "{\"status\": 7}", "{\"status\": \"DREAMING\"}"] {
            reason(judged(Some(state), &DEFAULTS, &two()));
        }
        let running = status("RUNNING");
        assert!(reason(judged(Some(&running), &DEFAULTS[..1], &two())).contains("no storage"));
        assert!(reason(judged(Some(&running), &DEFAULTS[1..], &two())).contains("no interval"));
        assert!(reason(judged(Some(&running), &DEFAULTS, &[])).contains("on this machine"));
        let deployment = format!("proc-{BLOCK}-receive");
        for (role, ordinal, expected) in [
            ("receiver", "0", "are both"),
            ("", "0", ROLE_LABEL),
            ("receiver", "x", "no number"),
            ("a/b", "0", "no member"),
        ] {
            let mut containers = two();
            containers.push(container("third", &deployment, role, ordinal));
            let reason = reason(judged(Some(&running), &DEFAULTS, &containers));
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
