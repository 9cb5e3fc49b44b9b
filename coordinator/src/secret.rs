//! A member's secret: what its hooks show to speak in its name.

use std::fmt;
use std::hint::black_box;

use serde::{Deserialize, Serialize};

use crate::plan::hex_into;

/// 32 random bytes, written as 64 hex digits. Never shown by `Debug`, compared in constant time.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new secret, from the system's random numbers.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(&other.0).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        difference == 0
    }
}

/// A text that is not 64 lower-case hex digits; it is not shown, for it may be most of a secret.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not a secret: 64 lower-case hex digits are")]
pub struct ParseSecretError;

impl TryFrom<String> for Secret {
    type Error = ParseSecretError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex_into(&text, &mut bytes).ok_or(ParseSecretError)?;
        Ok(Self(bytes))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_match_themselves_only_and_are_not_shown() {
        let (Ok(a), Ok(b)) = (Secret::random(), Secret::random()) else { panic!("no random numbers") };
        assert!(a.matches(&a.clone()));
        assert!(!a.matches(&b));
        let text = String::from(a.clone());
        assert!(Secret::try_from(text.clone()).is_ok_and(|again| again.matches(&a)));
        assert!(Secret::try_from(text[2..].to_owned()).is_err());
        assert_eq!(format!("{a:?}"), "Secret(..)");
        let mut last = a.clone();
        last.0[31] ^= 1;
        assert!(!a.matches(&last));
    }
}
