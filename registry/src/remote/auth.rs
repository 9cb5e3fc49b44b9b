//! Proving who one is to a registry: Basic, or a Bearer token from the token server that the registry names
//! (distribution's "token authentication", which all registries follow).

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::http::{Transport, is_passing, retry_later};
use crate::StoreError;
use crate::credentials::Credential;
use crate::retry::{Failure, Retry};

/// A token server's answer is a few kilobytes.
const MAX_TOKEN: usize = 1 << 20;
/// What the specification takes a token's life to be when the server does not say.
const DEFAULT_LIFE: u64 = 60;
const OPERATION: &str = "getting a token";

/// What a request needs to be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Nothing in particular.
    Ping,
    /// Read the repository.
    Pull,
    /// Read and write it.
    Push,
    /// Delete in it.
    Delete,
    /// Write it, and read another one of the same registry.
    Mount(String),
}

impl Access {
    fn scopes(&self, repository: &str) -> Vec<String> {
        let own = |actions: &str| format!("repository:{repository}:{actions}");
        match self {
            Self::Ping => Vec::new(),
            Self::Pull => vec![own("pull")],
            Self::Push => vec![own("pull,push")],
            Self::Delete => vec![own("pull,push,delete")],
            Self::Mount(from) => vec![own("pull,push"), format!("repository:{from}:pull")],
        }
    }
}

/// One way to prove who one is that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// All those of an answer that this program knows.
    pub(super) fn all(headers: &HeaderMap) -> Vec<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        values.filter_map(|text| http_auth::parse_challenges(text).ok()).flatten().filter_map(Self::read).collect()
    }

    fn read(challenge: http_auth::ChallengeRef<'_>) -> Option<Self> {
        let value = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            Some(Self::Basic)
        } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
            Some(Self::Bearer { realm: value("realm")?, service: value("service"), scope: value("scope") })
        } else {
            None
        }
    }
}

/// How this registry wants proof.
#[derive(Debug, Clone, Default)]
enum Way {
    /// It has not asked yet.
    #[default]
    Unknown,
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

#[derive(Default)]
struct State {
    way: Way,
    tokens: HashMap<Access, Token>,
    /// Scopes that the registry asked for besides those we thought of.
    asked: HashMap<Access, String>,
}

struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

/// The credentials for one repository, and the tokens that they bought.
pub(super) struct Auth {
    credential: Option<Credential>,
    repository: String,
    /// Locked while a token is fetched, so that transfers side by side fetch one token, not one each.
    state: Mutex<State>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("credential", &self.credential).finish_non_exhaustive()
    }
}

impl Auth {
    pub(super) fn new(credential: Option<Credential>, repository: &str) -> Self {
        Self { credential, repository: repository.to_owned(), state: Mutex::default() }
    }

