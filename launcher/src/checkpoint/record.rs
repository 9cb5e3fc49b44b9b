//! What is written down about a checkpoint that is not permanent yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use coordinator::SessionId;
use engine::EngineKind;
use image_format::{ApplicationId, Descriptor, Digest, Epoch, MemberId, MemberTimeline, Timeline};
use serde::{Deserialize, Serialize};

/// A checkpoint on its way, for whoever has to take away what is left of it, or finishes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tentative {
    pub(crate) session: SessionId,
    pub(crate) run_root: PathBuf,
    pub(crate) application: ApplicationId,
    /// The number that it began with. Resumed, it gets the next one that is free.
    pub(crate) epoch: Epoch,
    /// Where it was to go, in the words of the person who asked.
    pub(crate) to: String,
    pub(crate) members: Vec<TentativeMember>,
    /// When it was begun, and what the members met at; each member's own part is with the member.
    pub(crate) timeline: Timeline,
    /// The global checkpoint whose pages its members may share, where no key was asked who made it.
    #[serde(default)]
    pub(crate) unsigned_base: Option<Digest>,
    /// Every member is packed: the tentative store has all of it.
    #[serde(alias = "whole")]
    pub(crate) packed: bool,
}

impl Tentative {
    /// The member of this id.
    pub(crate) fn member(&self, id: &MemberId) -> Option<&TentativeMember> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// The same, to be changed.
    pub(crate) fn member_mut(&mut self, id: &MemberId) -> Option<&mut TentativeMember> {
        self.members.iter_mut().find(|member| member.id == *id)
    }
}

/// One member of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TentativeMember {
    pub(crate) id: MemberId,
    pub(crate) depends_on: Vec<MemberId>,
    pub(crate) engine: EngineKind,
    pub(crate) container: String,
    /// Its image in the tentative store, once it is packed.
    pub(crate) manifest: Option<Descriptor>,
    /// What its entry in the global checkpoint says besides.
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Bytes of its layers, as they are stored.
    pub(crate) bytes: u64,
    pub(crate) timeline: MemberTimeline,
}

impl TentativeMember {
    /// One that is not dumped yet.
    pub(crate) fn new(id: MemberId, depends_on: Vec<MemberId>, engine: EngineKind, container: String) -> Self {
        let timeline = MemberTimeline::new(id.clone());
        Self { id, depends_on, engine, container, manifest: None, annotations: BTreeMap::new(), bytes: 0, timeline }
    }
}
