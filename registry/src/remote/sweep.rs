//! Removes checkpoints from a registry. It has no locks and no transactions, and only tells of what has a tag; so:
//!
//! ```text
//! look      every tag and what it names, every manifest below
//! decide    what only the checkpoints lead to that are to go: indexes, members, their signatures and other referrers
//! look      for tags that came meanwhile: a checkpoint that has one stays
//! delete    indexes, which takes their tags along; then members; then signatures and referrers
//! look      for tags that came or moved meanwhile: what was deleted and they lead to is put back
//! ```
//!
//! A registry that checks what an index refers to (as the distribution of Docker does) refuses one that comes after its members
//! went; whoever wrote it fails, and nothing incomplete has a tag. Blobs are not deleted: the registry finds out by itself,
//! when it collects its garbage, which ones no manifest names.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::annotation::MEDIA_INDEX;
use image_format::{Digest, Document};
use reqwest::{Method, StatusCode};

use super::auth::Access;
use super::documents;
use super::http::{Call, Http};
use super::referrers;
use crate::catalogue::given;
use crate::links::Links;
use crate::retention::{Removal, Removed};
use crate::{Selector, StoreError, Tag};

/// Removes what `removal` says, and what only that leads to.
pub(super) async fn remove(http: &Http, removal: &Removal) -> Result<Removed, StoreError> {
    let mut sweep =
        Sweep { http, jobs: removal.jobs.max(1), known: HashMap::new(), links: 0, unreadable: BTreeSet::new() };
    let tags = sweep.look().await?;
    let mut going = Going::new(&tags, removal);
    let mut kept = sweep.reached(tags.roots().filter(|root| !going.is_root(root))).await?;
    if !removal.dry_run {
        let new = sweep.news(&tags).await?;
        kept.extend(sweep.reached(new.iter().copied()).await?);
        going.roots.retain(|root| !new.contains(root));
    }
    kept.extend(sweep.other_attachments(&tags, &kept).await?);
    sweep.gather(&tags, &kept, &mut going).await?;
    if !sweep.unreadable.is_empty() {
        // Whatever goes might be needed by what they name.
        return Ok(Removed { unreadable_tags: sweep.unreadable.into_iter().collect(), ..Removed::default() });
    }
    let mut removed = sweep.report(&kept, &going).await?;
    if removal.dry_run {
        return Ok(removed);
    }
    for doomed in going.in_order() {
        delete(http, &doomed.digest).await?;
    }
    let after = sweep.look().await?;
    removed.stale = stale(http, &going, &after).await?;
    sweep.put_back(&tags, &after, &going).await?;
    Ok(removed)
}

/// All tags, and what they name.
struct Tags {
    /// Those of images.
    images: BTreeMap<Tag, Digest>,
    /// Those of signatures and the like, and what they are about.
    attached: Vec<(Tag, Digest)>,
    /// All names, also of tags that name nothing that can be read.
    names: HashSet<Tag>,
}

impl Tags {
    fn roots(&self) -> impl Iterator<Item = Digest> {
        self.images.values().copied()
    }
}

/// A manifest that goes, and how it is put back.
struct Doomed {
    digest: Digest,
    document: Document,
    place: Place,
}

enum Place {
    /// Under its digest.
    Alone,
    /// Under a tag.
    Tagged(Tag),
    /// As a referrer.
    Referrer(Digest),
}

/// Everything that goes.
struct Going {
    roots: Vec<Digest>,
    tags: Vec<Tag>,
    indexes: Vec<Doomed>,
    members: Vec<Doomed>,
    attached: Vec<Doomed>,
}

