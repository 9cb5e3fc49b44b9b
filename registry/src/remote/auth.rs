//! Proving who one is to a registry: Basic, or a Bearer token from the token server that the registry names
//! (distribution's "token authentication", which all registries follow).

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::http::{Transport, is_passing, retry_later};
use crate::StoreError;
use crate::credentials::{Credential, Sought};
use crate::retry::{Failure, Retry};

/// A token server's answer is a few kilobytes.
const MAX_TOKEN: usize = 1 << 20;
/// What the specification takes a token's life to be when the server does not say, in seconds.
const DEFAULT_LIFE: f64 = 60.0;
/// No token is kept for longer, in seconds.
const LONGEST_LIFE: f64 = 86_400.0;
/// Redirects of a token server; more is a circle.
const MAX_REDIRECTS: usize = 5;
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
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        values.flat_map(|value| Offer::all(&String::from_utf8_lossy(value.as_bytes()))).filter_map(Self::read).collect()
    }

    fn read(offer: Offer) -> Option<Self> {
        match offer.scheme.as_str() {
            "basic" => Some(Self::Basic),
            "bearer" => {
                let [realm, service, scope] = ["realm", "service", "scope"].map(|name| offer.parameter(name));
                Some(Self::Bearer { realm: realm?, service, scope })
            }
            _ => None,
        }
    }
}

