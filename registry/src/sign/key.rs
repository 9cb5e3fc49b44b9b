//! Keys in the files that cosign writes: ECDSA on P-256, the private key sealed with a password.
//!
//! The sealed form is PEM around JSON: a key stretched by scrypt opens a NaCl secretbox with the PKCS #8 document.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Key, Nonce, XSalsa20Poly1305};
use image_format::Digest;
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, PrivateKeyInfoRef};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The heading that cosign 2 and 3 write.
const SEALED: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
/// The heading that cosign 1 wrote.
const SEALED_OLD: &str = "ENCRYPTED COSIGN PRIVATE KEY";
const PLAIN: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
/// A key file has some 700 bytes.
const MAX_FILE: usize = 64 << 10;
/// What scrypt may use of memory (128 N r bytes) and of time (N r p steps) for a file from anywhere: four times cosign's.
const MAX_STRETCH: u64 = 4 * 65_536 * 8;
const STANDARD_N: u64 = 65_536;
/// A sequence of the algorithm (id-ecPublicKey, prime256v1) and a bit string of 65 bytes.
const DER_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// What opens a sealed private key. It is wiped from memory when dropped, and never shown.
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(password.into()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// Why a key could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No PEM document in it, or one that is cut.
    #[error("the key file holds no PEM document")]
    Pem(#[source] pem::PemError),
    /// Larger than any key.
    #[error("the key file has {size} bytes; at most {MAX_FILE} are accepted")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// A PEM document of another kind.
    #[error("the key file holds a {found:?}; {expected} is needed")]
    Kind {
        /// Its heading.
        found: String,
        /// What can be read.
        expected: &'static str,
    },
    /// The sealed form has another shape than cosign's.
    #[error("the sealed private key is malformed: {reason}")]
    Malformed {
        /// In which way.
        reason: String,
    },
    /// Parameters that would use up the machine's memory or time.
    #[error("the sealed private key asks for scrypt with N={n} r={r} p={p}, which is beyond what is accepted")]
    Stretch {
        /// CPU and memory cost.
        n: u64,
        /// Block size.
        r: u64,
        /// Parallelism.
        p: u64,
    },
    /// The seal does not open.
    #[error("the private key does not open: the password is wrong or the file is damaged")]
    WrongPassword,
    /// A key of a kind that cosign knows too, or some other.
    #[error(
        "it is {found}; only ECDSA keys on the curve P-256 are supported, as `syncpoint key generate` and cosign make them"
    )]
    NotP256 {
        /// What it is, with an article.
        found: String,
    },
    /// The system gave no random bytes.
    #[error("no random bytes")]
    Random(#[source] getrandom::Error),
    /// The key could not be written.
    #[error("the key could not be encoded")]
    Encode,
}

/// A private key that signs.
pub struct PrivateKey(SigningKey);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// A system without random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        loop {
            let bytes = random::<32>()?;
            // One in 2^32 draws is not below the order of the curve.
            if let Ok(key) = SigningKey::from_slice(&*bytes) {
                return Ok(Self(key));
            }
        }
    }

    /// Reads cosign's sealed form, old and new, or plain PKCS #8, for which the password is not used.
    ///
    /// Opening a sealed key takes some 64 MiB of memory and a tenth of a second, at most four times of each.
    ///
    /// # Errors
    /// Anything else, and a password that does not fit.
    pub fn load(text: &str, password: &Password) -> Result<Self, KeyError> {
        let document = parse(text)?;
        let der = match document.tag() {
            PLAIN => Zeroizing::new(document.into_contents()),
            SEALED | SEALED_OLD => Sealed::parse(document.contents())?.open(password)?,
            found => {
                return Err(KeyError::Kind {
                    found: found.chars().take(64).collect(),
                    expected: "private key made by cosign or syncpoint, or a PKCS #8 one,",
                });
            }
        };
        SigningKey::from_pkcs8_der(&der).map(Self).map_err(|_| {
            let algorithm = PrivateKeyInfoRef::try_from(&der[..]).ok().map(|key| key.algorithm);
            not_p256(algorithm)
        })
    }

    /// The form that cosign reads, sealed with a password.
    ///
    /// # Errors
    /// A system without random bytes.
    pub fn to_encrypted_pem(&self, password: &Password) -> Result<String, KeyError> {
        let der = self.0.to_pkcs8_der().map_err(|_| KeyError::Encode)?;
        let sealed = serde_json::to_vec(&Sealed::seal(der.as_bytes(), password)?).map_err(|_| KeyError::Encode)?;
        Ok(to_pem(SEALED, sealed))
    }

    /// The key that checks what this one signs.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(*self.0.verifying_key())
    }

    /// The ASN.1 signature over the SHA-256 of `message`. The same message is signed with the same bytes every time
    /// (RFC 6979), so that signing twice adds nothing.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(message);
        signature.to_der().as_bytes().to_vec()
    }
}