impl Going {
    /// Checkpoints that have no other tags than those for which they were chosen.
    fn new(tags: &Tags, removal: &Removal) -> Self {
        let named = |digest: Digest| tags.images.iter().filter(move |(_, named)| **named == digest).map(|(tag, _)| tag);
        let goes = |(digest, chosen): &&(Digest, Vec<Tag>)| {
            named(*digest).next().is_some() && named(*digest).all(|tag| chosen.contains(tag))
        };
        let chosen: Vec<_> = removal.checkpoints.iter().filter(goes).collect();
        Self {
            roots: chosen.iter().map(|(digest, _)| *digest).collect(),
            tags: chosen.iter().flat_map(|(digest, _)| named(*digest).cloned()).collect(),
            indexes: Vec::new(),
            members: Vec::new(),
            attached: Vec::new(),
        }
    }

    fn is_root(&self, digest: &Digest) -> bool {
        self.roots.contains(digest)
    }

    fn in_order(&self) -> impl Iterator<Item = &Doomed> {
        self.indexes.iter().chain(&self.members).chain(&self.attached)
    }
}

struct Sweep<'a> {
    http: &'a Http,
    jobs: usize,
    /// Manifests that were read. Only what they refer to is kept: anybody who can write to the
    /// repository may have filled it with large ones.
    known: HashMap<Digest, Known>,
    /// How many contents they refer to, together.
    links: usize,
    /// Tags that name something, of which the registry does not say what.
    unreadable: BTreeSet<Tag>,
}

/// What one manifest refers to.
struct Known {
    manifests: Vec<Digest>,
    blobs: Vec<(Digest, u64)>,
}

/// How many contents the manifests of a repository may refer to in all; some 80 MiB of memory.
const MAX_LINKS: usize = 2_000_000;

