//! Asks the policy, and has the store do it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image_format::{ApplicationId, Digest, Epoch, GlobalCheckpoint, rfc3339_seconds};

use super::policy::{Candidate, Decision, Policy, Reason};
use super::{Removal, Removed};
use crate::catalogue::{Completeness, catalogue};
use crate::{Catalogue, Listed, PassedOver, Store, StoreError, Tag, Trust};

/// How long what no tag leads to is left alone, unless another time is given.
const GRACE: Duration = Duration::from_secs(3600);

/// How to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Only checkpoints of this application are looked at; all others stay.
    pub application: Option<ApplicationId>,
    /// What no tag leads to stays for so long: it may belong to a checkpoint or a copy under way.
    pub grace: Duration,
    /// Only says what would be removed.
    pub dry_run: bool,
    /// Requests at the same time.
    pub jobs: usize,
    /// Who may have signed what is pruned. What others put into the store does not count, and stays.
    pub trust: Trust,
    /// The time now.
    pub now: SystemTime,
}

impl PruneOptions {
    /// A grace of an hour, and everything that the policy does not keep goes.
    #[must_use]
    pub fn new(trust: Trust, now: SystemTime) -> Self {
        Self { application: None, grace: GRACE, dry_run: false, jobs: 4, trust, now }
    }
}

/// A checkpoint that the policy decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The index.
    pub digest: Digest,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its application.
    pub application: ApplicationId,
    /// Its epoch.
    pub epoch: Epoch,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// A checkpoint that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub checkpoint: Pruned,
    /// Why; empty where it was to go and got another tag before it did.
    pub reasons: Vec<Reason>,
}

/// What [`prune`] did, or with `dry_run` would do.
#[derive(Debug)]
pub struct PruneReport {
    /// What stays, the newest of each application first.
    pub kept: Vec<Kept>,
    /// What goes, likewise.
    pub removed: Vec<Pruned>,
    /// Tags of what cannot be read, or was not signed by a trusted key. They stay.
    pub passed_over: Vec<PassedOver>,
    /// Checkpoints that are not whole, each with a manifest or blob that is missing. They count for no rule that counts.
    pub incomplete: Vec<(Digest, Digest)>,
    /// What the store did.
    pub store: Removed,
}

/// Why it could not be done, or not be finished. What was removed stays removed; the next `prune` goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// The policy has no rule: everything would go.
    #[error("no rule says what to keep, so everything but what is pinned would be removed")]
    NoRule,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes the checkpoints that the policy does not keep, and all that only they refer to.
///
/// It may run at the same time as anything else that reads from the store or writes into it.
///
/// # Errors
/// A policy without rules, or a store that fails.
pub async fn prune(store: &dyn Store, policy: &Policy, options: &PruneOptions) -> Result<PruneReport, PruneError> {
    if policy.is_empty() {
        return Err(PruneError::NoRule);
    }
    let Catalogue { listed, passed_over } = catalogue(store, &options.trust, options.jobs).await?;
    let found = gather(listed, options.application.as_ref());
    let now = options.now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let decisions = Judge::new(store, options.jobs, &found).decide(policy, now).await?;
    let (mut kept, mut removed, mut incomplete) = (Vec::new(), Vec::new(), Vec::new());
    for (Found { pruned: checkpoint, .. }, (decision, missing)) in found.into_iter().zip(decisions) {
        if let Some(missing) = missing {
            incomplete.push((checkpoint.digest, missing));
        }
        match decision {
            Decision::Keep(reasons) => kept.push(Kept { checkpoint, reasons }),
            Decision::Remove => removed.push(checkpoint),
        }
    }
    let removal = Removal {
        checkpoints: removed.iter().map(|checkpoint| (checkpoint.digest, checkpoint.tags.clone())).collect(),
        before: options.now.checked_sub(options.grace).unwrap_or(UNIX_EPOCH),
        dry_run: options.dry_run,
        jobs: options.jobs,
    };
    let store = store.remove(&removal).await?;
    let (removed, stayed): (Vec<_>, Vec<_>) =
        removed.into_iter().partition(|checkpoint| store.checkpoints.contains(&checkpoint.digest));
    kept.extend(stayed.into_iter().map(|checkpoint| Kept { checkpoint, reasons: Vec::new() }));
    let order = |checkpoint: &Pruned| (checkpoint.application.clone(), std::cmp::Reverse(checkpoint.epoch));
    kept.sort_by_cached_key(|kept| order(&kept.checkpoint));
    Ok(PruneReport { kept, removed, passed_over, incomplete, store })
}