/// A public key that checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads `-----BEGIN PUBLIC KEY-----`, as cosign and openssl write it.
    ///
    /// # Errors
    /// Anything else, and keys that are not ECDSA on P-256.
    pub fn load(text: &str) -> Result<Self, KeyError> {
        let document = parse(text)?;
        if document.tag() != PUBLIC {
            let found = document.tag().chars().take(64).collect();
            return Err(KeyError::Kind { found, expected: "public key" });
        }
        VerifyingKey::from_public_key_der(document.contents()).map(Self).map_err(|_| {
            let key = SubjectPublicKeyInfoRef::try_from(document.contents()).ok();
            not_p256(key.map(|key| key.algorithm))
        })
    }

    /// The form that [`PublicKey::load`] and cosign read.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(PUBLIC, self.der())
    }

    /// The SHA-256 of the key's DER form: what tells keys apart in messages.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.der())
    }

    /// How a bundle names the key, as sigstore-go computes it. A hint only: whoever verifies brings the key.
    pub(crate) fn hint(&self) -> String {
        use sha2::Digest as _;
        BASE64.encode(sha2::Sha256::digest(self.der()))
    }

    /// RFC 5480's SubjectPublicKeyInfo. Everything before the point is the same for all keys on P-256.
    fn der(&self) -> Vec<u8> {
        [&DER_PREFIX[..], self.0.to_sec1_point(false).as_bytes()].concat()
    }

    /// Whether `signature` (ASN.1) is this key's over `message`. `None` if it is no signature at all.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> Option<bool> {
        let signature = Signature::from_der(signature).ok()?;
        Some(self.0.verify(message, &signature).is_ok())
    }
}

/// Says what a key is that is not on P-256, or is damaged.
fn not_p256(algorithm: Option<AlgorithmIdentifierRef<'_>>) -> KeyError {
    let found = match algorithm.map(|algorithm| (algorithm.oid.to_string(), algorithm)) {
        None => "no key".to_owned(),
        Some((oid, algorithm)) => match oid.as_str() {
            "1.2.840.113549.1.1.1" => "an RSA key".to_owned(),
            "1.3.101.112" => "an Ed25519 key".to_owned(),
            "1.3.101.113" => "an Ed448 key".to_owned(),
            "1.2.840.10045.2.1" => match algorithm.parameters_oid().map(|curve| curve.to_string()).as_deref() {
                Ok("1.2.840.10045.3.1.7") => "a damaged ECDSA key on P-256".to_owned(),
                Ok("1.3.132.0.34") => "an ECDSA key on P-384".to_owned(),
                Ok("1.3.132.0.35") => "an ECDSA key on P-521".to_owned(),
                Ok(curve) => format!("an ECDSA key on the curve {curve}"),
                Err(_) => "an ECDSA key on a curve without a name".to_owned(),
            },
            other => format!("a key of the algorithm {other}"),
        },
    };
    KeyError::NotP256 { found }
}

fn to_pem(heading: &str, content: Vec<u8>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(heading, content), config)
}

fn parse(text: &str) -> Result<pem::Pem, KeyError> {
    if text.len() > MAX_FILE {
        return Err(KeyError::TooLarge { size: text.len() });
    }
    pem::parse(text).map_err(KeyError::Pem)
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(KeyError::Random)?;
    Ok(bytes)
}

/// The JSON inside the PEM document.
#[derive(Serialize, Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct Kdf {
    name: String,
    params: Stretch,
    salt: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Stretch {
    #[serde(rename = "N")]
    n: u64,
    r: u64,
    p: u64,
}

#[derive(Serialize, Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

