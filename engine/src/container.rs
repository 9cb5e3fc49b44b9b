//! A container that is there: what a dump has to know of it, and what it takes to take it away.

use std::collections::{BTreeMap, BTreeSet};
use std::io::PipeWriter;
use std::path::{Path, PathBuf};

use runtime::{CRIU_CONFIG, OWN_CONFIG};

use crate::ties::Ties;

/// A container that runs and is to be dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// The name that people know it by; runc has no other id.
    pub container: String,
    /// The engine's own id.
    pub id: String,
    /// The labels that the container was made with.
    pub labels: BTreeMap<String, String>,
    /// The file that the runtime hands to CRIU as its configuration, whether it is there or not.
    pub criu_config: PathBuf,
    /// The file with the lines that are to be in force: the same, unless it was restored lazily.
    pub own_config: PathBuf,
    /// The first of its processes.
    pub pid: i32,
    /// Where CRIU writes its log of a dump; `None` if that is for the dump to say.
    pub log: Option<PathBuf>,
    /// Where its files are.
    pub files: Files,
    /// What else it cannot be without.
    pub ties: Ties,
}

/// A container that is there, running or not: what it takes to watch it and to take it away. A restore that was cut off leaves containers of
/// which an engine says little more than the id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// Container id, as the engine prints it.
    pub id: String,
    /// The name that people know it by.
    pub container: String,
    /// Pid of the container's init process, in the host's pid namespace; 0 if it does not run.
    pub pid: i32,
    /// Named volumes that it mounts, as far as the engine says.
    pub volumes: BTreeSet<String>,
}

/// The files of a container that live outside CRIU's images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// What it wrote over its image.
    pub root: Option<Layers>,
    /// Its named volumes that are stored with it, and where they are.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Its named volumes that are stored with another member.
    pub elsewhere: BTreeSet<String>,
    /// Its `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// What it printed, where its engine keeps that with the container.
    pub printed: Option<PathBuf>,
}

/// A writable layer and what lies below it, the topmost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The folder of the writable layer.
    pub upper: PathBuf,
    /// The folders of the layers below.
    pub lower: Vec<PathBuf>,
}

/// Where a dump goes.
#[derive(Debug)]
pub enum DumpInto {
    /// As an archive into this pipe.
    Pipe(PipeWriter),
    /// Into `images` and `work` of this folder.
    Folder(PathBuf),
}

/// The folder with the configurations that runtimes hand to CRIU where a container's annotations name none.
const CRIU_CONFIGS: &str = "/etc/criu";

/// Where a runtime looks for CRIU's configuration, by the annotations of a container, and where the
/// lines are that are meant.
pub fn criu_configs<'a>(runtime: &str, annotation: impl Fn(&str) -> Option<&'a str>) -> (PathBuf, PathBuf) {
    let file = if runtime == "crun" { "crun.conf" } else { "runc.conf" };
    let read = annotation(CRIU_CONFIG).map_or_else(|| Path::new(CRIU_CONFIGS).join(file), PathBuf::from);
    let own = annotation(OWN_CONFIG).map_or_else(|| read.clone(), PathBuf::from);
    (read, own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_was_restored_lazily_keeps_its_own_configuration_of_criu() {
        let read = |runtime: &str, annotations: &[(&str, &'static str)]| {
            let find = |name: &str| annotations.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let (read, own) = criu_configs(runtime, find);
            [read, own].map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!(read("runc", &[]), ["/etc/criu/runc.conf"; 2]);
        assert_eq!(read("crun", &[]), ["/etc/criu/crun.conf"; 2]);
        assert_eq!(read("runc", &[(CRIU_CONFIG, "/own")]), ["/own"; 2]);
        assert_eq!(read("runc", &[(CRIU_CONFIG, "/session"), (OWN_CONFIG, "/own")]), ["/session", "/own"]);
    }
}
