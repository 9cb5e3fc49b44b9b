//! The dump session: every engine is started, the members meet at CRIU's hooks, and their files are taken while all stand frozen.
//!
//! ```text
//! engines started ─▶ all at pre-dump ─▶ all frozen (network-lock) ─▶ all dumped (post-dump) ─▶ files taken ─▶ released: tasks run on,
//!                                                                                                            engines write archives
//!      any engine that fails, hook that vanishes, deadline, cancel ─▶ aborted: CRIU undoes every dump, engines end, tasks run on
//! ```

use std::collections::BTreeMap;
use std::io::PipeReader;
use std::path::PathBuf;
use std::sync::Arc;

use coordinator::hook::mend;
use coordinator::{Hook, Outcome, Timings};
use engine::{Deaths, DumpInto, EngineKind, attach::Attachment, chain, files::Copies, is_alive, log_lines};
use image_format::MemberId;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::members::Member;
use super::pages::PageServers;
use super::thaw::Frozen;
use crate::observer::{MemberStep, Observer, Phase};
use crate::session::{Broken, Engines, SessionDriver, Turn};
use crate::workspace::Workspace;

/// A dump that was decided: the tasks run again, and the engines write what CRIU left.
#[derive(Debug)]
pub(crate) struct Dumping {
    pub(crate) engines: Engines<MemberId>,
    /// What podman's members write, not read yet.
    pub(crate) archives: BTreeMap<MemberId, PipeReader>,
    pub(crate) copies: BTreeMap<MemberId, Copies>,
    /// Where pages went to that are not in the dumps.
    pub(crate) pages: PageServers,
    pub(crate) timings: Timings,
}

/// One attempt on its way.
struct Attempt<'a> {
    installed: &'a engine::Engines,
    driver: SessionDriver<'a, MemberId>,
    members: &'a [Member],
    /// Of the members' first tasks. Where the kernel does not tell, nobody knows in which order they ended.
    deaths: Option<Deaths>,
    workspace: &'a Workspace,
    observer: &'a dyn Observer,
    /// Members whose archive comes.
    coming: mpsc::UnboundedReceiver<MemberId>,
    /// In the order of the failures.
    failures: Vec<(MemberId, String)>,
}

/// Dumps the members of this host. After a failure no engine runs any more, and every member's tasks run on, but for the dead.
pub(crate) async fn run(
    driver: SessionDriver<'_, MemberId>,
    installed: &engine::Engines,
    members: &[Member],
    mut attachments: BTreeMap<MemberId, Attachment>,
    workspace: &Workspace,
    observer: &dyn Observer,
) -> Result<Dumping, Broken> {
    let deaths = Deaths::watch(members.iter().map(|member| member.source.pid)).ok();
    let (tell, coming) = mpsc::unbounded_channel();
    let failures = Vec::new();
    let mut attempt = Attempt { installed, driver, members, deaths, workspace, observer, coming, failures };
    let mut archives = BTreeMap::new();
    for member in members {
        let attachment =
            attachments.remove(&member.id).ok_or_else(|| std::io::Error::other("it has no part in the session"));
        match attachment.and_then(|attachment| attempt.start(member, attachment)) {
            Ok(Some(pipe)) => {
                archives.insert(member.id.clone(), pipe);
            }
            Ok(None) => {}
            Err(error) => attempt.fail(&member.id, format!("no pipe for its dump: {error}")).await,
        }
    }
    watch(&archives, tell);
    let (outcome, copies) = attempt.decide().await;
    match outcome {
        Outcome::Released { timings } => {
            attempt.driver.tell_the_rest();
            Ok(Dumping { engines: attempt.driver.engines, archives, copies, pages: PageServers::new(), timings })
        }
        Outcome::Aborted { member, hook, reason } => {
            // An engine that is about to write sees that nobody reads.
            drop(archives);
            Err(attempt.broken(member, hook, reason).await)
        }
    }
}

