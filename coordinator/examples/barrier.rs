//! How long hooks wait for nothing: `tests/bench/barrier`.
//!
//! Real hook processes meet a real rendezvous. All but one member are at the barrier; the last one, a connection of this
//! program's own, is ready to speak. From its first byte on two times are taken of every hook:
//! - *told*: it has read the answer and noted when its time to hold ends. The note has whole milliseconds, so this is up to one
//!   too many.
//! - *ended*: its process was seen to have ended, which is when CRIU goes on. Most of this is the kernel's taking a process
//!   apart, so beside it stands how long as many `cat`s take that end when a pipe is closed.
//!
//! Nothing here passes or fails.

use std::collections::HashSet;
use std::error::Error;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coordinator::proto::{Message, Vote};
use coordinator::wire::{self, Request, Secret};
use coordinator::{
    Deadlines, Hook, Listen, Outpost, Remote, Rendezvous, SessionId, SessionKind, SessionPlan, Step, TlsFiles,
};
use image_format::{Epoch, MemberId};
use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, setrlimit, wait};
use rustix::time::{ClockId, clock_gettime};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Members, rounds, and what the project wants of the 99th percentile.
const SIZES: [(usize, usize, Duration); 3] =
    [(64, 20, Duration::from_millis(5)), (256, 8, Duration::from_millis(25)), (1024, 4, Duration::from_millis(100))];

/// What a hook may cost over a program that does nothing.
const COST: Duration = Duration::from_millis(3);

const LONG: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Socket,
    Tls,
}

fn main() -> Result<()> {
    let bin: PathBuf = std::env::var_os("SYNCPOINT_BIN").ok_or("SYNCPOINT_BIN is not set")?.into();
    // A connection is a descriptor.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bench =
        Bench { hook: bin.join("syncpoint-hook"), certificates: Certificates::make(&bin.join("syncpoint"))?, runtime };
    println!("release after the last arrival, in ms");
    println!("                             told               ended              as many cats  p99");
    println!("members  over     rounds      p50      p99      p50      p99      p50      p99   wanted");
    for way in [Way::Socket, Way::Tls] {
        for (members, rounds, wanted) in sizes() {
            let mut all = Round::default();
            for _ in 0..rounds {
                all.add(bench.round(way, members)?);
                all.floor.extend(cats(members - 1)?);
            }
            print!("{members:7}  {:7} {rounds:7}", name(way));
            for samples in [&mut all.told, &mut all.ended, &mut all.floor] {
                print!(" {:8.2} {:8.2}", at(samples, 50), at(samples, 99));
            }
            println!("   {:6}", wanted.as_millis());
        }
    }
    println!("\na whole program from start to end, in ms");
    println!("program                          p50      p99   p50 over /bin/true   wanted");
    bench.costs()
}

/// Those that were asked for by their numbers of members, or all.
fn sizes() -> impl Iterator<Item = (usize, usize, Duration)> {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|number| number.parse().ok()).collect();
    SIZES.into_iter().filter(move |(members, ..)| asked.is_empty() || asked.contains(members))
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Socket => "socket",
        Way::Tls => "TLS",
    }
}

/// The value that this percentage of the samples does not exceed, in milliseconds.
fn at(samples: &mut [Duration], percent: usize) -> f64 {
    samples.sort_unstable();
    let place = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(place).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
}

fn member(number: usize) -> Result<MemberId> {
    Ok(format!("member-{number}").parse()?)
}

struct Bench {
    hook: PathBuf,
    certificates: Certificates,
    runtime: Runtime,
}

/// A session and where the hooks of its members lie.
struct Set {
    _root: tempfile::TempDir,
    plan: SessionPlan,
    rendezvous: Rendezvous,
    _outposts: Vec<Outpost>,
    hooks: Vec<PathBuf>,
}