    /// What to add to a refusal.
    pub(super) fn hint(&self) -> &'static str {
        if self.credential.is_some() { "" } else { " (no credentials are known for it)" }
    }

    /// What must not show up in a message.
    pub(super) async fn secrets(&self) -> Vec<Zeroizing<String>> {
        let mut secrets = self.own_secrets();
        let state = self.state.lock().await;
        let tokens = state.tokens.values().filter_map(|token| token.header.to_str().ok()?.split_once(' '));
        secrets.extend(tokens.map(|(_, token)| Zeroizing::new(token.to_owned())));
        secrets
    }

    fn own_secrets(&self) -> Vec<Zeroizing<String>> {
        match &self.credential {
            Some(Credential::Basic { user, password }) => vec![password.clone(), pair(user, password)],
            Some(Credential::Identity(secret) | Credential::Bearer(secret)) => vec![secret.clone()],
            None => Vec::new(),
        }
    }

    /// The `Authorization` for a request. A token that is about to run out is replaced before.
    pub(super) async fn proof(
        &self,
        transport: &Transport,
        access: &Access,
    ) -> Result<Option<HeaderValue>, Failure<StoreError>> {
        if let Some(Credential::Bearer(token)) = &self.credential {
            return Ok(Some(bearer(transport, token)?));
        }
        let mut state = self.state.lock().await;
        match &state.way {
            Way::Unknown => Ok(None),
            Way::Basic => self.basic(transport),
            Way::Bearer { .. } => match state.tokens.get(access) {
                Some(token) if token.renew_at > Instant::now() => Ok(Some(token.header.clone())),
                Some(_) | None => self.fetch(transport, &mut state, access).await.map(Some),
            },
        }
    }

    /// Learns from a 401 how to do better. False when there is no better way.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        access: &Access,
        refused: Option<&HeaderValue>,
        challenges: &[Challenge],
    ) -> Result<bool, Failure<StoreError>> {
        if matches!(self.credential, Some(Credential::Bearer(_))) {
            return Ok(false);
        }
        let mut state = self.state.lock().await;
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        let Some((realm, service, scope)) = bearer else {
            let basic = challenges.contains(&Challenge::Basic) && self.basic(transport)?.is_some();
            if !basic || refused.is_some() {
                return Ok(false);
            }
            state.way = Way::Basic;
            return Ok(true);
        };
        let current = state.tokens.get(access).map(|token| &token.header);
        if refused.is_some() && current.is_some() && current != refused {
            // Another transfer was here first.
            return Ok(true);
        }
        let realm = Url::parse(realm).map_err(|_| transport.refused(OPERATION, "the token server has no address"))?;
        state.way = Way::Bearer { realm, service: service.clone() };
        if let Some(scope) = scope.as_ref().filter(|scope| !access.scopes(&self.repository).contains(scope)) {
            state.asked.insert(access.clone(), scope.clone());
        }
        let token = self.fetch(transport, &mut state, access).await?;
        Ok(Some(&token) != refused)
    }

    /// Remembers how the registry wants proof, from its answer to somebody who gave none.
    pub(super) async fn learn(&self, challenges: &[Challenge]) {
        let mut state = self.state.lock().await;
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, .. } => {
                    if let Ok(realm) = Url::parse(realm) {
                        state.way = Way::Bearer { realm, service: service.clone() };
                        return;
                    }
                }
                Challenge::Basic => state.way = Way::Basic,
            }
        }
    }

    fn basic(&self, transport: &Transport) -> Result<Option<HeaderValue>, Failure<StoreError>> {
        let Some(Credential::Basic { user, password }) = &self.credential else {
            return Ok(None);
        };
        let value = HeaderValue::from_str(&format!("Basic {}", pair(user, password).as_str()));
        let mut value = value.map_err(|_| transport.denied("user or password cannot be sent"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn fetch(
        &self,
        transport: &Transport,
        state: &mut State,
        access: &Access,
    ) -> Result<HeaderValue, Failure<StoreError>> {
        state.tokens.remove(access);
        let Way::Bearer { realm, service } = &state.way else {
            return Err(transport.refused(OPERATION, "the registry names no token server").into());
        };
        let mut scopes = access.scopes(&self.repository);
        scopes.extend(state.asked.get(access).cloned());
        let started = Instant::now();
        let response =
            tokio::time::timeout(transport.timeout(), self.ask(transport, realm, service.as_deref(), &scopes));
        let response = match response.await {
            Ok(response) => response?,
            Err(_) => return Err(transport.timed_out(OPERATION, transport.timeout())),
        };
        let answer = self.read(transport, response).await?;
        let header = bearer(transport, answer.value().unwrap_or_default())?;
        // Early enough that a request begun with it is still accepted.
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 24 * 3600));
        let renew_at = started + (life * 3 / 4).max(life.saturating_sub(Duration::from_secs(30)));
        state.tokens.insert(access.clone(), Token { header: header.clone(), renew_at });
        Ok(header)
    }

    async fn ask(
        &self,
        transport: &Transport,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Response, Failure<StoreError>> {
        let client = transport.client(realm, OPERATION)?;
        let mut fields: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        let joined = scopes.join(" ");
        let request = if let Some(Credential::Identity(token)) = &self.credential {
            // OAuth2 has all scopes in one field.
            if !joined.is_empty() {
                fields.push(("scope", &joined));
            }
            fields.extend([("grant_type", "refresh_token"), ("client_id", "syncpoint"), ("refresh_token", token)]);
            let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            client.post(realm.clone()).header("content-type", "application/x-www-form-urlencoded").body(form)
        } else {
            fields.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let mut url = realm.clone();
            match &self.credential {
                Some(Credential::Basic { user, password }) => {
                    fields.push(("account", user));
                    url.query_pairs_mut().extend_pairs(fields);
                    client.get(url).basic_auth(user, Some(password.as_str()))
                }
                _ => {
                    url.query_pairs_mut().extend_pairs(fields);
                    client.get(url)
                }
            }
        };
        let response = request.header(ACCEPT, "application/json").send().await;
        response.map_err(|error| transport.broken(OPERATION, error))
    }

    async fn read(&self, transport: &Transport, mut response: Response) -> Result<TokenAnswer, Failure<StoreError>> {
        let status = response.status();
        if !status.is_success() {
            let retry = if is_passing(status) { retry_later(&response) } else { Retry::No };
            let reason = transport.reason(response, &self.own_secrets()).await;
            let reason = format!("the token server answered {reason}{}", self.hint());
            let error = match status {
                StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => transport.denied(reason),
                _ => transport.refused(OPERATION, reason),
            };
            return Err(Failure { error, retry });
        }
        let body = transport.read(OPERATION, &mut response, MAX_TOKEN).await?;
        let answer = body.ok().and_then(|body| serde_json::from_slice::<TokenAnswer>(&body).ok());
        match answer.filter(|answer| answer.value().is_some()) {
            Some(answer) => Ok(answer),
            None => Err(transport.refused(OPERATION, "the token server's answer holds no token").into()),
        }
    }
}

/// What a token server answers; the specification has two names for the token.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    fn value(&self) -> Option<&str> {
        let tokens = [&self.token, &self.access_token];
        tokens.into_iter().flatten().map(|token| token.as_str()).find(|token| !token.is_empty())
    }
}

/// User and password as Basic has them.
fn pair(user: &str, password: &str) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Zeroizing::new(STANDARD.encode(pair.as_bytes()))
}

fn bearer(transport: &Transport, token: &str) -> Result<HeaderValue, StoreError> {
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.map_err(|_| transport.refused(OPERATION, "the token cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Negotiate, Basic realm="x""#));
        let text = r#"bearer realm="https://localhost/token",service="r",scope="repository:a/b:pull,push",error="invalid_token""#;
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(text));
        let bearer = Challenge::Bearer {
            realm: "https://localhost/token".to_owned(),
            service: Some("r".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(Challenge::all(&headers), [Challenge::Basic, bearer]);
    }

    #[test]
    fn scopes_name_the_repository() {
        assert!(Access::Ping.scopes("a/b").is_empty());
        let mount = Access::Mount("c".to_owned()).scopes("a/b");
        assert_eq!(mount, ["repository:a/b:pull,push", "repository:c:pull"]);
    }
}
