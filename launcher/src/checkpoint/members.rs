//! Which containers are which members of the application, from what was asked for and from the containers' labels.
//!
//! | | label | else |
//! |---|---|---|
//! | application | `io.syncpoint.application` | the project of compose |
//! | member | `io.syncpoint.member` | the service of compose, with its number from 2 on; else the container's name |
//! | dependencies | `io.syncpoint.depends-on`, as `a,b` | the services of compose that are members too |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use engine::{EngineError, EngineKind, Engines, Files, MARK, RunningContainer, Volume};
use image_format::{ApplicationId, MemberId, annotation};

use super::options::{CheckpointOptions, ContainerSpec};

const APPLICATION: &str = "io.syncpoint.application";
const MEMBER: &str = "io.syncpoint.member";
const DEPENDS_ON: &str = "io.syncpoint.depends-on";
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
/// `db:service_started:false,queue:service_healthy:true`.
const SERVICES: &str = "com.docker.compose.depends_on";

/// Engines whose containers have labels and volumes, in the order in which they are asked.
pub(super) const LABELLING: [EngineKind; 2] = [EngineKind::Podman, EngineKind::Docker];

/// A member whose container runs.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) depends_on: Vec<MemberId>,
    /// Whether all of these must be members; otherwise those that are none do not count.
    pub(crate) strict_dependencies: bool,
    pub(crate) engine: EngineKind,
    pub(crate) source: RunningContainer,
    pub(crate) bundle: Option<PathBuf>,
    /// Its volumes. One that several members have is stored with the first of them.
    pub(crate) volumes: Vec<Volume>,
}

impl Member {
    /// What its image says of it besides.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let pod = self.source.ties.pod.as_ref().and_then(|pod| pod.name.clone());
        let pod = pod.map(|name| (annotation::POD, name));
        // They are texts: it cannot fail.
        let volumes = serde_json::to_string(&self.volumes).ok().filter(|_| !self.volumes.is_empty());
        let volumes = volumes.map(|volumes| (annotation::VOLUMES, volumes));
        pod.into_iter().chain(volumes).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Its files, with the volumes that are stored with it.
    pub(crate) fn files(&self) -> Files {
        let mut files = self.source.files.clone();
        for volume in self.volumes.iter().filter(|volume| volume.stored_in.is_some()) {
            files.volumes.remove(&volume.name);
            files.elsewhere.insert(volume.name.clone());
        }
        files
    }
}

/// Why the members of an application are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    /// An engine was asked and did not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No container bears the application's label.
    #[error("no running container has the label {APPLICATION}={application} or {PROJECT}={application}")]
    Nobody {
        /// The application.
        application: ApplicationId,
    },
    /// A container that is asked for is not there.
    #[error("there is no container {container}{}", engine.map(|engine| format!(" in {engine}")).unwrap_or_default())]
    Missing {
        /// Its name.
        container: String,
        /// Where it was looked for, if not everywhere.
        engine: Option<EngineKind>,
    },
    /// A container that is asked for does not run.
    #[error("container {container} does not run, so there is nothing of it to dump")]
    NotRunning {
        /// Its name.
        container: String,
    },
    /// It is labelled as another application's.
    #[error("container {container} belongs to the application {label}, by its label {APPLICATION}")]
    Foreign {
        /// Its name.
        container: String,
        /// The other application.
        label: String,
    },
    /// Its name or labels are no ids.
    #[error("container {container} has {text:?} for {what}, which is none")]
    BadId {
        /// Its name.
        container: String,
        /// For what.
        what: &'static str,
        /// The text, at most 160 characters.
        text: String,
    },
    /// Two containers of one member, or one container twice.
    #[error("member {member} is container {first} and container {second}")]
    Twice {
        /// The member.
        member: MemberId,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A dependency on nobody.
    #[error("member {member} depends on {missing}, which is no member")]
    Dependency {
        /// The member.
        member: MemberId,
        /// On whom.
        missing: MemberId,
    },
    /// What a container of runc writes would be lost.
    #[error(
        "the root filesystem of container {container} is not runc's but its maker's, and is not taken along: memory and files would not be of one instant"
    )]
    Root {
        /// Its name.
        container: String,
    },
    /// What a container wrote cannot be taken while it stands frozen.
    #[error(
        "container {container} keeps what it writes with another storage driver than overlay, whose files cannot be told from its image's"
    )]
    Storage {
        /// Its name.
        container: String,
    },
}

