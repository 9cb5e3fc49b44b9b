//! Keeping credentials where podman, skopeo and docker look for them, and forgetting them.

use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::credentials::{AuthFile, Credential, CredentialError, Helper};
use crate::reference::canonical_host;
use crate::remote::check_credential;
use crate::{Settings, StoreError};

/// Why somebody could not be logged in or out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The registry was not reached, or does not take the credentials. Nothing was kept.
    #[error("the credentials were not accepted")]
    Check(#[source] StoreError),
    /// The credentials cannot be kept or forgotten.
    #[error("the credentials cannot be kept")]
    Keep(#[source] CredentialError),
}

/// Asks the registry `host` (`HOST` or `HOST:PORT`) whether it takes user and password, and if it does keeps them in
/// `auth_file`: merged with what is there, with mode 0600, replaced in one step. Where the file names a credential helper
/// for the host, the helper keeps them, as with `podman login`.
///
/// # Errors
/// Credentials that are refused, and whatever hinders keeping them.
pub async fn login(
    host: &str,
    user: &str,
    password: &str,
    auth_file: &Path,
    settings: &Settings,
) -> Result<(), LoginError> {
    let host = canonical_host(host);
    check_credential(host, Credential::basic(user, password), settings).await.map_err(LoginError::Check)?;
    let mut file = read(auth_file).map_err(LoginError::Keep)?;
    let kept = match file.helper(host) {
        Some(helper) => match Helper::new(helper) {
            Ok(helper) => helper.store(host, user, password).await,
            Err(error) => Err(error),
        },
        None => file.set(host, user, password).and_then(|()| write(auth_file, file.content())),
    };
    kept.map_err(LoginError::Keep)
}

/// Forgets the credentials for `host`; whether there were any.
///
/// # Errors
/// Whatever hinders changing the file.
pub async fn logout(host: &str, auth_file: &Path) -> Result<bool, LoginError> {
    let host = canonical_host(host);
    let mut file = read(auth_file).map_err(LoginError::Keep)?;
    let forgotten = match file.helper(host) {
        Some(helper) => match Helper::new(helper) {
            Ok(helper) => helper.erase(host).await,
            Err(error) => Err(error),
        },
        None => Ok(false),
    };
    let helped = forgotten.map_err(LoginError::Keep)?;
    let removed = file.remove(host).map_err(LoginError::Keep)?;
    if removed {
        write(auth_file, file.content()).map_err(LoginError::Keep)?;
    }
    Ok(helped || removed)
}

fn read(auth_file: &Path) -> Result<AuthFile, CredentialError> {
    Ok(AuthFile::read(auth_file)?.unwrap_or_else(|| AuthFile::empty(auth_file)))
}

/// Replaces the file in one step, so that no reader ever sees a part of it.
fn write(path: &Path, content: &Map<String, Value>) -> Result<(), CredentialError> {
    let replace = || -> io::Result<()> {
        let mut text = Zeroizing::new(serde_json::to_vec_pretty(content)?);
        text.push(b'\n');
        // Where the file is a link, what it leads to is replaced, not the link.
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Made with mode 0600.
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    replace().map_err(|source| CredentialError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_merged_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/auth.json");
        let mut file = read(&path).unwrap();
        file.set("localhost:5000", "sdp", "hunter2").unwrap();
        write(&path, file.content()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let before = r#"{"auths":{"localhost":{"auth":"dTpw","email":"x"}},"credsStore":"","x":{"y":1}}"#;
        std::fs::write(&path, before).unwrap();
        let mut file = read(&path).unwrap();
        file.set("localhost:5000", "sdp", "hunter2").unwrap();
        write(&path, file.content()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(kept["auths"]["localhost"], serde_json::json!({"auth": "dTpw", "email": "x"}));
        assert_eq!(kept["auths"]["localhost:5000"], serde_json::json!({"auth": "c2RwOmh1bnRlcjI="}));
        assert_eq!((&kept["x"]["y"], &kept["credsStore"]), (&serde_json::json!(1), &serde_json::json!("")));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn logging_out_removes_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, r#"{"auths":{"a":{"auth":"dTpw"},"b":{"auth":"dTpw"}}}"#).unwrap();
        assert!(logout("a", &path).await.unwrap());
        assert!(!logout("a", &path).await.unwrap());
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(kept, serde_json::json!({"auths": {"b": {"auth": "dTpw"}}}));
    }
}
