//! oci-client, which other programs in Rust use, as a peer: it reads what we wrote, and we read what it wrote.

use std::sync::Once;

use image_format::{Descriptor, Digest};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, Config, ImageLayer};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use registry::{CopyOptions, RemoteStore, Selector, Store, copy};
use serde_json::json;

use crate::server::{Auth, PASSWORD, Server, USER};
use crate::support::{descriptor, manifest, noise, put, read, tag};

const REPO: &str = "sdp/ledger";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// oci-client has no provider of its own here.
fn provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::aws_lc_rs::default_provider().install_default()));
}

async fn peers(auth: Auth) -> (Server, RemoteStore, Client, Reference, RegistryAuth) {
    provider();
    let server = Server::start(auth).await;
    let store = server.store(REPO).await;
    let ca = Certificate { encoding: CertificateEncoding::Pem, data: std::fs::read(&server.certificates.ca).unwrap() };
    let config = ClientConfig { extra_root_certificates: vec![ca], ..ClientConfig::default() };
    let client = Client::try_from(config).unwrap();
    let image = Reference::with_tag(server.host(), REPO.to_owned(), "a".to_owned());
    let auth = match auth {
        Auth::None => RegistryAuth::Anonymous,
        _ => RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned()),
    };
    (server, store, client, image, auth)
}

fn at(image: &Reference, digest: &Digest) -> Reference {
    image.clone_with_digest(digest.to_string())
}

#[tokio::test]
async fn it_reads_what_we_wrote() {
    for auth in [Auth::None, Auth::Basic, Auth::Bearer] {
        for native in [false, true] {
            let (server, store, client, image, auth) = peers(auth).await;
            server.state().native_referrers = native;
            let layer = noise(1, 5 << 20);
            put(&store, &layer).await.unwrap();
            put(&store, b"{}").await.unwrap();
            let content = json!({
                "schemaVersion": 2, "mediaType": image_format::annotation::MEDIA_MANIFEST,
                "config": Descriptor { media_type: image_format::annotation::MEDIA_CONFIG.to_owned(), ..descriptor(b"{}") },
                "layers": [Descriptor { media_type: LAYER.to_owned(), ..descriptor(&layer) }],
            });
            let bytes = image_format::canonical_json(&content).unwrap();
            let document = image_format::Document::new(image_format::annotation::MEDIA_MANIFEST, bytes);
            store.put_manifest(&document, Some(&tag("a"))).await.unwrap();
            let referrer = manifest("referrer", Some(&document));
            store.put_referrer(&document.digest(), &referrer).await.unwrap();

            let pulled = client.pull(&image, &auth, vec![LAYER]).await.unwrap();
            assert_eq!(pulled.digest, Some(document.digest().to_string()));
            assert_eq!(pulled.layers[0].data, layer);
            let listed = client.pull_referrers(&at(&image, &document.digest()), None).await.unwrap();
            let listed: Vec<_> = listed.manifests.iter().map(|entry| entry.digest.clone()).collect();
            assert_eq!(listed, [referrer.digest().to_string()]);
            let tags = client.list_tags(&image, &auth, None, None).await.unwrap().tags;
            assert!(tags.contains(&"a".to_owned()), "{tags:?}");
        }
    }
}

#[tokio::test]
async fn we_read_what_it_wrote() {
    for auth in [Auth::None, Auth::Basic, Auth::Bearer] {
        let (server, store, client, image, auth) = peers(auth).await;
        server.state().native_referrers = true;
        let layer = noise(2, 5 << 20);
        let layers = [ImageLayer::oci_v1(layer.clone(), None)];
        client.push(&image, &layers, Config::oci_v1(b"{}".to_vec(), None), &auth, None).await.unwrap();
        let root = store.resolve(&Selector::Tag(tag("a"))).await.unwrap();
        assert_eq!(read(&store, &descriptor(&layer)).await.unwrap(), layer);

        let (pulled, _) = client.pull_image_manifest(&image, &auth).await.unwrap();
        let mut subject = pulled.config.clone();
        subject.media_type = root.media_type.clone();
        subject.digest = root.digest.to_string();
        subject.size = i64::try_from(root.size).unwrap();
        let about = OciImageManifest {
            subject: Some(subject),
            media_type: Some(root.media_type.clone()),
            artifact_type: Some("application/x.test".to_owned()),
            ..pulled
        };
        let name = Reference::with_tag(server.host(), REPO.to_owned(), "about".to_owned());
        client.push_manifest(&name, &OciManifest::Image(about)).await.unwrap();
        let about = store.resolve(&Selector::Tag(tag("about"))).await.unwrap();
        let listed: Vec<_> = store.referrers(&root.digest).await.unwrap().iter().map(|found| found.digest).collect();
        assert_eq!(listed, [about.digest]);

        let to = server.store("sdp/copy").await;
        copy(&store, &root, &to, &CopyOptions { tag: Some(tag("b")), ..CopyOptions::default() }).await.unwrap();
        let copied = Reference::with_tag(server.host(), "sdp/copy".to_owned(), "b".to_owned());
        assert_eq!(client.pull(&copied, &auth, vec![LAYER]).await.unwrap().layers[0].data, layer);
    }
}
