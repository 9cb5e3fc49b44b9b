//! The ticket to one restore of one member: what a launcher writes for the runtime.
//!
//! ```text
//! <run root>/<session>/<member>/   0700, its owner's alone
//!   criu.conf                      the session's configuration for CRIU
//!   ticket.json                    0600; good for one `create`
//!   ticket.taken                   the same file, after a `create` took it
//! ```
//!
//! A container says by an annotation which ticket is its own. The annotation names a session and a member
//! and nothing else: paths and permissions come from the ticket, which only the host's root can write.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use coordinator::SessionId;
use image_format::MemberId;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, open, openat, renameat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

/// The annotation of a container that is a member to be restored. Its value is a [`Seat`].
pub const ANNOTATION: &str = "io.syncpoint.restore";

/// Where launchers and runtimes meet, unless they are told otherwise.
pub const RUN_ROOT: &str = "/run/syncpoint";

/// A ticket that nobody took yet.
const TICKET: &str = "ticket.json";
/// A ticket that was taken.
const TAKEN: &str = "ticket.taken";
/// Far more than a ticket has.
const LARGEST: u64 = 1 << 20;

/// What a runtime needs for the restore of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// [`Ticket::VERSION`].
    pub version: u32,
    /// The member.
    pub member: MemberId,
    /// The session that restores it.
    pub session: SessionId,
    /// The folder of CRIU's images.
    pub images: PathBuf,
    /// Where CRIU and runc write the logs of this restore: a folder that is there.
    pub work: PathBuf,
    /// The session's configuration for CRIU, which names its hook.
    pub criu_config: PathBuf,
    /// What the container wrote to its root filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<RootDiff>,
    /// An archive of what was in the container's `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<PathBuf>,
    /// The container's own `config.json` at the dump: what the member says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PathBuf>,
    /// Whether the memory follows when the tasks run.
    #[serde(default)]
    pub lazily: bool,
}

/// The difference between a container's root filesystem and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDiff {
    /// `rootfs-diff.tar`: what is new or changed.
    pub tar: PathBuf,
    /// `deleted.files`: a JSON list of absolute paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<PathBuf>,
}

/// A member of a session, written `SESSION/MEMBER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The session.
    pub session: SessionId,
    /// The member.
    pub member: MemberId,
}

/// A text that is not `SESSION/MEMBER`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a member of a session: SESSION/MEMBER is, with 32 lower-case hex digits before the slash")]
pub struct ParseSeatError;

impl FromStr for Seat {
    type Err = ParseSeatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (session, member) = text.split_once('/').ok_or(ParseSeatError)?;
        let session = session.parse().map_err(|_| ParseSeatError)?;
        Ok(Self { session, member: member.parse().map_err(|_| ParseSeatError)? })
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.member)
    }
}

impl Seat {
    /// The folder of its ticket.
    #[must_use]
    pub fn folder(&self, run_root: &Path) -> PathBuf {
        run_root.join(self.session.to_string()).join(self.member.as_str())
    }
}

/// Why a ticket cannot be written or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It was taken, or never written, or its session is over.
    #[error("there is no ticket {path:?}: it was used already, or its session is over")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Somebody else could have written it.
    #[error("{path:?} is not the file or folder of root alone")]
    NotPrivate {
        /// The file or folder.
        path: PathBuf,
    },
    /// It is of another version of syncpoint.
    #[error("the ticket {path:?} has version {version}, and this runtime knows version {}", Ticket::VERSION)]
    Version {
        /// The ticket.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It says something that no launcher writes.
    #[error("the ticket {path:?} is not valid: {reason}")]
    Invalid {
        /// The ticket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot use {path:?}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Ticket {
    /// The version that this code writes and reads.
    pub const VERSION: u32 = 1;

    /// Whose ticket it is.
    #[must_use]
    pub fn seat(&self) -> Seat {
        Seat { session: self.session, member: self.member.clone() }
    }

    /// Writes it into the member's folder of its session, which is there. Nobody finds half a ticket.
    ///
    /// # Errors
    /// A ticket that is there already; what cannot be written.
    pub fn write(&self, run_root: &Path) -> Result<(), TicketError> {
        let folder = self.seat().folder(run_root);
        let path = folder.join(TICKET);
        let written = || {
            let mut file = tempfile_in(&folder)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            link(&file, &path)
        };
        written().map_err(|source| TicketError::File { path: path.clone(), source })
    }

    /// Takes the ticket of a member: of all that try, one gets it.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn take(run_root: &Path, seat: &Seat) -> Result<Self, TicketError> {
        let path = seat.folder(run_root).join(TICKET);
        let missing = || TicketError::Missing { path: path.clone() };
        let failed = |error: Errno| TicketError::File { path: path.clone(), source: error.into() };
        let folder = open_folder(run_root, seat, &path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&folder, TICKET, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(missing()),
            file => file.map_err(failed)?,
        };
        let stat = fstat(&file).map_err(failed)?;
        // The launcher's temporary file has no second name, so nor has a ticket.
        if !is_private(&stat, FileType::RegularFile) || stat.st_nlink > 1 {
            return Err(TicketError::NotPrivate { path });
        }
        // Whoever waits here finds the name gone, or another ticket under it, which is not this one's to take.
        flock(&file, FlockOperation::LockExclusive).map_err(failed)?;
        match statat(&folder, TICKET, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) => {}
            Ok(_) | Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(failed(error)),
        }
        renameat(&folder, TICKET, &folder, TAKEN).map_err(failed)?;
        read(&File::from(file), seat, &path)
    }
}

