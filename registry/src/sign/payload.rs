//! What is signed, in its two forms: the simplesigning payload and the in-toto statement inside a sigstore bundle.
//!
//! Both name the digest of exactly one manifest. Reading them is strict about what they say and lenient about what is
//! added to them, since other tools write them too.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image_format::{Digest, canonical_json, one_line};
use serde::Deserialize;
use serde_json::json;

use super::key::{PrivateKey, PublicKey};

/// `critical.type` of a simplesigning payload, as containers/image and cosign have it.
const SIMPLE_TYPE: &str = "cosign container image signature";
/// Media type of a bundle, also its artifact type. Readers take any version before 1.0 of this name.
pub(crate) const MEDIA_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// All versions of bundles that were ever written begin like this.
pub(crate) const MEDIA_BUNDLE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The predicate with which cosign 3 signs an image; others are attestations, which say something else.
pub(crate) const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// Why something under a signature's name is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// It cannot be understood.
    Malformed(String),
    /// A good signature of none of the keys.
    OtherKey,
    /// A good signature of one of the keys, over something else.
    OtherDigest(String),
    /// A statement that is no signature of an image, such as an attestation.
    OtherKind(String),
}

/// A signature that holds: by which key, and the name that was signed with the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted<'k> {
    pub(crate) key: &'k PublicKey,
    pub(crate) identity: Option<String>,
}

/// The payload that cosign and podman's policies check.
pub(crate) fn simple_payload(digest: &Digest, identity: &str) -> Result<Vec<u8>, serde_json::Error> {
    canonical_json(&json!({
        "critical": {
            "identity": {"docker-reference": identity},
            "image": {"docker-manifest-digest": digest},
            "type": SIMPLE_TYPE,
        },
        "optional": null,
    }))
}

#[derive(Deserialize)]
struct Simple {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Checks a payload and its base64 signature against a manifest's digest.
///
/// The signature first: what nobody vouches for is not even parsed.
pub(crate) fn check_simple<'k>(
    payload: &[u8],
    signature: &str,
    digest: &Digest,
    keys: &'k [PublicKey],
) -> Result<Accepted<'k>, Rejection> {
    let key = signer(payload, signature, keys)?;
    let simple: Simple = serde_json::from_slice(payload).map_err(|error| malformed("its payload", &error))?;
    let Critical { identity, image, kind } = simple.critical;
    if kind != SIMPLE_TYPE {
        return Err(Rejection::OtherKind(short(&kind)));
    }
    if image.digest != digest.to_string() {
        return Err(Rejection::OtherDigest(short(&image.digest)));
    }
    Ok(Accepted { key, identity: Some(identity.reference) })
}

/// The key whose signature it is.
fn signer<'k>(message: &[u8], signature: &str, keys: &'k [PublicKey]) -> Result<&'k PublicKey, Rejection> {
    let signature = BASE64.decode(signature).map_err(|error| malformed("its signature", &error))?;
    for key in keys {
        match key.verify(message, &signature) {
            Some(true) => return Ok(key),
            Some(false) => {}
            None => return Err(Rejection::Malformed("its signature is not an ASN.1 ECDSA signature".to_owned())),
        }
    }
    Err(Rejection::OtherKey)
}

/// A bundle over a manifest's digest, as cosign 3 writes it with a key and without a transparency log.
pub(crate) fn bundle(digest: &Digest, key: &PrivateKey) -> Result<Vec<u8>, serde_json::Error> {
    let statement = canonical_json(&json!({
        "_type": STATEMENT_TYPE,
        "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": PREDICATE,
        "predicate": {},
    }))?;
    let signature = key.sign(&authenticated(PAYLOAD_TYPE, &statement));
    canonical_json(&json!({
        "mediaType": MEDIA_BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": key.public_key().hint()}},
        "dsseEnvelope": {
            "payload": BASE64.encode(statement),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": BASE64.encode(signature)}],
        },
    }))
}

