//! The tree that a person reads.

use std::collections::HashMap;
use std::fmt;

use image_format::{Facts, LayerContent, MemberId, Timeline};

use super::{Inspection, Layer, Member, What};
use crate::output::{Report, count, size};
use crate::timeline::duration;
use crate::tree::Node;

impl Report for Inspection {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.draw(out, Detail::Some)
    }

    fn detailed(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.draw(out, Detail::All)
    }

    fn brief(&self) -> Option<String> {
        self.digest.map(|digest| digest.to_string())
    }
}

/// How much is said about each member of a global checkpoint. What is looked at alone is shown whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// A few lines, so that some members fit on a screen.
    Some,
    All,
}

impl Inspection {
    fn draw(&self, out: &mut dyn fmt::Write, detail: Detail) -> fmt::Result {
        let mut root = Node::new(self.reference.clone());
        match self.what {
            What::GlobalCheckpoint => self.describe_global(&mut root, detail),
            What::CheckpointImage => {
                root.field("digest", self.digest);
                root.field("signatures", Some(self.signed(self.digest)));
                self.members.iter().for_each(|member| describe(&mut root, member));
            }
            What::Dump => self.members.iter().for_each(|member| describe(&mut root, member)),
        }
        if !self.problems.is_empty() {
            let mut problems = Node::new("PROBLEMS");
            self.problems.iter().for_each(|problem| problems.line(problem.clone()));
            root.push(problems);
        }
        root.draw(out)
    }

    fn describe_global(&self, root: &mut Node, detail: Detail) {
        root.field("digest", self.digest);
        if let Some(global) = &self.global {
            root.field("application", Some(&global.application));
            root.field("epoch", Some(global.epoch));
            root.field("created", Some(&global.created));
            root.field(
                "predecessor",
                Some(global.predecessor.map_or_else(|| "none".to_owned(), |digest| digest.to_string())),
            );
            let waves: Vec<_> = global.start_order.iter().map(|wave| join(wave)).collect();
            root.field("start order", Some(waves.join(" -> ")));
            root.field("timeline", global.timeline.as_ref().map(in_short));
        }
        root.field("signatures", Some(self.signed(self.digest)));
        let blobs: HashMap<_, _> =
            self.members.iter().flat_map(|member| &member.layers).map(|layer| (layer.digest, layer)).collect();
        let (stored, plain) =
            (total(blobs.values().map(|layer| layer.size)), total(blobs.values().map(|layer| layer.plain_size)));
        root.field(
            "size",
            sizes(stored, plain).map(|sizes| format!("{sizes} in {}", count(blobs.len() as u64, "layer"))),
        );
        for member in &self.members {
            let name = member.id.as_ref().map_or("(unnamed)", MemberId::as_str);
            let mut node = Node::new(format!("member {name}"));
            node.field("digest", member.digest);
            node.field("depends on", (!member.depends_on.is_empty()).then(|| join(&member.depends_on)));
            let signed = self.signed(member.digest);
            if detail == Detail::All || signed != self.signed(self.digest) {
                node.field("signatures", Some(signed));
            }
            match detail {
                Detail::All => describe(&mut node, member),
                Detail::Some => sketch(&mut node, member),
            }
            root.push(node);
        }
    }

    /// How a manifest is signed, in words.
    fn signed(&self, manifest: Option<image_format::Digest>) -> String {
        let found: Vec<_> = self.signatures.iter().filter(|signature| Some(signature.manifest) == manifest).collect();
        if found.is_empty() {
            return "none".to_owned();
        }
        let forms = found.iter().map(|signature| match signature.good {
            Some(true) => format!("{} (good)", signature.form),
            Some(false) => format!("{} (by another key)", signature.form),
            None => signature.form.clone(),
        });
        forms.collect::<Vec<_>>().join(", ")
    }
}

/// How long the members stood still, and how long all of it took.
fn in_short(timeline: &Timeline) -> String {
    let frozen = timeline.members.iter().filter_map(|member| member.frozen).map(|span| span.micros()).max();
    let frozen = frozen.map_or_else(String::new, |longest| format!(", frozen for at most {}", duration(longest)));
    format!("{} in all{frozen} (--timeline FILE.svg draws it)", duration(timeline.end()))
}

fn join(ids: &[MemberId]) -> String {
    ids.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ")
}

/// The sum, if all are known. What an image says of its sizes may be anything.
fn total(mut sizes: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    sizes.try_fold(0, |sum: u64, size| size.map(|size| sum.saturating_add(size)))
}

/// `3.4 MiB, plain 5.6 MiB`, as far as known.
fn sizes(stored: Option<u64>, plain: Option<u64>) -> Option<String> {
    match (stored, plain) {
        (Some(stored), Some(plain)) => Some(format!("{}, plain {}", size(stored), size(plain))),
        (Some(stored), None) => Some(size(stored)),
        (None, plain) => plain.map(|plain| format!("plain {}", size(plain))),
    }
}

/// What a member is, in three lines.
fn sketch(node: &mut Node, member: &Member) {
    if let Some(facts) = &member.facts {
        let named = facts.summary().into_iter().find(|line| line.starts_with("container "));
        match named {
            Some(line) => node.line(format!("{line}, {}", facts.kind)),
            None => node.field("engine", Some(facts.kind)),
        }
        let counted = |number: usize, what| (number > 0).then(|| count(number as u64, what));
        let parts = [
            match facts.processes.len() {
                0 => None,
                1 => Some("1 process".to_owned()),
                number => Some(format!("{number} processes")),
            },
            counted(facts.processes.iter().fold(0, |sum, process| sum.saturating_add(process.threads)), "thread"),
            facts.pages_bytes.map(|bytes| format!("{} of memory", size(bytes))),
            counted(facts.connections.len(), "connection"),
            counted(facts.named_volumes.len(), "volume"),
        ];
        node.field("tasks", Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    let layers = &member.layers;
    let (stored, plain) =
        (total(layers.iter().map(|layer| layer.size)), total(layers.iter().map(|layer| layer.plain_size)));
    if let Some(sizes) = sizes(stored, plain).filter(|_| !layers.is_empty()) {
        node.field("layers", Some(format!("{}, {sizes}", layers.len())));
    }
}

fn describe(node: &mut Node, member: &Member) {
    member.facts.iter().flat_map(Facts::summary).for_each(|line| node.line(line));
    let mut layers = Node::new("layers");
    member.layers.iter().for_each(|layer| layers.line(line(layer)));
    if !member.layers.is_empty() {
        node.push(layers);
    }
}

/// What is known of a layer, in columns.
fn line(layer: &Layer) -> String {
    let content = layer.content.map_or("unnamed", LayerContent::as_str);
    let content = layer.link.as_ref().map_or_else(|| content.to_owned(), |link| format!("{content} {link}"));
    let parts = [
        Some(format!("{content:<9}")),
        layer.compression.map(|how| format!("{how:<4}")),
        layer.size.map(|stored| format!("{:>10}", size(stored))),
        layer.plain_size.map(|plain| format!("plain {:>10}", size(plain))),
        layer.digest.map(|digest| digest.short()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}