/// Finds out who the members of this host are, in the order of their ids. On whom they depend is not settled yet.
pub(crate) async fn resolve(options: &CheckpointOptions) -> Result<Vec<Member>, MembersError> {
    let engines = &options.host.engines;
    let mut wanted = options.members.clone();
    if wanted.is_empty() {
        wanted = labelled(engines, options).await?;
    }
    if wanted.is_empty() && options.elsewhere.is_none() {
        return Err(MembersError::Nobody { application: options.application.clone() });
    }
    let mut members: BTreeMap<MemberId, Member> = BTreeMap::new();
    for wanted in wanted {
        let found = engines.source(&wanted.container, wanted.engine).await?;
        let (engine, source) = found
            .ok_or_else(|| MembersError::Missing { container: wanted.container.clone(), engine: wanted.engine })?;
        let container = source.container.clone();
        if let Some(label) = source.labels.get(APPLICATION).filter(|label| **label != options.application.as_str()) {
            return Err(MembersError::Foreign { container, label: label.clone() });
        }
        if source.pid == 0 {
            return Err(MembersError::NotRunning { container });
        }
        if engine != EngineKind::Runc && source.files.root.is_none() {
            return Err(MembersError::Storage { container });
        }
        if engine == EngineKind::Runc && !wanted.without_rootfs {
            return Err(MembersError::Root { container });
        }
        let id = match wanted.id {
            Some(id) => id,
            None => member_id(&source)?,
        };
        let (depends_on, strict_dependencies) = match wanted.depends_on {
            Some(depends_on) => (depends_on, true),
            None => dependencies(&source)?,
        };
        let bundle = wanted.bundle;
        if let Some(other) = members.get(&id) {
            let (first, second) = (other.source.container.clone(), container);
            return Err(MembersError::Twice { member: id, first, second });
        }
        members.insert(
            id.clone(),
            Member { id, depends_on, strict_dependencies, engine, source, bundle, volumes: Vec::new() },
        );
    }
    let mut containers: BTreeMap<(EngineKind, String), MemberId> = BTreeMap::new();
    for member in members.values() {
        if let Some(first) = containers.insert((member.engine, member.source.id.clone()), member.id.clone()) {
            let (first, second) = (first.to_string(), format!("{} again", member.source.container));
            return Err(MembersError::Twice { member: member.id.clone(), first, second });
        }
    }
    let mut members: Vec<Member> = members.into_values().collect();
    for kind in LABELLING {
        let mut own: Vec<&mut Member> = members.iter_mut().filter(|member| member.engine == kind).collect();
        if own.iter().any(|member| !member.source.files.volumes.is_empty()) {
            share(&mut own, &engines.get(kind).volumes().await?);
        }
    }
    Ok(members)
}

