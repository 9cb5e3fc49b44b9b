//! Where a new global checkpoint stands in the line of its application.

use std::str::FromStr;

use image_format::{ApplicationId, Artifact, Descriptor, Digest, Epoch};
use registry::{Listed, ParseReferenceError, Reference, Store, Tag, Trust, newest, under_tag};

use super::LinkArgs;
use crate::commands::passed_over;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::store;
use crate::transport::Transport;

/// Which global checkpoint came before.
#[derive(Debug, Clone)]
pub enum Predecessor {
    Auto,
    None,
    Named(Reference),
}

impl FromStr for Predecessor {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            reference => reference.parse().map(Self::Named),
        }
    }
}

/// Where the new global checkpoint stands in its line.
pub struct Line {
    /// The one before.
    pub predecessor: Option<Digest>,
    /// The number of the new one.
    pub epoch: Epoch,
    /// What the tag names now.
    current: Option<Listed>,
}

impl Line {
    /// Refuses what would take a tag back to an earlier or another checkpoint of the same epoch.
    pub fn check(&self, root: &Descriptor, args: &LinkArgs) -> Result<(), CommandError> {
        match &self.current {
            Some(current) if current.root.digest != root.digest && current.global.epoch() >= self.epoch => {
                let epoch = current.global.epoch();
                Err(CommandError::usage(format!("{} is epoch {epoch} of {} already", args.to, args.application))
                    .hint("name another tag with --to, or a higher --epoch"))
            }
            _ => Ok(()),
        }
    }
}

/// Finds the place in the line, and refuses to move a tag backwards or away from something else.
pub async fn find(
    args: &LinkArgs,
    tag: &Tag,
    trust: &Trust,
    target: &dyn Store,
    context: &Context,
) -> Result<Line, CommandError> {
    let current = under_tag(target, &Trust::InsecureNoVerify, tag).await?;
    if let Some(other) = current.as_ref().filter(|current| *current.global.application() != args.application) {
        return Err(CommandError::usage(format!(
            "{} is a global checkpoint of {}",
            args.to,
            other.global.application()
        )));
    }
    // Linked again after a break, or twice: the same predecessor makes it the same index.
    if let Some(same) = current.as_ref().filter(|current| Some(current.global.epoch()) == args.epoch) {
        let predecessor = same.global.predecessor();
        return Ok(Line { predecessor, epoch: same.global.epoch(), current });
    }
    let before = match &args.predecessor {
        Predecessor::None => None,
        Predecessor::Auto => {
            let newest = newest(target, &args.application, trust, args.transport.jobs()).await?;
            passed_over(&newest.passed_over, context);
            newest.listed.map(|newest| (newest.root.digest, newest.global.epoch()))
        }
        Predecessor::Named(reference) => {
            let named = named(reference, &args.application, &args.transport, context).await;
            Some(named.doing(|| format!("{reference} cannot be the predecessor"))?)
        }
    };
    let next = || before.map_or(Some(Epoch(1)), |(_, before)| before.next());
    let epoch = args.epoch.or_else(next).ok_or_else(|| {
        CommandError::usage(format!("the predecessor has the last number there is, {}", u64::MAX))
            .hint("say --predecessor none and an --epoch to start a new line under another application id")
    })?;
    if let Some((_, before)) = before.filter(|(_, before)| *before >= epoch) {
        return Err(CommandError::usage(format!(
            "the predecessor has epoch {before}, so that the new one cannot be {epoch}"
        ))
        .hint("leave --epoch out, or say --predecessor none to start a new line"));
    }
    Ok(Line { predecessor: before.map(|(digest, _)| digest), epoch, current })
}

/// Digest and epoch of a predecessor that was named.
async fn named(
    reference: &Reference,
    application: &ApplicationId,
    transport: &Transport,
    context: &Context,
) -> Result<(Digest, Epoch), CommandError> {
    let (store, root) = store::find(reference, transport, context).await?;
    let Artifact::Global(global) = store::artifact(&*store, &root).await? else {
        return Err(CommandError::usage("it is a checkpoint image, not a global checkpoint"));
    };
    if global.application() != application {
        return Err(CommandError::usage(format!("it belongs to {}", global.application())));
    }
    Ok((root.digest, global.epoch()))
}
