//! A real Docker, for one test.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{Task, bin, command, run, wait_until};

/// The base image of the demo application.
const IMAGE: &str = "syncpoint-demo:1";

/// The network of the demo application.
const NETWORK: &str = "syncpoint-demo";

/// Docker and containerd, which end, with all containers, when it is dropped. See
/// `tests/testbed/docker`.
#[derive(Debug)]
pub struct Docker {
    dir: TempDir,
    /// `NAME=PATH` of further OCI runtimes.
    runtimes: Vec<String>,
}

impl Docker {
    /// Starts both, with the base image of the demo application. `runtimes` are further OCI
    /// runtimes, by their names.
    ///
    /// # Panics
    /// When they do not start.
    #[must_use]
    pub fn start(runtimes: &[(&str, &Path)]) -> Self {
        let runtimes = runtimes.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
        let docker = Self { dir: TempDir::new().expect("a temporary folder"), runtimes };
        docker.restart();
        run(command("fixtures/demo/base-image", [bin("demo/ledger")]).arg(IMAGE).env("ENGINE", "docker"));
        docker
    }

    /// Starts what of it does not run.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&self) {
        let mut script = command("tests/testbed/docker", [self.dir.path()]);
        run(script.args(&self.runtimes).stderr(std::process::Stdio::inherit()));
    }

    /// `docker ARGUMENTS`.
    #[must_use]
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        command("docker", arguments)
    }

    /// The same, to its end; gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments.iter().copied()))
    }

    /// Starts a container of the ledger, with options of Docker's and the ledger's arguments.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_ledger(&self, name: &str, options: &[&str], ledger: &[&str]) {
        let created = ["run", "--detach", "--name", name];
        self.run(&[&created, options, &[IMAGE, "/bin/ledger"], ledger].concat());
    }

    /// Starts the demo application, labelled as compose labels a project's services: consumer,
    /// producer and auditor, each on an address of its own.
    ///
    /// # Panics
    /// When a member does not get to count.
    pub fn start_demo(&self) {
        self.run(&["network", "create", "--subnet", "10.90.0.0/24", NETWORK]);
        let member = |name: &str, address: &str, depends_on: &str, options: &[&str], ledger: &[&str]| {
            let service = format!("com.docker.compose.service={name}");
            let depends_on = format!("com.docker.compose.depends_on={depends_on}");
            let common = ["--network", NETWORK, "--ip", address, "--label", "com.docker.compose.project=ledger"];
            let labels =
                ["--label", &service, "--label", "com.docker.compose.container-number=1", "--label", &depends_on];
            self.start_ledger(name, &[&common, &labels[..], options].concat(), ledger);
        };
        const TO: [&str; 2] = ["--connect", "10.90.0.10:7000"];
        let consumer = ["--volume", "ledger-data:/data", "--publish", "127.0.0.1:8000:7000"];
        member("consumer", "10.90.0.10", "", &consumer, &["consumer", "--listen", "10.90.0.10:7000"]);
        let started = "consumer:service_started:false";
        member("producer", "10.90.0.11", started, &["--volume", "/data"], &[&["producer"], &TO[..]].concat());
        let started = "consumer:service_started:false,producer:service_started:false";
        member("auditor", "10.90.0.12", started, &[], &[&["auditor"], &TO[..]].concat());
        for name in crate::MEMBERS {
            let task = self.task(name);
            wait_until("it counts", || task.counter() > Some(2));
        }
    }

    /// The first process of a container.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn task(&self, container: &str) -> Task {
        let pid = self.run(&["inspect", "--format", "{{.State.Pid}}", container]);
        let pid = pid.trim().parse().expect("Docker gives a process id");
        assert_ne!(pid, 0, "{container} runs");
        Task { container: container.to_owned(), pid }
    }

    /// Removes every container and the volumes that are nobody's.
    pub fn wipe(&self) {
        let ids = self.run(&["ps", "--all", "--quiet"]);
        for id in ids.lines() {
            self.run(&["rm", "--force", "--volumes", id]);
        }
        self.run(&["volume", "prune", "--all", "--force"]);
    }

    /// Kills a daemon at once: `dockerd` or `containerd`.
    ///
    /// # Panics
    /// When it was never started.
    pub fn kill(&self, daemon: &str) {
        let pid =
            std::fs::read_to_string(self.dir.path().join(format!("{daemon}.pid"))).expect("the daemon's pid file");
        crate::send(pid.trim().parse().expect("a number in the daemon's pid file"), Signal::SIGKILL);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.wipe();
        }
        self.kill("dockerd");
        self.kill("containerd");
    }
}