impl Sweep<'_> {
    /// Every tag and what it names. One that names nothing readable leads to nothing.
    async fn look(&mut self) -> Result<Tags, StoreError> {
        let names = documents::tags(self.http).await?;
        let mut tags = Tags { images: BTreeMap::new(), attached: Vec::new(), names: names.iter().cloned().collect() };
        let mut images = Vec::new();
        for tag in names {
            match tag.about() {
                Some(subject) => tags.attached.push((tag, subject)),
                None => images.push(tag),
            }
        }
        for (tag, digest) in self.resolve(images).await? {
            tags.images.insert(tag, digest);
        }
        Ok(tags)
    }

    async fn resolve(&mut self, tags: Vec<Tag>) -> Result<Vec<(Tag, Digest)>, StoreError> {
        let http = self.http;
        let mut found = stream::iter(tags)
            .map(|tag| async move {
                let document = match documents::get(http, &Selector::Tag(tag.clone())).await {
                    // It was deleted, or names what is gone.
                    Err(StoreError::NotFound { .. }) => return Ok(None),
                    document => given(document)?,
                };
                Ok::<_, StoreError>(Some((tag, document)))
            })
            .buffer_unordered(self.jobs);
        let mut resolved = Vec::new();
        while let Some(found) = found.try_next().await? {
            let Some((tag, document)) = found else { continue };
            let Some(document) = document else {
                self.unreadable.insert(tag);
                continue;
            };
            resolved.push((tag, document.digest()));
            self.know(&document)?;
        }
        Ok(resolved)
    }

    /// What tags name that were not there before.
    async fn news(&mut self, before: &Tags) -> Result<Vec<Digest>, StoreError> {
        let mut names = documents::tags(self.http).await?;
        names.retain(|tag| tag.about().is_none() && !before.names.contains(tag));
        Ok(self.resolve(names).await?.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Reads manifests that were not read yet. What is missing is left out.
    async fn read(&mut self, digests: impl IntoIterator<Item = Digest>) -> Result<(), StoreError> {
        let http = self.http;
        let unknown: Vec<_> = digests.into_iter().filter(|digest| !self.known.contains_key(digest)).collect();
        let mut found = stream::iter(unknown)
            .map(|digest| async move { given(documents::get(http, &Selector::Digest(digest)).await) })
            .buffer_unordered(self.jobs);
        while let Some(document) = found.try_next().await? {
            if let Some(document) = document {
                self.know(&document)?;
            }
        }
        Ok(())
    }

    /// Keeps what a manifest refers to.
    fn know(&mut self, document: &Document) -> Result<(), StoreError> {
        if self.known.contains_key(&document.digest()) {
            return Ok(());
        }
        let Ok(links) = Links::parse(document.bytes()) else { return Ok(()) };
        let manifests: Vec<_> = links.manifests.iter().map(|child| child.digest).collect();
        let blobs: Vec<_> = links.blobs().map(|blob| (blob.digest, blob.size)).collect();
        self.links += manifests.len() + blobs.len();
        if self.links > MAX_LINKS {
            let reason = format!("its manifests refer to more than {MAX_LINKS} contents");
            return Err(self.http.transport.refused("looking for what nothing needs", reason));
        }
        self.known.insert(document.digest(), Known { manifests, blobs });
        Ok(())
    }

    /// A manifest with its bytes, which go on being there until it is deleted.
    async fn document(&self, digest: &Digest) -> Result<Option<Document>, StoreError> {
        given(documents::get(self.http, &Selector::Digest(*digest)).await)
    }

    /// All manifests that are reached from these.
    async fn reached(&mut self, roots: impl Iterator<Item = Digest>) -> Result<HashSet<Digest>, StoreError> {
        let mut level: Vec<Digest> = roots.collect();
        let mut reached: HashSet<Digest> = level.iter().copied().collect();
        while !level.is_empty() {
            self.read(level.iter().copied()).await?;
            let links = level.iter().filter_map(|digest| self.known.get(digest));
            let children = links.flat_map(|known| known.manifests.iter().copied());
            level = children.filter(|child| reached.insert(*child)).collect();
        }
        Ok(reached)
    }

    /// What is attached to other manifests under tags that any tool may have made, and so may be the same for two of them.
    async fn other_attachments(&mut self, tags: &Tags, kept: &HashSet<Digest>) -> Result<Vec<Digest>, StoreError> {
        let others = tags.attached.iter().filter(|(tag, subject)| {
            let ours = tag.as_str().ends_with(".sig") || !tag.as_str().contains('.');
            kept.contains(subject) && !ours
        });
        let others = others.map(|(tag, _)| tag.clone()).collect();
        Ok(self.resolve(others).await?.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Everything that goes with the checkpoints.
    async fn gather(&mut self, tags: &Tags, kept: &HashSet<Digest>, going: &mut Going) -> Result<(), StoreError> {
        let mut below: Vec<Digest> = self.reached(going.roots.clone().into_iter()).await?.into_iter().collect();
        below.retain(|digest| !kept.contains(digest));
        below.sort();
        let all: HashSet<Digest> = below.iter().copied().collect();
        for digest in below {
            let Some(document) = self.document(&digest).await? else { continue };
            let doomed = Doomed { digest, document, place: Place::Alone };
            match going.is_root(&digest) {
                true => going.indexes.push(doomed),
                false => going.members.push(doomed),
            }
        }
        let mut taken: HashSet<Digest> = all.union(kept).copied().collect();
        for subject in &all {
            for referrer in referrers::list(self.http, subject).await? {
                if taken.insert(referrer.digest) {
                    let digest = referrer.digest;
                    let Some(document) = self.document(&digest).await? else { continue };
                    // The list may name anything; what says of itself that it is about the subject
                    // goes with it.
                    let links = Links::parse(document.bytes()).ok().and_then(|links| links.subject);
                    if links.is_some_and(|named| named.digest == *subject) {
                        going.attached.push(Doomed { digest, document, place: Place::Referrer(*subject) });
                    }
                }
            }
        }
        for (tag, subject) in &tags.attached {
            let orphaned =
                !kept.contains(subject) && !all.contains(subject) && !documents::has(self.http, subject).await?;
            if !all.contains(subject) && !orphaned {
                continue;
            }
            let read = documents::get_bytes(self.http, &Selector::Tag(tag.clone())).await;
            let Some((_, bytes, _)) = given(read)? else { continue };
            let media_type =
                Links::parse(&bytes).map_or_else(|_| MEDIA_INDEX.to_owned(), |links| links.media_type().to_owned());
            let document = Document::new(media_type, bytes.into());
            if taken.insert(document.digest()) {
                going.attached.push(Doomed { digest: document.digest(), document, place: Place::Tagged(tag.clone()) });
            }
        }
        Ok(())
    }

    /// What goes, and which blobs nothing needs then.
    async fn report(&mut self, kept: &HashSet<Digest>, going: &Going) -> Result<Removed, StoreError> {
        let links = |document: &Document| Links::parse(document.bytes()).ok();
        let needed: HashSet<Digest> = kept
            .iter()
            .filter_map(|digest| self.known.get(digest))
            .flat_map(|known| known.blobs.iter().map(|(digest, _)| *digest))
            .collect();
        let mut blobs = HashMap::new();
        let mut bytes = 0;
        for doomed in going.in_order() {
            bytes += doomed.document.bytes().len() as u64;
            let named = links(&doomed.document);
            let named = named.iter().flat_map(Links::blobs).filter(|blob| !needed.contains(&blob.digest));
            blobs.extend(named.map(|blob| (blob.digest, blob.size)));
        }
        Ok(Removed {
            checkpoints: going.roots.clone(),
            manifests: going.in_order().count(),
            blobs: blobs.len(),
            bytes: blobs.values().fold(bytes, |sum: u64, size| sum.saturating_add(*size)),
            ..Removed::default()
        })
    }

    /// Puts back what was deleted and tags lead to that came or moved meanwhile.
    async fn put_back(&mut self, before: &Tags, after: &Tags, going: &Going) -> Result<(), StoreError> {
        let new = after.images.iter().filter(|(tag, digest)| before.images.get(*tag) != Some(digest));
        let new: Vec<Digest> = new.map(|(_, digest)| *digest).collect();
        let mut needed = self.reached(new.into_iter()).await?;
        // Members first, then indexes, then what is about them.
        for doomed in going.members.iter().chain(&going.indexes).chain(&going.attached) {
            let wanted = match &doomed.place {
                Place::Alone => needed.contains(&doomed.digest),
                Place::Tagged(tag) => tag.about().is_some_and(|subject| needed.contains(&subject)),
                Place::Referrer(subject) => needed.contains(subject),
            };
            if !wanted {
                continue;
            }
            match &doomed.place {
                Place::Alone => documents::put(self.http, &doomed.document, None).await.map(drop)?,
                Place::Tagged(tag) => documents::put(self.http, &doomed.document, Some(tag)).await.map(drop)?,
                Place::Referrer(subject) => referrers::put(self.http, subject, &doomed.document).await?,
            }
            needed.insert(doomed.digest);
        }
        Ok(())
    }
}

/// Tags of removed checkpoints that the registry did not take away with what they named.
async fn stale(http: &Http, going: &Going, after: &Tags) -> Result<Vec<Tag>, StoreError> {
    let mut stale = Vec::new();
    for tag in &going.tags {
        if after.names.contains(tag) && !after.images.contains_key(tag) {
            match documents::delete_tag(http, tag).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(StoreError::Refused { .. }) => stale.push(tag.clone()),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(stale)
}

/// Deletes a manifest, and in most registries the tags that name it.
pub(super) async fn delete(http: &Http, digest: &Digest) -> Result<(), StoreError> {
    let url = http.url(&format!("manifests/{digest}"));
    let call = Call::new(Method::DELETE, url, Access::Delete, format!("deleting manifest {digest}"));
    let response = http.call(&call).await?;
    match response.status() {
        status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
        status @ (StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => {
            let reason = format!(
                "this registry does not delete manifests ({status}); docker-registry does with REGISTRY_STORAGE_DELETE_ENABLED=true"
            );
            Err(http.transport.refused(&call.operation, reason))
        }
        _ => Err(http.refuse(&call, &format!("manifest {digest}"), response).await),
    }
}