impl Sealed {
    fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed { reason };
        let sealed: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let (kdf, cipher) = (&sealed.kdf.name, &sealed.cipher.name);
        if kdf != "scrypt" || cipher != "nacl/secretbox" {
            let short = |text: &String| text.chars().take(32).collect::<String>();
            return Err(malformed(format!("it uses {:?} and {:?}", short(kdf), short(cipher))));
        }
        Ok(sealed)
    }

    fn open(&self, password: &Password) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let decode = |name, text: &str| {
            BASE64.decode(text).map_err(|error| KeyError::Malformed { reason: format!("its {name}: {error}") })
        };
        let nonce: [u8; 24] = decode("nonce", &self.cipher.nonce)?
            .try_into()
            .map_err(|_| KeyError::Malformed { reason: "its nonce has not 24 bytes".to_owned() })?;
        let ciphertext = decode("ciphertext", &self.ciphertext)?;
        let key = self.kdf.params.derive(password, &decode("salt", &self.kdf.salt)?)?;
        let cipher = XSalsa20Poly1305::new(Key::from_slice(&*key));
        let opened = cipher.decrypt(Nonce::from_slice(&nonce), &*ciphertext);
        opened.map(Zeroizing::new).map_err(|_| KeyError::WrongPassword)
    }

    fn seal(content: &[u8], password: &Password) -> Result<Self, KeyError> {
        let (salt, nonce) = (random::<32>()?, random::<24>()?);
        let params = Stretch { n: STANDARD_N, r: 8, p: 1 };
        let cipher = XSalsa20Poly1305::new(Key::from_slice(&*params.derive(password, &*salt)?));
        let ciphertext = cipher.encrypt(Nonce::from_slice(&*nonce), content).map_err(|_| KeyError::Encode)?;
        Ok(Self {
            kdf: Kdf { name: "scrypt".to_owned(), params, salt: BASE64.encode(*salt) },
            cipher: Cipher { name: "nacl/secretbox".to_owned(), nonce: BASE64.encode(*nonce) },
            ciphertext: BASE64.encode(ciphertext),
        })
    }
}