/// DSSE's pre-authentication encoding: what is really signed, so that a payload cannot pass for one of another type.
fn authenticated(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// Checks a bundle against a manifest's digest.
pub(crate) fn check_bundle<'k>(
    bytes: &[u8],
    digest: &Digest,
    keys: &'k [PublicKey],
) -> Result<Accepted<'k>, Rejection> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| malformed("the bundle", &error))?;
    let Some(envelope) = bundle.envelope else {
        return Err(Rejection::OtherKind("a bundle without a DSSE envelope".to_owned()));
    };
    let statement = BASE64.decode(&envelope.payload).map_err(|error| malformed("its payload", &error))?;
    let message = authenticated(&envelope.payload_type, &statement);
    let mut worst = Rejection::Malformed("its envelope has no signature".to_owned());
    let mut key = None;
    for EnvelopeSignature { sig } in &envelope.signatures {
        match signer(&message, sig, keys) {
            Ok(found) => key = Some(found),
            Err(rejection) => worst = rejection,
        }
    }
    let key = key.ok_or(worst)?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(Rejection::OtherKind(short(&envelope.payload_type)));
    }
    let statement: Statement =
        serde_json::from_slice(&statement).map_err(|error| malformed("its statement", &error))?;
    if statement.kind != STATEMENT_TYPE || statement.predicate_type != PREDICATE {
        return Err(Rejection::OtherKind(short(&statement.predicate_type)));
    }
    let hex = digest.hex();
    let mut named = statement.subject.iter().filter_map(|subject| subject.digest.get("sha256"));
    if named.clone().any(|named| *named == hex) {
        return Ok(Accepted { key, identity: None });
    }
    Err(Rejection::OtherDigest(named.next().map_or_else(|| "none".to_owned(), |named| short(named))))
}

fn malformed(what: &str, error: &dyn std::fmt::Display) -> Rejection {
    Rejection::Malformed(short(&format!("{what}: {error}")))
}

