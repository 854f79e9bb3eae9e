//! Who may see the page.
//!
//! On loopback, where only this machine's users come, everybody; but only under a name of loopback, so that no page from
//! elsewhere that a browser has open can look (DNS rebinding). Everywhere else, whoever has the token.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What browsers keep the token as.
const COOKIE: &str = "zipper_token";

/// Who may see the page.
#[derive(Debug, Clone)]
pub struct Access {
    /// A digest of the token, which is compared in constant time.
    token: Option<blake3::Hash>,
}

impl Access {
    /// Everybody on loopback; elsewhere whoever has `token`.
    ///
    /// # Errors
    /// A sentence, if `address` is not on loopback and there is no token.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Result<Self, String> {
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        if address.ip().is_loopback() {
            return Ok(Self { token: None });
        }
        match token {
            Some(token) => Ok(Self {
                token: Some(blake3::hash(token.as_bytes())),
            }),
            None => Err(format!(
                "the status page on {address} would be open to everybody: it needs a token"
            )),
        }
    }

    fn is_token(&self, given: &str) -> bool {
        // `blake3::Hash` compares in constant time.
        self.token
            .is_some_and(|token| blake3::hash(given.as_bytes()) == token)
    }
}

/// Lets requests pass that may.
pub(super) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    if access.token.is_none() {
        return if is_loopback_name(request.headers()) {
            next.run(request).await
        } else {
            (
                StatusCode::MISDIRECTED_REQUEST,
                "ask for this page as localhost\n",
            )
                .into_response()
        };
    }
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let from_address = pairs.find(|(key, _)| *key == "token").map(|(_, token)| token);
    if let Some(token) = from_address.filter(|token| access.is_token(token)) {
        return enter(request.uri().path(), token);
    }
    let headers = request.headers();
    if [cookie(headers), bearer(headers)]
        .into_iter()
        .flatten()
        .any(|token| access.is_token(token))
    {
        return next.run(request).await;
    }
    let message = "this page needs the token that zipper-launch printed: open the address with `?token=..`, or send `Authorization: Bearer ..`\n";
    (StatusCode::UNAUTHORIZED, message).into_response()
}

/// Takes the token out of the address, where it would be seen, and into a cookie.
fn enter(path: &str, token: &str) -> Response {
    let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/");
    let mut response = (StatusCode::SEE_OTHER, "").into_response();
    let headers = response.headers_mut();
    if let (Ok(cookie), Ok(path)) = (HeaderValue::from_str(&cookie), HeaderValue::from_str(path)) {
        headers.insert(header::SET_COOKIE, cookie);
        headers.insert(header::LOCATION, path);
    }
    response
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| token)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

fn is_loopback_name(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name == "localhost" || name == "[::1]" || name.strip_prefix("127.").is_some_and(is_rest_of_address)
}

/// `0.0.1`
fn is_rest_of_address(rest: &str) -> bool {
    let parts: Vec<&str> = rest.split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| part.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_loopback_are_taken_for_it() {
        for (host, is) in [
            ("localhost:80", true),
            ("localhost", true),
            ("127.0.0.1:41234", true),
            ("[::1]:80", true),
            ("127.0.0.1.evil.example:80", false),
            ("127.evil.example", false),
            ("evil.example:80", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(is_loopback_name(&headers), is, "{host}");
        }
        assert!(!is_loopback_name(&HeaderMap::new()));
    }

    /// Goal: no page outside loopback without a token, and no token that is empty.
    #[test]
    fn an_open_page_is_refused() {
        let outside: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        for token in [None, Some(""), Some("\n")] {
            let refused = Access::new(outside, token);
            assert!(
                refused.is_err_and(|why| why.ends_with("it needs a token")),
                "{token:?}"
            );
        }
        let access = Access::new(outside, Some("secret\n")).expect("there is a token");
        assert!(access.is_token("secret") && !access.is_token("secre") && !access.is_token(""));
    }
}