impl Stretch {
    fn derive(self, password: &Password, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let Self { n, r, p } = self;
        let refused = || KeyError::Stretch { n, r, p };
        let steps = n.checked_mul(r).and_then(|steps| steps.checked_mul(p)).ok_or_else(refused)?;
        if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 || steps > MAX_STRETCH {
            return Err(refused());
        }
        let (Ok(log_n), Ok(r), Ok(p)) = (u8::try_from(n.ilog2()), u32::try_from(r), u32::try_from(p)) else {
            return Err(refused());
        };
        let params = scrypt::Params::new(log_n, r, p).map_err(|_| refused())?;
        let mut key = Zeroizing::new([0; 32]);
        scrypt::scrypt(&password.0, salt, &params, &mut *key).map_err(|_| refused())?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/keys/", $name))
        };
    }

    fn password() -> Password {
        Password::new("syncpoint-test")
    }

    #[test]
    fn keys_of_cosign_and_openssl_open() {
        for (private, public) in [
            (fixture!("cosign-1.key"), fixture!("cosign-2.pub")),
            (fixture!("cosign-2.key"), fixture!("cosign-2.pub")),
            (fixture!("cosign-3.key"), fixture!("cosign-3.pub")),
            (fixture!("openssl.key"), fixture!("openssl.pub")),
        ] {
            let (private, public) = (PrivateKey::load(private, &password()).unwrap(), PublicKey::load(public).unwrap());
            assert_eq!(private.public_key(), public);
            let signature = private.sign(b"message");
            assert_eq!(signature, private.sign(b"message"));
            assert_eq!(public.verify(b"message", &signature), Some(true));
            assert_eq!(public.verify(b"other", &signature), Some(false));
            assert_eq!(public.verify(b"message", &signature[1..]), None);
        }
        assert_eq!(PublicKey::load(fixture!("cosign-2.pub")).unwrap().to_pem(), fixture!("cosign-2.pub"));
    }

    #[test]
    fn a_new_key_is_sealed_and_opened() {
        let key = PrivateKey::generate().unwrap();
        let sealed = key.to_encrypted_pem(&password()).unwrap();
        assert!(sealed.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"));
        assert_eq!(PrivateKey::load(&sealed, &password()).unwrap().public_key(), key.public_key());
        let wrong = PrivateKey::load(&sealed, &Password::new("guess")).unwrap_err();
        assert!(matches!(wrong, KeyError::WrongPassword));
        assert_ne!(sealed, key.to_encrypted_pem(&password()).unwrap());
        assert_eq!(format!("{key:?} {:?}", password()), "PrivateKey Password");
    }

    fn sealed(change: impl Fn(&mut serde_json::Value)) -> String {
        let document = pem::parse(fixture!("cosign-2.key")).unwrap();
        let mut content = serde_json::from_slice(document.contents()).unwrap();
        change(&mut content);
        pem::encode(&pem::Pem::new(SEALED, content.to_string()))
    }

    /// Made by openssl 3.0: `genpkey -algorithm`, `pkey -pubout`.
    #[test]
    fn the_kind_of_a_key_that_is_not_supported_is_named() {
        let public = |base64: &str| {
            let text = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n");
            PublicKey::load(&text).unwrap_err().to_string()
        };
        for (base64, kind) in [
            (
                "MCowBQYDK2VwAyEAXTPIbYOwEaO7oSWqeU9xZDtLJnJm4zLx6KZUAwoPUNE=",
                "it is an Ed25519 key; only ECDSA keys on the curve P-256",
            ),
            (
                "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEAtK99+dGzY4gXM9xNB/CS3dmrXdkPRaD1UgRkG22+dO1xc7W\
             xHfMSUOqbHmmx+m2gEjvyFP3Mx4ElFTPyYQP7puWTOFaMa0WDHrzQ0+gt8T/z6Fizc75Q24Z7GGWU98I",
                "it is an ECDSA key on P-384;",
            ),
            (
                "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEf3As+Svm/QlP4v//E6lB6Qz6V80Ssmlroo59h5l3WG8gU5HD\
             2M4zaAZWhWsBf18Mg8La/r0QJphgl2FQrr6xaQ==",
                "it is an ECDSA key on the curve 1.3.132.0.10;",
            ),
            (
                "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDSjhCbNOfaz/rTsMJb25n8wGMAVklRRxy2Ep57A7If\
             BGhLAjwR5GTBPlqyr5YxlaY4Mv1wfr609GKmmya+YtoXCuK8NpckCZ1i/f1UiR5jN2d3DU0kWNrfFt9o\
             a2RngOuCZpb2DS3dACUc+inR5OP0OdqXQV6KOW3tMpzJxqiR7wIDAQAB",
                "it is an RSA key;",
            ),
            ("MAA=", "it is no key;"),
        ] {
            let words = public(base64);
            assert!(words.starts_with(kind), "{words}");
        }
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIE5YK983EKdjcA8P25a8arsX86zlkexjvyX/HmxxYx8T\n-----END PRIVATE KEY-----\n";
        let words = PrivateKey::load(private, &password()).unwrap_err().to_string();
        assert!(words.starts_with("it is an Ed25519 key;"), "{words}");
    }

    #[test]
    fn hostile_key_files_are_refused() {
        let load = |text: &str| PrivateKey::load(text, &password()).unwrap_err();
        for (n, r, p) in [
            (1 << 40, 8, 1),
            (65_536, 1 << 32, 1 << 32),
            (65_536, 8, 1 << 20),
            (65_535, 8, 1),
            (0, 8, 1),
            (1, 8, 1),
            (65_536, 0, 1),
            (u64::MAX, u64::MAX, u64::MAX),
        ] {
            let text = sealed(|content| content["kdf"]["params"] = serde_json::json!({"N": n, "r": r, "p": p}));
            assert!(matches!(load(&text), KeyError::Stretch { .. }), "{n} {r} {p}");
        }
        for change in [
            |content: &mut serde_json::Value| content["kdf"]["name"] = "md5".into(),
            |content: &mut serde_json::Value| content["cipher"]["nonce"] = "AAAA".into(),
            |content: &mut serde_json::Value| content["ciphertext"] = "!".into(),
            |content: &mut serde_json::Value| *content = "x".into(),
        ] {
            assert!(matches!(load(&sealed(change)), KeyError::Malformed { .. }));
        }
        let damaged = sealed(|content| content["ciphertext"] = BASE64.encode([0; 100]).into());
        assert!(matches!(load(&damaged), KeyError::WrongPassword));
        assert!(matches!(load("not a key"), KeyError::Pem(_)));
        assert!(matches!(load(fixture!("openssl.pub")), KeyError::Kind { .. }));
        assert!(matches!(load(&"-".repeat(MAX_FILE + 1)), KeyError::TooLarge { .. }));
        let other = pem::encode(&pem::Pem::new(PLAIN, b"0".to_vec()));
        assert!(matches!(load(&other), KeyError::NotP256 { .. }));
        assert!(matches!(PublicKey::load(fixture!("openssl.key")).unwrap_err(), KeyError::Kind { .. }));
    }
}
