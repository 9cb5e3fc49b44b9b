//! Registries over HTTPS, through the public interface, against a registry in this process that breaks where it is told
//! to. The real docker-registry has its tests in the real tier.

mod auth;
mod documents;
mod downloads;
mod line;
mod login;
mod mirrors;
mod peer;
mod server;
mod support;
mod tls;
mod uploads;
mod wild;
