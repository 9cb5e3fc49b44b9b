//! The command line of an OCI runtime, as far as it matters here: which command, which container.
//!
//! It is runc's and crun's, with options of our own before the command. What is not understood is the real runtime's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ticket::RUN_ROOT;

/// How long a container is held at most, unless the caller says otherwise: as long as a session holds its members.
const HOLD: Duration = Duration::from_secs(120);

/// One call of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The real runtime.
    pub real: OsString,
    /// Where tickets lie, and what this runtime keeps of the containers that it holds.
    pub run_root: PathBuf,
    /// How long a container is held at most.
    pub hold: Duration,
    /// Everything that the real runtime is to be told: all arguments but our own.
    pub arguments: Vec<OsString>,
    /// Options before the command, without those that say where to log.
    pub globals: Vec<OsString>,
    /// The folder in which the real runtime keeps its containers.
    pub root: PathBuf,
    /// Where to log errors.
    pub log: Option<PathBuf>,
    /// Whether the log is one of JSON objects.
    pub log_json: bool,
    /// The command.
    pub command: Option<String>,
    /// The command's arguments.
    pub rest: Vec<OsString>,
}

/// An option of our own that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct ArgsError {
    option: &'static str,
    problem: &'static str,
}

/// Options of ours, each with a value.
const OWN: [&str; 3] = ["real-runtime", "run-root", "hold-seconds"];

/// Options of runc's and crun's before the command that have a value.
const GLOBAL: [&str; 7] = ["log", "log-format", "log-level", "root", "criu", "rootless", "cgroup-manager"];

/// Options of commands that have a value; `-f` and `-r` mean other things elsewhere, see [`takes_value`].
const LOCAL: [&str; 40] = [
    "bundle",
    "b",
    "console-socket",
    "pid-file",
    "preserve-fds",
    "config",
    "cwd",
    "env",
    "e",
    "user",
    "u",
    "additional-gids",
    "g",
    "process",
    "p",
    "process-label",
    "apparmor",
    "cap",
    "c",
    "cgroup",
    "image-path",
    "work-path",
    "parent-path",
    "page-server",
    "manage-cgroups-mode",
    "status-fd",
    "empty-ns",
    "lsm-profile",
    "lsm-mount-context",
    "format",
    "resources",
    "interval",
    "memory",
    "pids-limit",
    "cpu-share",
    "cpu-quota",
    "cpu-period",
    "cpuset-cpus",
    "cpuset-mems",
    "blkio-weight",
];

/// Of an option's name, whether it is one, and its value where that is in the same argument.
fn option(argument: &OsStr) -> Option<(&str, Option<&OsStr>)> {
    let bytes = argument.as_bytes();
    let name = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).filter(|name| !name.is_empty())?;
    let mut parts = name.splitn(2, |byte| *byte == b'=');
    let name = str::from_utf8(parts.next()?).ok()?;
    Some((name, parts.next().map(OsStr::from_bytes)))
}

fn takes_value(command: &str, name: &str) -> bool {
    let here = match name {
        // crun's configuration at create, format elsewhere, but "force" where something is deleted.
        "f" => !matches!(command, "delete" | "start" | "kill"),
        "r" => command == "update",
        _ => false,
    };
    here || LOCAL.contains(&name)
}

