//! `syncpoint key ca` and `key issue`: what they make is what a rendezvous of several hosts takes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use coordinator::{
    Deadlines, Listen, Outpost, OutpostError, Remote, Rendezvous, SessionId, SessionKind, SessionPlan, TlsFiles,
};
use image_format::{Epoch, MemberId};
use rcgen::{BasicConstraints, CertificateParams, DnType, DnValue, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose};

use crate::common::World;

/// Longer than a common name may be.
const MEMBER: &str = "a.very_long-name.that-no-common.name-takes_and.that-no.host-name.has_0123456789";

fn id(member: &str) -> MemberId {
    member.parse().unwrap()
}

fn files(world: &World, ca: &str, prefix: &str) -> TlsFiles {
    let path = |name: String| world.path(&name);
    TlsFiles {
        ca: path(format!("{ca}.crt")),
        certificate: path(format!("{prefix}.crt")),
        key: path(format!("{prefix}.key")),
    }
}

/// Whether a rendezvous and a member with these files find each other.
async fn meet(server: TlsFiles, client: TlsFiles, host: &str, member: &str) -> Result<(), OutpostError> {
    let root = tempfile::tempdir().unwrap();
    let plan = SessionPlan {
        kind: SessionKind::Dump,
        id: SessionId::random().unwrap(),
        epoch: Epoch(1),
        application: "app".parse().unwrap(),
        members: vec![id(MEMBER), id("b")],
        deadlines: Deadlines::default(),
        fence: None,
    };
    let listen = Listen { address: "127.0.0.1:0".parse().unwrap(), tls: server };
    let hook = Path::new("/bin/true");
    let rendezvous = Rendezvous::start_with(&root.path().join("here"), plan, hook, Some(&listen)).await.unwrap();
    let address = format!("{host}:{}", rendezvous.address().unwrap().port());
    let remote = Remote { address, tls: client };
    let within = Duration::from_secs(10);
    let joined = Outpost::join(&root.path().join("there"), remote, SessionKind::Dump, id(member), hook, within).await;
    joined.map(|outpost| outpost.close().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_meet_by_what_was_issued() {
    let world = World::new();
    let out = world.good(&["key", "ca", "--output-prefix", "ca", "--name", "checkpoints"]);
    assert!(out.contains("ca.crt   checkpoints, until 20"), "{out}");
    world.good(&["key", "issue", "--ca", "ca", "--coordinator", "localhost,127.0.0.1", "--output-prefix", "hub"]);
    world.good(&["key", "issue", "--ca", "ca", "--member", "b", "--output-prefix", "b"]);
    let json = world.good(&["key", "issue", "--ca", "ca", "--member", MEMBER, "--output-prefix", "a", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["private"], &json["names"][0]), (&"a.key".into(), &MEMBER.into()));
    for (name, mode) in [("ca.key", 0o600), ("ca.crt", 0o644), ("a.key", 0o600), ("a.crt", 0o644)] {
        assert_eq!(fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    let hub = || files(&world, "ca", "hub");
    for host in ["localhost", "127.0.0.1"] {
        meet(hub(), files(&world, "ca", "a"), host, MEMBER).await.unwrap();
    }
    let refused = meet(hub(), files(&world, "ca", "b"), "localhost", MEMBER).await;
    assert!(matches!(refused, Err(OutpostError::Refused { .. })), "{refused:?}");
    let refused = meet(hub(), files(&world, "ca", "hub"), "localhost", MEMBER).await;
    assert!(matches!(refused, Err(OutpostError::Lost { .. })), "the coordinator's is no member's: {refused:?}");
    let refused = meet(files(&world, "ca", "b"), files(&world, "ca", "a"), "localhost", MEMBER).await;
    assert!(matches!(refused, Err(OutpostError::Lost { .. })), "a member's is not the coordinator's: {refused:?}");
}

/// openssl as strict as RFC 5280: without an authority key identifier it refuses.
fn assert_strict(world: &World, ca: &str, certificate: &str) {
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-CAfile"]).args([ca, certificate].map(|file| world.path(file)));
    let output = openssl.output().expect("openssl is installed");
    assert!(output.status.success(), "{certificate}: {output:?}");
}

#[test]
fn strict_verifiers_take_what_was_issued() {
    let world = World::new();
    world.good(&["key", "ca", "--output-prefix", "ca"]);
    world.good(&["key", "issue", "--ca", "ca", "--coordinator", "localhost", "--output-prefix", "hub"]);
    world.good(&["key", "issue", "--ca", "ca", "--member", "b", "--output-prefix", "b"]);
    // An authority that calls its own key as it likes.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![1, 2, 3]);
    params.distinguished_name.push(DnType::OrganizationName, "own");
    let key = KeyPair::generate().unwrap();
    fs::write(world.path("own.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(world.path("own.key"), key.serialize_pem()).unwrap();
    let said = world.run(&["key", "issue", "--ca", "own", "--member", "c", "--output-prefix", "c"]).err;
    assert!(said.contains("the private key own.key is open to others than its owner"), "{said}");
    for (ca, certificate) in [("ca.crt", "hub.crt"), ("ca.crt", "b.crt"), ("own.crt", "c.crt")] {
        assert_strict(&world, ca, certificate);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_of_ones_own_will_do() {
    let world = World::new();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap()));
    params.distinguished_name.push(DnType::OrganizationName, "Größer");
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    fs::write(world.path("own.crt"), ca.pem()).unwrap();
    fs::write(world.path("own.key"), key.serialize_pem()).unwrap();
    world.good(&["key", "issue", "--ca", "own", "--coordinator", "localhost", "--output-prefix", "hub"]);
    world.good(&["key", "issue", "--ca", "own", "--member", "b", "--output-prefix", "b"]);
    meet(files(&world, "own", "hub"), files(&world, "own", "b"), "localhost", "b").await.unwrap();
    // Nothing is good for longer than what it was issued by.
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    fs::write(world.path("short.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::copy(world.path("own.key"), world.path("short.key")).unwrap();
    let out =
        world.good(&["key", "issue", "--ca", "short", "--member", "c", "--days", "36500", "--output-prefix", "c"]);
    assert!(out.contains("c, until 2030-01-01"), "{out}");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    fs::write(world.path("short.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let said = world.bad(2, &["key", "issue", "--ca", "short", "--member", "d", "--output-prefix", "d"]);
    assert!(said.contains("is no longer good"), "{said}");
}

#[test]
fn nothing_is_replaced_and_nothing_made_by_halves() {
    let world = World::new();
    world.good(&["key", "ca"]);
    let before = fs::read(world.path("syncpoint-ca.key")).unwrap();
    let said = world.bad(2, &["key", "ca"]);
    assert!(said.contains("syncpoint-ca.key is there already") && said.contains("--output-prefix"), "{said}");
    let issue = |arguments: &[&str]| {
        let all = [&["key", "issue", "--output-prefix", "x"], arguments].concat();
        world.bad(2, &all)
    };
    assert!(issue(&[]).contains("--member"));
    issue(&["--member", "a", "--coordinator", "b"]);
    issue(&["--member", "../a"]);
    assert!(issue(&["--coordinator", "two words"]).contains("neither a host's name nor an address"));
    issue(&["--coordinator", "a,,b"]);
    issue(&["--member", "a", "--days", "0"]);
    world.bad(3, &["key", "issue", "--ca", "nowhere", "--member", "a", "--output-prefix", "x"]);
    world.good(&["key", "ca", "--output-prefix", "other"]);
    fs::copy(world.path("other.crt"), world.path("mixed.crt")).unwrap();
    fs::copy(world.path("syncpoint-ca.key"), world.path("mixed.key")).unwrap();
    assert!(issue(&["--ca", "mixed", "--member", "a"]).contains("mixed.key is not the key of mixed.crt"));
    fs::write(world.path("x.crt"), "").unwrap();
    assert!(issue(&["--member", "a"]).contains("x.crt is there already"));
    assert!(!world.path("x.key").exists());
    assert_eq!(fs::read(world.path("syncpoint-ca.key")).unwrap(), before);
}
