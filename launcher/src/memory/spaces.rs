//! The address spaces of one member, and what they lack: pages are put into them as they come, from any thread, and what their tasks
//! do meanwhile is followed.
//!
//! ```text
//!            CRIU hands it over            RESTORE_FINISHED                 nothing is lacking
//!   nobody ────────────────────▶ being made ───────────────▶ tasks may run ───────────────────▶ closed: it is their own
//!                                  │ pages that are asked for only
//!                                  └ what cannot be put yet, for CRIU has not registered the range, waits
//! ```
//!
//! A userfaultfd that is closed leaves zeros where pages are lacking, and nobody would know. So they are all held until nothing is
//! lacking, or until whoever fails has killed the tasks: [`Memory`] is dropped after that, and not before.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use image_format::{LazyPages, LazyProcess};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::LazyError;
use super::keeper::Keeper;
use super::space::{PAGE, Space};
use super::uffd::{Event, Uffd};

/// How long a task that is about to tell of a change is waited for at a time.
const UNDER_WAY: Duration = Duration::from_micros(50);
/// Pages that are remembered: 16 MiB.
const REMEMBERED: usize = 1 << 12;

/// All address spaces of a member.
#[derive(Debug)]
pub(super) struct Memory {
    state: Mutex<State>,
    /// What is said to whoever waits for events, by the numbers of the spaces.
    pub epoll: Epoll,
}