impl Attempt<'_> {
    fn start(&mut self, member: &Member, attachment: Attachment) -> std::io::Result<Option<PipeReader>> {
        self.observer.member(&member.id, MemberStep::Started);
        let (into, pipe) = match member.engine {
            EngineKind::Podman => {
                let (reader, writer) = std::io::pipe()?;
                (DumpInto::Pipe(writer), Some(reader))
            }
            EngineKind::Docker | EngineKind::Runc => (DumpInto::Folder(self.workspace.folder(&member.id)), None),
        };
        let engine = Arc::clone(self.installed.get(member.engine));
        let source = member.source.clone();
        self.driver
            .engines
            .start(member.id.clone(), |kill| async move { engine.dump(&source, attachment, into, &kill).await });
        Ok(pipe)
    }

    /// Waits until it is decided, and takes the files when every member stands frozen.
    async fn decide(&mut self) -> (Outcome, BTreeMap<MemberId, Copies>) {
        let mut copies = BTreeMap::new();
        let mut taking = JoinSet::new();
        let mut all_frozen = false;
        loop {
            tokio::select! {
                biased;
                turn = self.driver.next() => match turn {
                    Turn::Event(_) => {}
                    Turn::AllFrozen => {
                        all_frozen = true;
                        self.observer.phase(Phase::Capture);
                        for member in self.members {
                            let (id, files) = (member.id.clone(), member.files());
                            let folder = self.workspace.files(&member.id);
                            taking.spawn_blocking(move || (id, Copies::take(&files, &folder)));
                        }
                        if self.members.is_empty() {
                            self.driver.handle.captured().await;
                        }
                    }
                    Turn::EngineEnded(member, Ok(())) => self.fail(&member, self.no_hooks(&member)).await,
                    Turn::EngineEnded(member, Err(reason)) => self.fail(&member, reason).await,
                    Turn::Decided(outcome) => {
                        // A copy that still runs is of no use any more.
                        taking.shutdown().await;
                        return (outcome, copies);
                    }
                },
                Some(taken) = taking.join_next() => match taken {
                    Ok((id, Ok(taken))) => {
                        copies.insert(id, taken);
                        if copies.len() == self.members.len() {
                            self.driver.handle.captured().await;
                        }
                    }
                    Ok((id, Err(error))) => {
                        self.fail(&id, format!("its files cannot be taken: {}", chain(&error))).await;
                    }
                    Err(error) => self.driver.handle.cancel(format!("a copy ended unexpectedly: {error}")).await,
                },
                // Engines write when CRIU is through, which it is only when its hooks have been let go.
                Some(member) = self.coming.recv(), if !all_frozen => {
                    self.fail(&member, self.no_hooks(&member)).await;
                }
            }
        }
    }

    /// Tells the session at once, so that everybody is let go.
    async fn fail(&mut self, member: &MemberId, reason: String) {
        let found = self.members.iter().find(|found| found.id == *member);
        let log_lines = || found.map(|member| log_lines(&log_of(member, self.workspace))).unwrap_or_default();
        self.driver.handle.member_failed(member, reason.clone(), log_lines).await;
        self.failures.push((member.clone(), reason));
    }

    fn no_hooks(&self, member: &MemberId) -> String {
        let found = self.members.iter().find(|found| found.id == *member);
        let is_crun = found.is_some_and(|member| member.source.criu_config.ends_with("crun.conf"));
        let hint = if is_crun { "; crun tells CRIU of a configuration from version 1.26 on" } else { "" };
        format!("its engine dumped it without CRIU having run its hooks{hint}")
    }

    /// Waits for the engines to undo what they did, and undoes what a CRIU that died could not.
    async fn broken(mut self, member: Option<MemberId>, hook: Option<Hook>, reason: String) -> Broken {
        let members = self.members;
        let ended = self.deaths.as_ref().map(Deaths::so_far).unwrap_or_default();
        let mut dead: Vec<MemberId> = ended.into_iter().map(|place| members[place].id.clone()).collect();
        // Whoever died takes others with it, and one of those may be heard of earlier.
        let died_first = dead.first().cloned();
        self.driver.tell_the_rest();
        for (member, ended) in self.driver.engines.end().await {
            if let Err(reason) = ended {
                self.failures.push((member, reason));
            }
        }
        for member in members {
            if let Err(error) = mend(member.source.pid) {
                self.observer.warning(&format!("what CRIU left in member {} cannot be taken away: {error}", member.id));
            }
            if !is_alive(member.source.pid) && !dead.contains(&member.id) {
                dead.push(member.id.clone());
            }
        }
        Frozen::default().look(members, self.observer);
        // The first one that failed by itself; the others were told to.
        let failed = member.clone().or_else(|| self.failures.first().map(|(member, _)| member.clone()));
        let told_of = failed.clone();
        let (member, hook, failed) = match died_first {
            Some(died) if failed.as_ref() != Some(&died) => (Some(died.clone()), None, Some(died)),
            _ => (member, hook, failed),
        };
        if let Some(named) = dead.iter().position(|dead| failed.as_ref() == Some(dead)) {
            dead.swap(0, named);
        }
        let reason = in_order(reason, failed.as_ref(), &self.failures, failed != told_of);
        let log = failed.as_ref().and_then(|failed| members.iter().find(|member| member.id == *failed));
        let log_lines = log.map(|member| log_lines(&log_of(member, self.workspace))).unwrap_or_default();
        Broken { member, hook, reason, log_lines, dead }
    }
}