/// A checkpoint of the store.
struct Found {
    candidate: Candidate,
    pruned: Pruned,
    global: GlobalCheckpoint,
}

/// Each checkpoint once, with all of its tags, the newest of each application first.
fn gather(listed: Vec<Listed>, application: Option<&ApplicationId>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for Listed { tag, root, global, .. } in listed {
        if application.is_some_and(|application| global.application() != application) {
            continue;
        }
        if let Some(Found { candidate, pruned, .. }) = found.iter_mut().find(|found| found.pruned.digest == root.digest)
        {
            candidate.tags.push(tag.clone());
            pruned.tags.push(tag);
            continue;
        }
        let candidate = Candidate {
            application: global.application().clone(),
            epoch: global.epoch(),
            created: rfc3339_seconds(global.created()),
            tags: vec![tag.clone()],
        };
        let pruned = Pruned {
            digest: root.digest,
            tags: vec![tag],
            application: global.application().clone(),
            epoch: global.epoch(),
            created: global.created().to_owned(),
        };
        found.push(Found { candidate, pruned, global });
    }
    found.sort_by_cached_key(|found| (found.pruned.application.clone(), std::cmp::Reverse(found.pruned.epoch)));
    found
}

/// Asks the policy about checkpoints that are whole. Only those are looked at that a rule keeps: with each that is not whole the
/// policy is asked again.
struct Judge<'a> {
    found: &'a [Found],
    store: Completeness<'a>,
    /// What was looked at, and what of it is missing.
    known: Vec<Option<Option<Digest>>>,
}

impl<'a> Judge<'a> {
    fn new(store: &'a dyn Store, jobs: usize, found: &'a [Found]) -> Self {
        Self { found, store: Completeness::new(store, jobs), known: vec![None; found.len()] }
    }

    /// A decision for each checkpoint, and what is missing of it as far as it was looked at.
    async fn decide(mut self, policy: &Policy, now: u64) -> Result<Vec<(Decision, Option<Digest>)>, StoreError> {
        let all: Vec<Candidate> = self.found.iter().map(|found| found.candidate.clone()).collect();
        // What is not whole stays if it would stay by being whole: it may be copied here again.
        let mut decisions = policy.decide(&all, now);
        loop {
            let whole: Vec<usize> = (0..all.len()).filter(|at| !matches!(self.known[*at], Some(Some(_)))).collect();
            let candidates: Vec<Candidate> = whole.iter().map(|at| all[*at].clone()).collect();
            for (at, decision) in whole.iter().zip(policy.decide(&candidates, now)) {
                decisions[*at] = decision;
            }
            let stays = |at: &usize| matches!(decisions[*at], Decision::Keep(_)) && self.known[*at].is_none();
            let unknown: Vec<usize> = whole.into_iter().filter(stays).collect();
            if unknown.is_empty() {
                break;
            }
            for at in unknown {
                self.look(at).await?;
            }
        }
        for line in self.lines() {
            let stays = |at: &usize| matches!(decisions[*at], Decision::Keep(_));
            if !line.iter().any(stays) || line.iter().any(|at| stays(at) && self.known[*at] == Some(None)) {
                continue;
            }
            for at in line {
                if self.look(at).await? {
                    decisions[at] = Decision::Keep(vec![Reason::Whole]);
                    break;
                }
            }
        }
        Ok(decisions.into_iter().zip(self.known.into_iter().map(Option::flatten)).collect())
    }

    /// The checkpoints of each application, the newest first.
    fn lines(&self) -> Vec<Vec<usize>> {
        let mut lines: BTreeMap<&ApplicationId, Vec<usize>> = BTreeMap::new();
        for (at, found) in self.found.iter().enumerate() {
            lines.entry(&found.pruned.application).or_default().push(at);
        }
        lines.into_values().collect()
    }

    /// Whether a checkpoint is whole.
    async fn look(&mut self, at: usize) -> Result<bool, StoreError> {
        let missing = match self.known[at] {
            Some(missing) => missing,
            None => self.store.missing(&self.found[at].global).await?,
        };
        self.known[at] = Some(missing);
        Ok(missing.is_none())
    }
}