#[derive(Debug)]
struct State {
    /// Holds the same, and the number by which it knows this member.
    keeper: Arc<Keeper>,
    member: usize,
    by_pid: BTreeMap<i32, usize>,
    /// By number; none is used twice.
    held: BTreeMap<u64, Held>,
    next: u64,
    /// CRIU is through: every range is registered.
    finished: bool,
    /// What could not be put before.
    waiting: Vec<(usize, u64, Vec<u8>)>,
    /// What tasks wait for, and nobody was told of.
    asked: Vec<Asked>,
    /// Those that they waited for first, and what was in them.
    touched: BTreeMap<Asked, Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Held {
    process: usize,
    uffd: Uffd,
    space: Space,
}

/// A page that a task waits for, by its process and its address in the dump.
pub(super) type Asked = (usize, u64);

impl Memory {
    pub fn new(processes: &[LazyProcess], keeper: Arc<Keeper>, member: usize) -> io::Result<Self> {
        let by_pid = processes.iter().enumerate().map(|(number, process)| (process.pid.cast_signed(), number));
        let state = State {
            keeper,
            member,
            by_pid: by_pid.collect(),
            held: BTreeMap::new(),
            next: 0,
            finished: false,
            waiting: Vec::new(),
            asked: Vec::new(),
            touched: BTreeMap::new(),
        };
        Ok(Self { state: Mutex::new(state), epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// A panic elsewhere must not keep anybody from ending the tasks.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the address space of a process from CRIU. One that lacks nothing is held, too: its tasks fault where they never
    /// had a page.
    pub fn add(&self, pid: i32, uffd: Uffd, pages: &LazyPages) -> io::Result<()> {
        let mut state = self.state();
        let process = state.by_pid.get(&pid).copied();
        let runs = process.and_then(|process| pages.processes().get(process)).map_or(&[][..], |process| &process.runs);
        let space = Space::new(runs);
        state.hold(&self.epoll, Held { process: process.unwrap_or(usize::MAX), uffd, space })
    }

    /// Follows what happened in a space, and gives the pages that its tasks wait for.
    pub fn follow(&self, number: u64) -> Result<Vec<Asked>, LazyError> {
        let mut state = self.state();
        state.follow(&self.epoll, number)?;
        if !state.finished && !state.asked.is_empty() {
            // The range that a task asks for is registered by now.
            state.put_waiting(&self.epoll)?;
        }
        Ok(std::mem::take(&mut state.asked))
    }

    /// CRIU is through with all ranges: what waited is put.
    pub fn finish(&self) -> Result<(), LazyError> {
        let mut state = self.state();
        state.finished = true;
        state.put_waiting(&self.epoll)
    }

    /// Puts pages of a process wherever they are lacking; gives those that its tasks wait for, too.
    pub fn put(&self, process: usize, origin: u64, bytes: &[u8]) -> Result<Vec<Asked>, LazyError> {
        let mut state = self.state();
        state.put(&self.epoll, process, origin, bytes)?;
        Ok(std::mem::take(&mut state.asked))
    }

    /// Lets go of all spaces, now that all pages were put.
    pub fn close(&self) -> Result<(), LazyError> {
        let mut state = self.state();
        if let Some(held) = state.held.values().find(|held| !held.space.is_empty()) {
            return Err(LazyError::Lacking { process: held.process });
        }
        state.held.clear();
        Ok(())
    }

    /// The pages that tasks waited for first.
    pub fn touched(&self) -> BTreeMap<Asked, Vec<u8>> {
        let touched = std::mem::take(&mut self.state().touched);
        touched.into_iter().filter_map(|(page, bytes)| Some((page, bytes?))).collect()
    }
}

impl State {
    fn hold(&mut self, epoll: &Epoll, held: Held) -> io::Result<()> {
        self.keeper.hold(self.member, self.next, held.uffd.as_fd())?;
        epoll.add(&held.uffd, EpollEvent::new(EpollFlags::EPOLLIN, self.next))?;
        self.held.insert(self.next, held);
        self.next += 1;
        Ok(())
    }

    fn follow(&mut self, epoll: &Epoll, number: u64) -> Result<(), LazyError> {
        while let Some(held) = self.held.get_mut(&number) {
            let Some(event) = held.uffd.next_event()? else { break };
            match event {
                Event::Fault { address } => {
                    let address = address / PAGE * PAGE;
                    match held.space.origin(address) {
                        Some(origin) => {
                            let page = (held.process, origin);
                            self.asked.push(page);
                            if self.touched.len() < REMEMBERED {
                                self.touched.entry(page).or_default();
                            }
                        }
                        None => zero(&held.uffd, address)?,
                    }
                }
                Event::Fork { child } => {
                    let child = Held { process: held.process, uffd: child, space: held.space.clone() };
                    self.hold(epoll, child)?;
                }
                Event::Remap { from, to, bytes } => held.space.remap(from, to, bytes),
                Event::Remove { address, bytes } => held.space.settle(address, bytes),
            }
        }
        Ok(())
    }

    fn put(&mut self, epoll: &Epoll, process: usize, origin: u64, bytes: &[u8]) -> Result<(), LazyError> {
        let end = origin + bytes.len() as u64;
        for ((_, address), kept) in self.touched.range_mut((process, origin)..(process, end)) {
            let start = (address - origin) as usize;
            kept.get_or_insert_with(|| bytes[start..start + PAGE as usize].to_vec());
        }
        // A child that comes meanwhile lacks what its parent lacked when it came, and has a greater number.
        let mut number = 0;
        while let Some((&next, held)) = self.held.range(number..).next() {
            if held.process == process {
                self.put_into(epoll, next, origin, bytes)?;
            }
            number = next + 1;
        }
        Ok(())
    }

    /// Tries again what could not be put before.
    fn put_waiting(&mut self, epoll: &Epoll) -> Result<(), LazyError> {
        for (process, origin, bytes) in std::mem::take(&mut self.waiting) {
            self.put(epoll, process, origin, &bytes)?;
        }
        Ok(())
    }

    fn put_into(&mut self, epoll: &Epoll, number: u64, origin: u64, bytes: &[u8]) -> Result<(), LazyError> {
        'again: loop {
            let Some(held) = self.held.get_mut(&number) else { return Ok(()) };
            for wanted in held.space.wanted(origin, bytes.len() as u64) {
                let mut done = 0;
                while done < wanted.bytes {
                    let start = (wanted.offset + done) as usize;
                    let rest = &bytes[start..(wanted.offset + wanted.bytes) as usize];
                    let address = wanted.address + done;
                    match held.uffd.copy(address, rest) {
                        Ok(count) => {
                            held.space.settle(address, count);
                            done += count;
                        }
                        // A task does something that is to be followed first; it may also be under way to tell.
                        Err(Errno::EAGAIN) => {
                            self.follow(epoll, number)?;
                            std::thread::sleep(UNDER_WAY);
                            continue 'again;
                        }
                        Err(Errno::EEXIST) => {
                            let _ = held.uffd.wake(address);
                            held.space.settle(address, PAGE);
                            done += PAGE;
                        }
                        // It has ended.
                        Err(Errno::ESRCH) => {
                            self.held.remove(&number);
                            self.keeper.let_go(self.member, number)?;
                            return Ok(());
                        }
                        Err(Errno::ENOENT) if !self.finished => {
                            self.waiting.push((held.process, origin + wanted.offset + done, rest.to_vec()));
                            break;
                        }
                        Err(error) => return Err(LazyError::Put { address, source: error.into() }),
                    }
                }
            }
            return Ok(());
        }
    }
}

/// A page that a task never had.
fn zero(uffd: &Uffd, address: u64) -> Result<(), LazyError> {
    match uffd.zero(address) {
        // It came meanwhile, or the range is about to change or gone: the task asks again.
        Err(Errno::EEXIST | Errno::EAGAIN | Errno::ENOENT) => {
            let _ = uffd.wake(address);
            Ok(())
        }
        // It has ended.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(LazyError::Put { address, source: error.into() }),
    }
}