/// Tells of each archive when the first of it is there to be read.
fn watch(archives: &BTreeMap<MemberId, PipeReader>, tell: mpsc::UnboundedSender<MemberId>) {
    // Without a descriptor for it nobody is told, and the time to gather ends it.
    let own = |(id, pipe): (&MemberId, &PipeReader)| Some((id.clone(), pipe.try_clone().ok()?));
    let mut pipes: Vec<(MemberId, PipeReader)> = archives.iter().filter_map(own).collect();
    std::thread::spawn(move || {
        while !pipes.is_empty() {
            let mut looked: Vec<PollFd<'_>> = pipes.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)).collect();
            match poll(&mut looked, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let mut found = looked.iter().map(PollFd::revents).collect::<Vec<_>>().into_iter();
            pipes.retain(|(id, _)| {
                let found = found.next().unwrap_or(PollFlags::empty());
                if found.contains(PollFlags::IN) {
                    // Whoever has heard enough is gone.
                    let _ = tell.send(id.clone());
                }
                // What is neither there nor at its end may still come.
                found.is_empty()
            });
        }
    });
}

/// The session's reason with the words of the member that is named: before it where it tells of another member, after it
/// where it tells of the same.
fn in_order(reason: String, named: Option<&MemberId>, failures: &[(MemberId, String)], before: bool) -> String {
    let words = failures.iter().find(|(other, _)| named.is_none_or(|named| named == other));
    match words {
        Some((_, words)) if reason.contains(words.as_str()) => reason,
        Some((_, words)) if before => format!("{words}; {reason}"),
        Some((_, words)) => format!("{reason}; {words}"),
        None => reason,
    }
}

/// CRIU's log of this member's dump.
fn log_of(member: &Member, workspace: &Workspace) -> PathBuf {
    let own = || workspace.folder(&member.id).join("work/dump.log");
    member.source.log.clone().unwrap_or_else(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_died_speaks_before_those_that_suffered() {
        let id = |id: &str| -> MemberId { id.parse().unwrap() };
        let failures = [(id("b"), "b's engine".to_owned()), (id("a"), "a's engine".to_owned())];
        let told = |reason: &str, named: Option<&str>, before| {
            in_order(reason.to_owned(), named.map(id).as_ref(), &failures, before)
        };
        assert_eq!(told("member b: gone", Some("a"), true), "a's engine; member b: gone");
        assert_eq!(told("member b: gone", Some("b"), false), "member b: gone; b's engine");
        assert_eq!(told("member b: b's engine", Some("b"), false), "member b: b's engine");
        assert_eq!(told("too late", None, false), "too late; b's engine");
        assert_eq!(told("member b: gone", Some("c"), true), "member b: gone");
    }
}