/// A new file that has no name yet.
fn tempfile_in(folder: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(open(folder, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a file its name, which nothing else has.
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, own, rustix::fs::CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Opens the folder of a ticket, each folder on the way being its owner's alone.
fn open_folder(run_root: &Path, seat: &Seat, ticket: &Path) -> Result<OwnedFd, TicketError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let missing = || TicketError::Missing { path: ticket.to_owned() };
    let checked = |folder: Result<OwnedFd, Errno>, path: &Path| {
        let failed = |error: Errno| TicketError::File { path: path.to_owned(), source: error.into() };
        let folder = match folder {
            Err(Errno::NOENT) => return Err(missing()),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(TicketError::NotPrivate { path: path.to_owned() }),
            folder => folder.map_err(failed)?,
        };
        let stat = fstat(&folder).map_err(failed)?;
        match is_private(&stat, FileType::Directory) {
            true => Ok(folder),
            false => Err(TicketError::NotPrivate { path: path.to_owned() }),
        }
    };
    let session = seat.session.to_string();
    let (second, third) = (run_root.join(&session), seat.folder(run_root));
    let top = checked(open(run_root, flags, Mode::empty()), run_root)?;
    let below = checked(openat(&top, session.as_str(), flags | OFlags::NOFOLLOW, Mode::empty()), &second)?;
    checked(openat(&below, seat.member.as_str(), flags | OFlags::NOFOLLOW, Mode::empty()), &third)
}

/// Whether it is of this kind, this process's user's, and nobody else can write to it.
fn is_private(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

fn read(file: &File, seat: &Seat, path: &Path) -> Result<Ticket, TicketError> {
    let invalid = |reason: String| TicketError::Invalid { path: path.to_owned(), reason };
    let mut json = Vec::new();
    file.take(LARGEST).read_to_end(&mut json).map_err(|source| TicketError::File { path: path.to_owned(), source })?;
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
    // Another version need not have the fields of this one.
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(Ticket::VERSION) => {}
        Some(version) => {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            return Err(TicketError::Version { path: path.to_owned(), version });
        }
        None => return Err(invalid("it has no version".to_owned())),
    }
    let ticket: Ticket = serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
    if ticket.seat() != *seat {
        return Err(invalid(format!("it is that of {}", ticket.seat())));
    }
    let rootfs = ticket.rootfs.iter().flat_map(|diff| [Some(&diff.tar), diff.deleted.as_ref()]);
    let required = [&ticket.images, &ticket.work, &ticket.criu_config].map(Some);
    let paths = required.into_iter().chain([ticket.shm.as_ref(), ticket.spec.as_ref()]).chain(rootfs);
    let relative = paths.flatten().find(|path| !path.is_absolute());
    match relative.map(|path| format!("the path {path:?} is not absolute")) {
        Some(reason) => Err(invalid(reason)),
        None => Ok(ticket),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};

    use super::*;

    fn seat() -> Seat {
        Seat { session: SessionId::from_bytes([7; 16]), member: "auditor".parse().unwrap() }
    }

    fn ticket() -> Ticket {
        let Seat { session, member } = seat();
        Ticket {
            version: Ticket::VERSION,
            member,
            session,
            images: "/w/images".into(),
            work: "/w/work".into(),
            criu_config: "/r/criu.conf".into(),
            rootfs: Some(RootDiff { tar: "/w/rootfs-diff.tar".into(), deleted: Some("/w/deleted.files".into()) }),
            shm: None,
            spec: Some("/w/spec.dump".into()),
            lazily: true,
        }
    }

    /// A run root with the member's folder in it.
    fn run_root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::DirBuilder::new().mode(0o700).recursive(true).create(seat().folder(root.path())).unwrap();
        root
    }

    fn write_raw(root: &Path, text: &str) {
        let path = seat().folder(root).join(TICKET);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_seat_is_a_session_and_a_member_and_never_a_path() {
        let session = "07".repeat(16);
        assert_eq!(format!("{session}/auditor").parse(), Ok(seat()));
        assert_eq!(seat().to_string(), format!("{session}/auditor"));
        for bad in ["", "/", "auditor", "../auditor", "07/auditor", "/auditor"] {
            assert_eq!(bad.parse::<Seat>(), Err(ParseSeatError), "{bad}");
        }
        for member in ["", "..", ".", "a/b", "/etc", "../x", "a b", "auditor/"] {
            assert_eq!(format!("{session}/{member}").parse::<Seat>(), Err(ParseSeatError), "{member}");
        }
        assert_eq!(format!("{}/auditor", "0A".repeat(16)).parse::<Seat>(), Err(ParseSeatError));
    }

    #[test]
    fn a_ticket_is_good_once() {
        let root = run_root();
        assert!(matches!(Ticket::take(root.path(), &seat()), Err(TicketError::Missing { .. })));
        ticket().write(root.path()).unwrap();
        assert!(matches!(ticket().write(root.path()), Err(TicketError::File { .. })), "one at a time");
        let mode = fs::metadata(seat().folder(root.path()).join(TICKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Ticket::take(root.path(), &seat()).unwrap(), ticket());
        assert!(matches!(Ticket::take(root.path(), &seat()), Err(TicketError::Missing { .. })));
        ticket().write(root.path()).unwrap();
        assert_eq!(Ticket::take(root.path(), &seat()).unwrap(), ticket(), "a new one is good again");
    }

    #[test]
    fn of_many_that_try_one_gets_it() {
        let root = run_root();
        ticket().write(root.path()).unwrap();
        let (root, took) = (root.path(), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| match Ticket::take(root, &seat()) {
                    Ok(_) => drop(took.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                    Err(error) => assert!(matches!(error, TicketError::Missing { .. }), "{error}"),
                });
            }
        });
        assert_eq!(took.into_inner(), 1);
    }

    #[test]
    fn what_others_could_have_written_is_refused_and_not_taken() {
        let refused = |spoil: &dyn Fn(&Path, &Path)| {
            let root = run_root();
            ticket().write(root.path()).unwrap();
            let path = seat().folder(root.path()).join(TICKET);
            spoil(root.path(), &path);
            let error = Ticket::take(root.path(), &seat()).unwrap_err();
            assert!(matches!(error, TicketError::NotPrivate { .. }), "{error}");
            assert!(path.symlink_metadata().is_ok());
        };
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        refused(&|_, ticket| chmod(ticket, 0o622));
        refused(&|_, ticket| chmod(ticket.parent().unwrap(), 0o777));
        refused(&|_, ticket| chmod(ticket.parent().unwrap().parent().unwrap(), 0o770));
        refused(&|root, _| chmod(root, 0o777));
        refused(&|root, ticket| fs::hard_link(ticket, root.join("second")).unwrap());
        refused(&|root, ticket| {
            let folder = ticket.parent().unwrap();
            fs::rename(folder, root.join("elsewhere")).unwrap();
            symlink(root.join("elsewhere"), folder).unwrap();
        });
    }

    #[test]
    fn what_is_no_ticket_says_why() {
        let refused = |text: &str| {
            let root = run_root();
            write_raw(root.path(), text);
            Ticket::take(root.path(), &seat()).unwrap_err()
        };
        let changed = |key: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(ticket()).unwrap();
            json[key] = value;
            refused(&json.to_string())
        };
        assert!(matches!(refused(r#"{"version": 2}"#), TicketError::Version { version: 2, .. }));
        for (error, words) in [
            (refused(""), "EOF"),
            (refused("{}"), "no version"),
            (refused(r#"{"version":1}"#), "missing field"),
            (changed("member", "other".into()), "/other"),
            (changed("images", "images".into()), "not absolute"),
            (changed("shm", "x".into()), "not absolute"),
            (changed("rootfs", serde_json::json!({"tar": "/t", "deleted": "d"})), "not absolute"),
        ] {
            assert!(matches!(error, TicketError::Invalid { .. }) && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_ticket_that_is_a_link_is_refused() {
        let root = run_root();
        write_raw(root.path(), "{}");
        let path = seat().folder(root.path()).join(TICKET);
        fs::rename(&path, root.path().join("t")).unwrap();
        symlink(root.path().join("t"), &path).unwrap();
        assert!(Ticket::take(root.path(), &seat()).is_err());
    }
}