impl Bench {
    async fn set(&self, way: Way, members: usize) -> Result<Set> {
        // In memory, as /run is.
        let root = tempfile::tempdir_in("/dev/shm")?;
        let plan = SessionPlan {
            kind: SessionKind::Dump,
            id: SessionId::random()?,
            epoch: Epoch(1),
            application: "bench".parse()?,
            members: (0..members).map(member).collect::<Result<_>>()?,
            deadlines: Deadlines { gather: LONG, hold: LONG },
            fence: None,
        };
        let tls = self.certificates.of("coordinator");
        let listen = Listen { address: "127.0.0.1:0".parse()?, tls };
        let here = root.path().join("here");
        let rendezvous = Rendezvous::start_with(&here, plan.clone(), &self.hook, Some(&listen)).await?;
        let mut outposts = Vec::new();
        let mut hooks = Vec::new();
        for id in &plan.members {
            let config = match way {
                Way::Socket => rendezvous.criu_config(id),
                Way::Tls => {
                    let remote = Remote { address: address(&rendezvous)?, tls: self.certificates.of(id.as_str()) };
                    // A host each, as far as folders go.
                    let there = root.path().join(id.as_str());
                    let kind = SessionKind::Dump;
                    outposts.push(Outpost::join(&there, remote, kind, id.clone(), &self.hook, LONG).await?);
                    outposts.last().map(|outpost| outpost.criu_config(id)).ok_or("no outpost")?
                }
            };
            hooks.push(config.with_file_name("hook"));
        }
        Ok(Set { _root: root, plan, rendezvous, _outposts: outposts, hooks })
    }

    /// One barrier of a session of its own.
    fn round(&self, way: Way, members: usize) -> Result<Round> {
        let mut set = self.runtime.block_on(self.set(way, members))?;
        let mut events = set.rendezvous.events();
        let mut last = self.last(&set, way)?;
        let mut running = HashSet::new();
        for hook in &set.hooks[1..] {
            running.insert(spawn(hook, Hook::PreDump)?);
        }
        self.runtime.block_on(async {
            let mut arrived = 0;
            while arrived < members - 1 {
                let event = events.recv().await.ok_or("the session ended")?;
                arrived += usize::from(event.step == Step::Arrived(Hook::PreDump));
            }
            Ok::<_, Box<dyn Error>>(())
        })?;
        // The last one may have come this far and not be asleep yet.
        std::thread::sleep(Duration::from_millis(300));
        let message = Message {
            session: set.plan.id,
            epoch: set.plan.epoch,
            member: member(0)?,
            hook: Hook::PreDump,
            vote: Vote::Yes,
        };
        let secret = match way {
            Way::Socket => Some(secret(&set.hooks[0])?),
            Way::Tls => None,
        };
        let frame = wire::encode(&Request { version: wire::VERSION, secret, message })?;
        let (start, clock) = (Instant::now(), monotonic()?);
        last.write_all(&frame)?;
        last.flush()?;
        let ended = ends(running, start)?;
        let told = set.hooks[1..].iter().map(|hook| {
            let note = std::fs::read_to_string(hook.with_file_name("hold-until"))?.trim().parse()?;
            // The end of the millisecond that it was in.
            let told = Duration::from_millis(note) + Duration::from_millis(1) - LONG;
            Ok(told.saturating_sub(clock))
        });
        Ok(Round { told: told.collect::<Result<_>>()?, ended, floor: Vec::new() })
    }

    /// The connection of the member that comes last.
    fn last(&self, set: &Set, way: Way) -> Result<Box<dyn Stream>> {
        match way {
            Way::Socket => {
                let folder = set.hooks[0].parent().and_then(Path::parent).ok_or("no folder")?;
                Ok(Box::new(UnixStream::connect(folder.join(".socket"))?))
            }
            Way::Tls => {
                let config = self.certificates.of("member-0").client()?;
                let stream = TcpStream::connect(address(&set.rendezvous)?)?;
                stream.set_nodelay(true)?;
                let tls = ClientConnection::new(config, ServerName::try_from("127.0.0.1")?)?;
                let mut stream = StreamOwned::new(tls, stream);
                stream.conn.complete_io(&mut stream.sock)?;
                Ok(Box::new(stream))
            }
        }
    }