/// A challenge as it was sent, of any scheme: its name and those of its parameters in lower case.
///
/// Read leniently, as the clients in Go do. Registries send values without quotes that are no
/// tokens, or that are not ASCII, and a parser that is strict (such as `http-auth`) takes nothing
/// of such a header.
#[derive(Default)]
struct Offer {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Offer {
    fn parameter(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    fn all(text: &str) -> Vec<Self> {
        let mut offers: Vec<Self> = Vec::new();
        let mut rest = text;
        let separator = |c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"');
        while !rest.trim_start_matches(separator).is_empty() {
            rest = rest.trim_start_matches(separator);
            let (word, after) = rest.split_at(rest.find(separator).unwrap_or(rest.len()));
            rest = after;
            let value = after.trim_start().strip_prefix('=').map(str::trim_start);
            match (value, offers.last_mut()) {
                (Some(value), Some(offer)) => {
                    let (value, after) = read_value(value);
                    offer.parameters.push((word.to_ascii_lowercase(), value));
                    rest = after;
                }
                // The actions of a scope that has no quotes.
                (None, Some(Self { parameters, .. })) if matches!(word, "pull" | "push" | "delete" | "*") => {
                    if let Some((_, scope)) = parameters.last_mut().filter(|(key, _)| key == "scope") {
                        scope.extend([",", word]);
                    }
                }
                _ => offers.push(Self { scheme: word.to_ascii_lowercase(), ..Self::default() }),
            }
        }
        offers
    }
}

/// A parameter's value and what follows it: with quotes up to the closing one, without up to the
/// next comma.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(',').unwrap_or(text.len()));
        return (value.trim_end().to_owned(), rest);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, &quoted[at + 1..]),
            c => {
                value.push(c);
                escaped = false;
            }
        }
    }
    (value, "")
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
    /// Why a credential helper gave none.
    trouble: Option<String>,
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
    pub(super) fn new(Sought { credential, trouble }: Sought, repository: &str) -> Self {
        Self { credential, trouble, repository: repository.to_owned(), state: Mutex::default() }
    }

    /// What to add to a refusal.
    pub(super) fn hint(&self) -> String {
        match (&self.credential, &self.trouble) {
            (Some(_), _) => String::new(),
            (None, None) => " (no credentials are known for it)".to_owned(),
            (None, Some(trouble)) => format!(" (no credentials are known for it: {trouble})"),
        }
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
        let realm = transport.join(transport.base(), realm);
        let realm = realm.ok_or_else(|| transport.refused(OPERATION, "the token server has no address"))?;
        state.way = Way::Bearer { realm, service: service.clone() };
        if let Some(scope) = scope.as_ref().filter(|scope| !access.scopes(&self.repository).contains(scope)) {
            state.asked.insert(access.clone(), scope.clone());
        }
        let token = self.fetch(transport, &mut state, access).await?;
        Ok(Some(&token) != refused)
    }

    /// Remembers how the registry wants proof, from its answer to somebody who gave none.
    pub(super) async fn learn(&self, transport: &Transport, challenges: &[Challenge]) {
        let mut state = self.state.lock().await;
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, .. } => {
                    if let Some(realm) = transport.join(transport.base(), realm) {
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
        let life = Duration::from_secs(answer.life());
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
        let mut fields: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        let joined = scopes.join(" ");
        let send = async |request: reqwest::RequestBuilder| {
            let response = request.header(ACCEPT, "application/json").send().await;
            response.map_err(|error| transport.broken(OPERATION, error))
        };
        if let Some(Credential::Identity(token)) = &self.credential {
            // OAuth2 has all scopes in one field.
            if !joined.is_empty() {
                fields.push(("scope", &joined));
            }
            fields.extend([("grant_type", "refresh_token"), ("client_id", "syncpoint"), ("refresh_token", token)]);
            let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            let request = transport.client(realm, OPERATION)?.post(realm.clone());
            return send(request.header("content-type", "application/x-www-form-urlencoded").body(form)).await;
        }
        fields.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
        let mut url = realm.clone();
        if let Some(Credential::Basic { user, .. }) = &self.credential {
            fields.push(("account", user));
        }
        url.query_pairs_mut().extend_pairs(fields);
        for _ in 0..MAX_REDIRECTS {
            let request = transport.client(&url, OPERATION)?.get(url.clone());
            let response = match &self.credential {
                // Where a token server leads to another one, the password stays behind.
                Some(Credential::Basic { user, password }) if url.origin() == realm.origin() => {
                    send(request.basic_auth(user, Some(password.as_str()))).await?
                }
                _ => send(request).await?,
            };
            let target = response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(target) = target.and_then(|target| target.to_str().ok()) else { return Ok(response) };
            let target = transport.join(&url, target);
            url = target.ok_or_else(|| transport.refused(OPERATION, "the token server leads to what is no address"))?;
        }
        Err(transport.refused(OPERATION, format!("the token server leads on more than {MAX_REDIRECTS} times")).into())
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
    expires_in: Option<Value>,
}

impl TokenAnswer {
    /// For how many seconds the token is good. Servers were seen to say less than none, a text, and
    /// a fraction.
    fn life(&self) -> u64 {
        let said = match &self.expires_in {
            Some(Value::Number(seconds)) => seconds.as_f64(),
            Some(Value::String(seconds)) => seconds.trim().parse().ok(),
            _ => None,
        };
        said.filter(|seconds| *seconds >= 1.0).unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE) as u64
    }

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
    fn challenges_that_break_the_rules_are_read() {
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://localhost/token?a=b".to_owned(),
            service: Some("r \"é\"".to_owned()),
            scope: scope.map(str::to_owned),
        };
        for (text, scope) in [
            (r#"Bearer realm=https://localhost/token?a=b,service="r \"é\"""#, None),
            (r#"BEARER Realm = "https://localhost/token?a=b" , SERVICE="r \"é\"" ,,"#, None),
            (
                r#"Bearer realm="https://localhost/token?a=b",scope=repository:a:pull,push,service="r \"é\"""#,
                Some("repository:a:pull,push"),
            ),
            (r#"Negotiate YII==, Bearer realm="https://localhost/token?a=b", service="r \"é\"", error="x"#, None),
        ] {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_bytes(text.as_bytes()).unwrap())]);
            assert_eq!(Challenge::all(&headers), [bearer(scope)], "{text}");
        }
        for text in ["", ",", "=", "\"", "Bearer", "Bearer realm", "realm=x", "Bearer service=x", "\u{fffd}=\u{fffd}"] {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_bytes(text.as_bytes()).unwrap())]);
            assert_eq!(Challenge::all(&headers), [], "{text}");
        }
    }

    #[test]
    fn a_token_lives_for_a_while() {
        let life = |said: &str| serde_json::from_str::<TokenAnswer>(&format!("{{{said}}}")).unwrap().life();
        for (said, seconds) in [
            ("", 60),
            (r#""expires_in":300"#, 300),
            (r#""expires_in":-1"#, 60),
            (r#""expires_in":0"#, 60),
            (r#""expires_in":"90.5""#, 90),
            (r#""expires_in":1e300"#, 86_400),
            (r#""expires_in":{}"#, 60),
            (r#""expires_in":"NaN""#, 60),
        ] {
            assert_eq!(life(said), seconds, "{said}");
        }
    }

    #[test]
    fn scopes_name_the_repository() {
        assert!(Access::Ping.scopes("a/b").is_empty());
        let mount = Access::Mount("c".to_owned()).scopes("a/b");
        assert_eq!(mount, ["repository:a/b:pull,push", "repository:c:pull"]);
    }
}
