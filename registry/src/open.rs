//! From the words of a person to a store.

use std::sync::Arc;

use crate::{LayoutStore, Location, RemoteStore, Settings, Store, StoreError};

/// Whether a store may be made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It has to be there.
    No,
    /// A layout's folder is made; registries make repositories by themselves.
    Layout,
}

/// Opens the store at a location.
///
/// # Errors
/// A layout that is missing, is none, or cannot be made; settings that a registry cannot be reached with.
pub async fn open(location: &Location, settings: &Settings, create: Create) -> Result<Arc<dyn Store>, StoreError> {
    match location {
        Location::Registry { host, repository } => {
            Ok(Arc::new(RemoteStore::connect(host, repository, settings).await?))
        }
        Location::ShortName(name) => {
            let (host, repository) = settings.registries.alias(name)?;
            Ok(Arc::new(RemoteStore::connect(&host, &repository, settings).await?))
        }
        Location::Layout(dir) => {
            let dir = dir.clone();
            let open = move || match create {
                Create::No => LayoutStore::open(&dir),
                Create::Layout => LayoutStore::create(&dir),
            };
            let store = tokio::task::spawn_blocking(open).await.map_err(|error| StoreError::Io {
                store: location.to_string(),
                operation: "opening the layout".to_owned(),
                source: std::io::Error::other(error),
            })??;
            Ok(Arc::new(store))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_layout_is_made_only_when_asked_for() {
        let top = tempfile::tempdir().unwrap();
        let location = Location::Layout(top.path().join("new"));
        let missing = open(&location, &Settings::default(), Create::No).await.unwrap_err();
        assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
        let made = open(&location, &Settings::default(), Create::Layout).await.unwrap();
        assert_eq!(made.name(), location.to_string());
        open(&location, &Settings::default(), Create::No).await.unwrap();
    }
}