/// Texts from elsewhere are shown in messages; their length is not to be theirs to choose.
fn short(text: &str) -> String {
    one_line(text, 160)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> (PrivateKey, PrivateKey) {
        (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap())
    }

    fn signed(key: &PrivateKey, payload: &[u8]) -> String {
        BASE64.encode(key.sign(payload))
    }

    #[test]
    fn the_payload_is_cosigns() {
        let digest = Digest::of(b"");
        let expected = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"host/r:t"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        assert_eq!(simple_payload(&digest, "host/r:t").unwrap(), expected.as_bytes());
    }

    #[test]
    fn simple_signatures_are_told_apart() {
        let (ours, theirs) = keys();
        let trusted = [theirs.public_key(), ours.public_key()];
        let digest = Digest::of(b"manifest");
        let payload = simple_payload(&digest, "host/r:t").unwrap();
        let check = |payload: &[u8], signature: &str, keys| check_simple(payload, signature, &digest, keys);

        let good = check(&payload, &signed(&ours, &payload), &trusted).unwrap();
        assert_eq!((good.key, good.identity.as_deref()), (&trusted[1], Some("host/r:t")));
        assert_eq!(check(&payload, &signed(&ours, &payload), &trusted[..1]), Err(Rejection::OtherKey));
        assert_eq!(check(&payload, &signed(&ours, b"x"), &trusted), Err(Rejection::OtherKey));
        let other = simple_payload(&Digest::of(b"other"), "host/r:t").unwrap();
        assert!(matches!(check(&other, &signed(&ours, &other), &trusted), Err(Rejection::OtherDigest(_))));
        let kind = String::from_utf8(payload.clone()).unwrap().replace(SIMPLE_TYPE, "atomic").into_bytes();
        assert_eq!(check(&kind, &signed(&ours, &kind), &trusted), Err(Rejection::OtherKind("atomic".to_owned())));
        for bad in ["", "!", "AAAA", &BASE64.encode(b"0\x06\x02\x01\x00\x02\x01\x00")] {
            assert!(matches!(check(&payload, bad, &trusted), Err(Rejection::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(check(b"{}", &signed(&ours, b"{}"), &trusted), Err(Rejection::Malformed(_))));
    }

    #[test]
    fn bundles_are_told_apart() {
        let (ours, theirs) = keys();
        let trusted = [ours.public_key()];
        let digest = Digest::of(b"manifest");
        let made = bundle(&digest, &ours).unwrap();
        assert_eq!(made, bundle(&digest, &ours).unwrap());
        assert_eq!(check_bundle(&made, &digest, &trusted).unwrap().key, &trusted[0]);
        assert!(matches!(check_bundle(&made, &Digest::of(b""), &trusted), Err(Rejection::OtherDigest(_))));
        let other = bundle(&digest, &theirs).unwrap();
        assert_eq!(check_bundle(&other, &digest, &trusted), Err(Rejection::OtherKey));

        let statement = |kind: &str, predicate: &str| {
            let text =
                json!({"_type": kind, "predicateType": predicate, "subject": [{"digest": {"sha256": digest.hex()}}]});
            text.to_string().into_bytes()
        };
        let with = |payload_type: &str, payload: &[u8], signature: &str| {
            let signature = if signature.is_empty() {
                signed(&ours, &authenticated(payload_type, payload))
            } else {
                signature.to_owned()
            };
            let envelope = json!({"payload": BASE64.encode(payload), "payloadType": payload_type, "signatures": [{"sig": "x"}, {"sig": signature}]});
            check_bundle(json!({"dsseEnvelope": envelope}).to_string().as_bytes(), &digest, &trusted)
        };
        assert!(with(PAYLOAD_TYPE, &statement(STATEMENT_TYPE, PREDICATE), "").is_ok());
        let attestation = with(PAYLOAD_TYPE, &statement(STATEMENT_TYPE, "https://slsa.dev/provenance/v1"), "");
        assert!(matches!(attestation, Err(Rejection::OtherKind(_))));
        assert!(matches!(with("text/plain", &statement(STATEMENT_TYPE, PREDICATE), ""), Err(Rejection::OtherKind(_))));
        // Signed without the payload's type: the bytes alone are not enough.
        let plain = statement(STATEMENT_TYPE, PREDICATE);
        assert_eq!(with(PAYLOAD_TYPE, &plain, &signed(&ours, &plain)), Err(Rejection::OtherKey));
        assert!(matches!(with(PAYLOAD_TYPE, b"[]", ""), Err(Rejection::Malformed(_))));
    }

    proptest! {
        #[test]
        fn nothing_unsigned_is_ever_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,100}") {
            let key = [PublicKey::load(include_str!("../../../fixtures/keys/cosign-2.pub")).unwrap()];
            let digest = Digest::of(&bytes);
            prop_assert!(check_simple(&bytes, &text, &digest, &key).is_err());
            prop_assert!(check_bundle(&bytes, &digest, &key).is_err());
            let envelope = json!({"dsseEnvelope": {"payload": BASE64.encode(&bytes), "payloadType": text, "signatures": [{"sig": BASE64.encode(&bytes)}]}});
            prop_assert!(check_bundle(envelope.to_string().as_bytes(), &digest, &key).is_err());
        }

        #[test]
        fn one_changed_bit_breaks_a_signature(bit in 0usize..8 * 200, seed in any::<[u8; 32]>()) {
            let key = PrivateKey::load(include_str!("../../../fixtures/keys/openssl.key"), &super::super::Password::new("")).unwrap();
            let trusted = [key.public_key()];
            let digest = Digest::of(&seed);
            let payload = simple_payload(&digest, "host/r:t").unwrap();
            let signature = signed(&key, &payload);
            let mut changed = payload.clone();
            let at = bit / 8 % changed.len();
            changed[at] ^= 1 << (bit % 8);
            prop_assert!(check_simple(&payload, &signature, &digest, &trusted).is_ok());
            prop_assert!(check_simple(&changed, &signature, &digest, &trusted).is_err());
        }
    }
}