impl Invocation {
    /// Understands the arguments that follow the program's name.
    ///
    /// # Errors
    /// Our own options, where they are wrong. Everything else is the real runtime's to refuse.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut call = Self {
            real: "runc".into(),
            run_root: RUN_ROOT.into(),
            hold: HOLD,
            arguments: Vec::new(),
            globals: Vec::new(),
            root: "/run/runc".into(),
            log: None,
            log_json: false,
            command: None,
            rest: Vec::new(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some((name, value)) = option(&argument) else {
                call.command = argument.to_str().map(str::to_owned);
                call.arguments.push(argument);
                call.rest = arguments.by_ref().collect();
                call.arguments.extend(call.rest.iter().cloned());
                break;
            };
            if let Some(own) = OWN.into_iter().find(|own| *own == name) {
                let value = value.map(OsStr::to_owned).or_else(|| arguments.next());
                call.set_own(own, value.ok_or(ArgsError { option: own, problem: "it needs a value" })?)?;
                continue;
            }
            let name = name.to_owned();
            let mut value = value.map(OsStr::to_owned);
            let mut all = vec![argument];
            if value.is_none() && GLOBAL.contains(&&*name) {
                value = arguments.next();
                all.extend(value.clone());
            }
            call.arguments.extend(all.iter().cloned());
            match (&*name, value) {
                ("log", value) => call.log = value.map(PathBuf::from),
                ("log-format", value) => call.log_json = value.as_deref() == Some(OsStr::new("json")),
                (name, value) => {
                    if let Some(root) = value.filter(|_| name == "root") {
                        call.root = root.into();
                    }
                    call.globals.extend(all);
                }
            }
        }
        Ok(call)
    }

    fn set_own(&mut self, name: &'static str, value: OsString) -> Result<(), ArgsError> {
        let absolute = |value: OsString| match Path::new(&value).is_absolute() {
            true => Ok(PathBuf::from(value)),
            false => Err(ArgsError { option: name, problem: "it needs an absolute path" }),
        };
        match name {
            "real-runtime" => self.real = value,
            "run-root" => self.run_root = absolute(value)?,
            _ => {
                let seconds = value.to_str().and_then(|value| value.parse().ok()).filter(|seconds| *seconds > 0);
                let problem = "it needs a number of seconds";
                self.hold = Duration::from_secs(seconds.ok_or(ArgsError { option: name, problem })?);
            }
        }
        Ok(())
    }

    /// The options of the command, up to its first argument that is none.
    fn options(&self) -> Vec<(&str, Option<&OsStr>)> {
        let (mut rest, mut options) = (self.rest.iter(), Vec::new());
        while let Some((name, value)) = rest.next().and_then(|argument| option(argument)) {
            let takes = takes_value(self.command.as_deref().unwrap_or_default(), name);
            let value = value.or_else(|| if takes { rest.next().map(OsString::as_os_str) } else { None });
            options.push((name, value));
        }
        options
    }

    /// The value of an option of the command.
    #[must_use]
    pub fn value(&self, names: &[&str]) -> Option<&OsStr> {
        self.options().into_iter().find(|(name, _)| names.contains(name))?.1
    }

    /// Whether the command was given a switch.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.options().iter().any(|(given, _)| *given == name)
    }

    /// The container: the first argument of the command that is no option.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        let mut rest = self.rest.iter();
        while let Some(argument) = rest.next() {
            match option(argument) {
                None => return argument.to_str().filter(|id| is_id(id)),
                Some(("", _)) => {}
                Some((name, None)) if takes_value(self.command.as_deref().unwrap_or_default(), name) => {
                    rest.next();
                }
                Some(_) => {}
            }
        }
        None
    }
}

/// What runc takes for a container's id. It is always a safe name of a file.
fn is_id(id: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    !id.is_empty() && id.len() <= 255 && id.bytes().all(fits) && !matches!(id, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Invocation {
        Invocation::parse(line.split_whitespace().map(OsString::from)).unwrap()
    }

    #[test]
    fn as_engines_call() {
        let podman =
            parse("--systemd-cgroup --log-format=json --log /b/oci-log create --bundle /b --pid-file /b/pid abc");
        assert_eq!((podman.command.as_deref(), podman.id()), (Some("create"), Some("abc")));
        assert_eq!(podman.value(&["bundle", "b"]), Some(OsStr::new("/b")));
        assert_eq!(podman.value(&["pid-file"]), Some(OsStr::new("/b/pid")));
        assert_eq!(podman.value(&["console-socket"]), None);
        assert_eq!((podman.log.as_deref(), podman.log_json), (Some(Path::new("/b/oci-log")), true));
        assert_eq!(podman.globals, ["--systemd-cgroup"]);
        let line = "--root /r --log /l --log-format json create --no-pivot -b /b --pid-file=/p --console-socket /c id1";
        let shim = parse(line);
        assert_eq!((shim.id(), shim.has("no-pivot"), shim.has("detach")), (Some("id1"), true, false));
        assert_eq!(
            (shim.value(&["bundle", "b"]), shim.value(&["pid-file"])),
            (Some("/b".as_ref()), Some("/p".as_ref()))
        );
        assert_eq!((&*shim.root, &*shim.globals), (Path::new("/r"), &["--root".into(), "/r".into()][..]));
        assert_eq!(shim.arguments.len(), line.split(' ').count(), "the real runtime is told everything");
        for (line, id) in [
            ("delete --force x", Some("x")),
            ("delete -f x", Some("x")),
            ("kill --all x 9", Some("x")),
            ("exec -t --env A=b --user 0 --process /p.json x /bin/sh -c exit", Some("x")),
            ("exec -p /p.json --pid-file /f x", Some("x")),
            ("update -r - x", Some("x")),
            ("events --stats x", Some("x")),
            ("create -f conf x", Some("x")),
            ("state ../x", None),
            ("state ..", None),
            ("list", None),
        ] {
            assert_eq!(parse(line).id(), id, "{line}");
        }
        assert_eq!(parse("--version").command, None);
        assert_eq!(parse("").arguments, [""; 0]);
    }

    #[test]
    fn our_own_options_are_ours_alone() {
        let call = parse("--real-runtime /usr/bin/crun --debug --run-root=/r --hold-seconds 5 --root /x state a");
        assert_eq!((call.real.as_os_str(), &*call.run_root), ("/usr/bin/crun".as_ref(), Path::new("/r")));
        assert_eq!(call.hold, Duration::from_secs(5));
        assert_eq!(call.arguments, ["--debug", "--root", "/x", "state", "a"]);
        // After the command it is somebody else's.
        assert_eq!(parse("exec a --run-root x").arguments.len(), 4);
        for line in ["--run-root", "--run-root x", "--hold-seconds 0", "--hold-seconds x"] {
            assert!(Invocation::parse(line.split(' ').map(OsString::from)).is_err(), "{line}");
        }
    }
}