/// The containers with an application's label, of the engine that is meant or of every one that there is.
async fn labelled(engines: &Engines, options: &CheckpointOptions) -> Result<Vec<ContainerSpec>, MembersError> {
    let application = options.application.as_str();
    let mut found: BTreeMap<String, EngineKind> = BTreeMap::new();
    let (mut answered, mut absent) = (false, None);
    for kind in LABELLING.into_iter().filter(|kind| options.engine.is_none_or(|engine| engine == *kind)) {
        for label in [APPLICATION, PROJECT] {
            match engines.get(kind).labelled(label, application).await {
                // Where `docker` is podman by another name, podman was asked first.
                Ok(ids) => {
                    for id in ids {
                        found.entry(id).or_insert(kind);
                    }
                }
                Err(error) if error.is_absent() => {
                    absent = absent.or(Some(error));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            answered = true;
        }
    }
    match absent.filter(|_| !answered) {
        Some(error) => Err(error.into()),
        None => Ok(found
            .into_iter()
            .map(|(id, kind)| ContainerSpec { engine: Some(kind), ..ContainerSpec::named(id) })
            .collect()),
    }
}

/// Settles with which member each volume is stored: the first that has it.
fn share(members: &mut [&mut Member], known: &[Volume]) {
    let mut stored: BTreeMap<String, MemberId> = BTreeMap::new();
    for member in members {
        for name in member.source.files.volumes.keys() {
            let known = known.iter().find(|volume| volume.name == *name).cloned();
            let mut volume = known.unwrap_or_else(|| Volume::named(name));
            // Which restore made it is nothing that the next one should repeat.
            volume.labels.remove(MARK);
            match stored.get(name) {
                Some(first) => volume.stored_in = Some(first.clone()),
                None => drop(stored.insert(name.clone(), member.id.clone())),
            }
            member.volumes.push(volume);
        }
    }
}

/// Drops what compose's services depend on outside the set, such as jobs that have ended; anything else is an error.
pub(crate) fn settle(
    ids: &BTreeSet<MemberId>,
    member: &MemberId,
    depends_on: &mut Vec<MemberId>,
    strict_dependencies: bool,
) -> Result<(), MembersError> {
    if !strict_dependencies {
        depends_on.retain(|id| ids.contains(id));
    }
    match depends_on.iter().find(|id| !ids.contains(id)) {
        Some(missing) => Err(MembersError::Dependency { member: member.clone(), missing: missing.clone() }),
        None => Ok(()),
    }
}

fn member_id(source: &RunningContainer) -> Result<MemberId, MembersError> {
    let service = || {
        let service = source.labels.get(SERVICE)?;
        let number = source.labels.get(NUMBER).filter(|number| *number != "1");
        Some(number.map_or_else(|| service.clone(), |number| format!("{service}-{number}")))
    };
    let text = source.labels.get(MEMBER).cloned().or_else(service).unwrap_or_else(|| source.container.clone());
    parse(source, "its member id", &text)
}

/// What the labels say, and whether all of it must be there.
fn dependencies(source: &RunningContainer) -> Result<(Vec<MemberId>, bool), MembersError> {
    let list = |text: &str, strict_dependencies: bool| {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names = names.map(|name| if strict_dependencies { name } else { name.split(':').next().unwrap_or(name) });
        names.map(|name| parse(source, "a member that it depends on", name)).collect::<Result<Vec<_>, _>>()
    };
    match (source.labels.get(DEPENDS_ON), source.labels.get(SERVICES)) {
        (Some(own), _) => Ok((list(own, true)?, true)),
        (None, Some(services)) => Ok((list(services, false)?, false)),
        (None, None) => Ok((Vec::new(), true)),
    }
}

fn parse(source: &RunningContainer, what: &'static str, text: &str) -> Result<MemberId, MembersError> {
    let bad =
        |_| MembersError::BadId { container: source.container.clone(), what, text: text.chars().take(160).collect() };
    text.parse().map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Ties;

    fn source(labels: &[(&str, &str)]) -> RunningContainer {
        RunningContainer {
            container: "the-name".to_owned(),
            id: "0".repeat(64),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            criu_config: "/etc/criu/runc.conf".into(),
            own_config: "/etc/criu/runc.conf".into(),
            pid: 1,
            log: None,
            files: Files::default(),
            ties: Ties::default(),
        }
    }

    fn ids(ids: &[&str]) -> Vec<MemberId> {
        ids.iter().map(|id| id.parse().unwrap()).collect()
    }

    #[test]
    fn a_shared_volume_is_stored_with_the_first_that_has_it() {
        let member = |id: &str, volumes: &[&str]| {
            let mut source = source(&[]);
            source.files.volumes = volumes.iter().map(|name| ((*name).to_owned(), PathBuf::from("/v"))).collect();
            let (id, engine) = (id.parse().unwrap(), EngineKind::Podman);
            Member {
                id,
                depends_on: Vec::new(),
                strict_dependencies: true,
                engine,
                source,
                bundle: None,
                volumes: Vec::new(),
            }
        };
        let mut members = [member("a", &["own", "shared"]), member("b", &["shared"]), member("c", &[])];
        let labels = [("x", "y"), (MARK, "session")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        share(&mut members.each_mut(), &[Volume { labels, ..Volume::named("shared") }]);
        let files = |number: usize| members[number].files().volumes.into_keys().collect::<Vec<_>>();
        assert_eq!((files(0), files(1)), (vec!["own".to_owned(), "shared".to_owned()], Vec::new()));
        assert_eq!(members[0].files().elsewhere, BTreeSet::new());
        assert_eq!(members[1].files().elsewhere, ["shared".to_owned()].into());
        assert_eq!(
            members[1].annotations()[annotation::VOLUMES],
            r#"[{"name":"shared","driver":"local","labels":{"x":"y"},"stored-in":"a"}]"#
        );
        assert_eq!(members[2].annotations(), BTreeMap::new());
    }

    #[test]
    fn labels_say_who_a_container_is() {
        for (labels, id) in [
            (vec![], "the-name"),
            (vec![(SERVICE, "db")], "db"),
            (vec![(SERVICE, "db"), (NUMBER, "1")], "db"),
            (vec![(SERVICE, "db"), (NUMBER, "2")], "db-2"),
            (vec![(SERVICE, "db"), (MEMBER, "receive-0")], "receive-0"),
        ] {
            assert_eq!(member_id(&source(&labels)).unwrap().as_str(), id, "{labels:?}");
        }
        assert!(member_id(&source(&[(MEMBER, "../x")])).unwrap_err().to_string().contains("../x"));
    }

    #[test]
    fn labels_say_what_a_container_depends_on() {
        assert_eq!(dependencies(&source(&[])).unwrap(), (ids(&[]), true));
        assert_eq!(dependencies(&source(&[(DEPENDS_ON, "")])).unwrap(), (ids(&[]), true));
        assert_eq!(dependencies(&source(&[(DEPENDS_ON, "a, b")])).unwrap(), (ids(&["a", "b"]), true));
        let compose = source(&[(SERVICES, "db:service_started:false,job:service_completed_successfully:true")]);
        assert_eq!(dependencies(&compose).unwrap(), (ids(&["db", "job"]), false));
    }

    #[test]
    fn a_finished_job_of_compose_is_no_member_and_anything_else_is_an_error() {
        let (ids, a) = (BTreeSet::from_iter(ids(&["a", "b"])), "a".parse().unwrap());
        let mut depends_on = self::ids(&["job", "b"]);
        let strict = settle(&ids, &a, &mut depends_on, true).unwrap_err().to_string();
        assert_eq!(strict, "member a depends on job, which is no member");
        settle(&ids, &a, &mut depends_on, false).unwrap();
        assert_eq!(depends_on, self::ids(&["b"]));
    }
}