    /// What one run of each program takes, by turns.
    fn costs(&self) -> Result<()> {
        let alone = |way| self.runtime.block_on(self.set(way, 1));
        let (near, far) = (alone(Way::Socket)?, alone(Way::Tls)?);
        let programs = [
            ("/bin/true", PathBuf::from("/bin/true")),
            ("the hook, without a session", self.hook.clone()),
            ("the hook, over the socket", near.hooks[0].clone()),
            ("the hook, over TLS", far.hooks[0].clone()),
        ];
        let mut samples = vec![Vec::new(); programs.len()];
        for _ in 0..300 {
            for (samples, (_, program)) in samples.iter_mut().zip(&programs) {
                let start = Instant::now();
                spawn(program, Hook::PreDump)?;
                wait(WaitOptions::empty())?;
                samples.push(start.elapsed());
            }
        }
        let nothing = at(&mut samples[0], 50);
        for (samples, (name, _)) in samples.iter_mut().zip(&programs) {
            let (half, most) = (at(samples, 50), at(samples, 99));
            println!("{name:28} {half:7.2}  {most:7.2}   {:18.2}   {:6}", half - nothing, COST.as_millis());
        }
        Ok(())
    }
}

/// What was measured of one barrier, or of many.
#[derive(Default)]
struct Round {
    told: Vec<Duration>,
    ended: Vec<Duration>,
    floor: Vec<Duration>,
}

impl Round {
    fn add(&mut self, other: Self) {
        self.told.extend(other.told);
        self.ended.extend(other.ended);
    }
}

/// When each of these processes has ended, all of which must do so in peace.
fn ends(mut running: HashSet<i32>, start: Instant) -> Result<Vec<Duration>> {
    let mut ended = Vec::with_capacity(running.len());
    while !running.is_empty() {
        let Some((pid, status)) = wait(WaitOptions::empty())? else { continue };
        let now = start.elapsed();
        if running.remove(&pid.as_raw_nonzero().get()) {
            if status.exit_status() != Some(0) {
                return Err("a hook was not let through".into());
            }
            ended.push(now);
        }
    }
    Ok(ended)
}

/// When each of as many small programs has ended that all wait for the end of one pipe.
fn cats(count: usize) -> Result<Vec<Duration>> {
    let (end, leash) = std::io::pipe()?;
    let mut running = HashSet::new();
    for _ in 0..count {
        let child = Command::new("/bin/cat").env_clear().stdin(end.try_clone()?).stdout(Stdio::null()).spawn()?;
        running.insert(i32::try_from(child.id())?);
    }
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    drop(leash);
    ends(running, start)
}

fn monotonic() -> Result<Duration> {
    let now = clock_gettime(ClockId::Monotonic);
    Ok(Duration::new(now.tv_sec.try_into()?, now.tv_nsec.try_into()?))
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn address(rendezvous: &Rendezvous) -> Result<String> {
    Ok(rendezvous.address().ok_or("no port")?.to_string())
}

fn secret(hook: &Path) -> Result<Secret> {
    let ticket: serde_json::Value = serde_json::from_slice(&std::fs::read(hook.with_file_name("session.json"))?)?;
    Ok(Secret::try_from(ticket["secret"].as_str().ok_or("no secret")?.to_owned())?)
}

/// Starts a hook as CRIU does, and gives its pid.
fn spawn(program: &Path, hook: Hook) -> Result<i32> {
    let child = Command::new(program)
        .env_clear()
        .env("CRTOOLS_SCRIPT_ACTION", hook.as_str())
        .env("CRTOOLS_IMAGE_DIR", "/proc/1/fd/9")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    Ok(i32::try_from(child.id())?)
}

/// What `syncpoint key` makes.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn make(syncpoint: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = |arguments: &[&str]| -> Result<()> {
            let arguments = arguments.iter().map(OsString::from);
            let mut command = Command::new(syncpoint);
            command.arg("key").args(arguments).current_dir(folder.path()).stdout(Stdio::null());
            if command.status()?.success() { Ok(()) } else { Err("syncpoint key failed".into()) }
        };
        key(&["ca", "--output-prefix", "ca"])?;
        key(&["issue", "--ca", "ca", "--coordinator", "127.0.0.1", "--output-prefix", "coordinator"])?;
        let most = sizes().map(|(members, ..)| members).max().unwrap_or(0);
        for number in 0..most {
            let id = member(number)?;
            key(&["issue", "--ca", "ca", "--member", id.as_str(), "--output-prefix", id.as_str()])?;
        }
        Ok(Self { folder })
    }

    fn of(&self, name: &str) -> TlsFiles {
        let file = |name: String| self.folder.path().join(name);
        TlsFiles {
            ca: file("ca.crt".to_owned()),
            certificate: file(format!("{name}.crt")),
            key: file(format!("{name}.key")),
        }
    }
}
