//! Goal: the status page is served to those who may see it, offline, read-only, and tells open pages what changes until the end.
//! Method: the server on a free port of loopback, asked over plain HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use zipper_checkpoint::{RunStore, layout};
use zipper_proto::v1;
use zipper_types::{Generation, Rank};
use zipper_watch::page::{Access, Shown, serve};
use zipper_watch::{Picture, Series};

const TOKEN: &str = "a-token-for-tests";
/// Whoever waits longer waits for nothing.
const DEADLINE: Duration = Duration::from_secs(20);

struct Page {
    address: SocketAddr,
    shown: Shown,
    store: RunStore,
    served: JoinHandle<std::io::Result<()>>,
}

/// A page as it is served on `address`, but on loopback.
async fn page(address: &str) -> Page {
    let store = RunStore::in_memory();
    let mut picture = Picture::default();
    picture.run.languages = vec!["en".to_owned()];
    let shown = Shown::new(store.clone(), picture, Series::new(&["en".to_owned()]));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let own = listener.local_addr().expect("an address");
    let access = Access::new(address.parse().expect("an address"), Some(TOKEN)).expect("there is a token");
    let served = tokio::spawn(serve(listener, shown.clone(), access));
    Page {
        address: own,
        shown,
        store,
        served,
    }
}

impl Page {
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("it speaks HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let answer = tokio::time::timeout(DEADLINE, sender.send_request(request));
        answer
            .await
            .expect("the page answers in time")
            .expect("the page answers")
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let response = self.ask(Method::GET, path, headers).await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn step(number: u64) -> v1::StepMetrics {
    v1::StepMetrics {
        step: number,
        stage: v1::Stage::Align.into(),
        loss: 2.0,
        tokens: 3,
        seconds: 1.0,
        ..v1::StepMetrics::default()
    }
}

/// Everything else than the right token is refused, everywhere; the right one in the address becomes a cookie.
#[tokio::test]
async fn outside_loopback_the_token_is_needed() {
    let page = page("10.0.0.1:80").await;
    for path in [
        "/",
        "/events",
        "/metrics",
        "/api/picture",
        "/api/steps",
        "/assets/app.js",
        "/api/flight/1",
    ] {
        for headers in [
            vec![],
            vec![("authorization", "Bearer a-token-for-test")],
            vec![("authorization", TOKEN)],
            vec![("cookie", "zipper_token=")],
        ] {
            let (status, body) = page.get(path, &headers).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {headers:?}: {body}");
            assert!(!body.contains(TOKEN));
        }
    }
    assert_eq!(page.get("/?token=wrong", &[]).await.0, StatusCode::UNAUTHORIZED);
    let bearer = format!("Bearer {TOKEN}");
    let (status, text) = page.get("/metrics", &[("authorization", &bearer)]).await;
    assert!(
        status == StatusCode::OK && text.contains("zipper_step"),
        "{status}: {text}"
    );
    let entered = page.ask(Method::GET, &format!("/?token={TOKEN}"), &[]).await;
    assert_eq!(
        (entered.status(), entered.headers()["location"].as_bytes()),
        (StatusCode::SEE_OTHER, b"/".as_slice())
    );
    let cookie = entered.headers()["set-cookie"].to_str().expect("text");
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().expect("a pair");
    assert_eq!(page.get("/", &[("cookie", cookie)]).await.0, StatusCode::OK);
}

/// On loopback nobody needs a token, but a page from elsewhere whose name leads here does not get in.
#[tokio::test]
async fn on_loopback_only_names_of_loopback_are_served() {
    let page = page("127.0.0.1:80").await;
    assert_eq!(page.get("/", &[]).await.0, StatusCode::OK);
    let rebound = page.get("/api/picture", &[("host", "evil.example:80")]).await;
    assert_eq!(rebound.0, StatusCode::MISDIRECTED_REQUEST);
}

/// Nothing can be changed, nothing comes from elsewhere, and what is not there is not there.
#[tokio::test]
async fn the_page_is_read_only_and_its_own() {
    let page = page("127.0.0.1:80").await;
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let answer = page.ask(method.clone(), "/api/picture", &[]).await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    let answer = page.ask(Method::GET, "/", &[]).await;
    let policy = answer.headers()["content-security-policy"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    for path in ["/assets/..%2fapp.js", "/assets/none", "/none"] {
        assert_eq!(page.get(path, &[]).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let (_, picture) = page.get("/api/picture", &[]).await;
    assert!(serde_json::from_str::<Picture>(&picture).is_ok(), "{picture}");
}

/// An open page gets everything, then what changes, then the end; and then the server ends.
#[tokio::test]
async fn open_pages_are_told_until_the_end() {
    let page = page("127.0.0.1:80").await;
    page.shown.step(&step(1));
    let answer = page.ask(Method::GET, "/events", &[]).await;
    assert_eq!(answer.headers()["content-type"].as_bytes(), b"text/event-stream");
    let mut body = answer.into_body();
    let mut text = String::new();
    let mut until = async |what: &str| {
        while !text.contains(what) {
            let frame = tokio::time::timeout(DEADLINE, body.frame()).await;
            let frame = frame.unwrap_or_else(|_| {
                panic!("the test waited for `{what}` from the page, which said:\n{text}")
            });
            let frame = frame.expect("the stream goes on").expect("it is whole");
            text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
        }
        std::mem::take(&mut text)
    };
    let first = until("event: picture").await;
    assert!(
        first.contains(r#""reset":true"#) && first.contains(r#""step":[1]"#),
        "{first}"
    );
    page.shown.step(&step(2));
    page.shown
        .paint(|picture| "loading".clone_into(&mut picture.detail));
    let second = until("event: picture").await;
    assert!(
        second.contains(r#""reset":false"#) && second.contains(r#""step":[2]"#),
        "{second}"
    );
    assert!(second.contains("loading"), "{second}");
    page.shown.close();
    until("event: over").await;
    let served = tokio::time::timeout(DEADLINE, page.served).await;
    served
        .expect("the server ends in time")
        .expect("it does not panic")
        .expect("it does not fail");
}

/// The ranks' own records are shown as they wrote them.
#[tokio::test]
async fn flight_records_are_shown() {
    let page = page("127.0.0.1:80").await;
    let record = r#"[{"group":"world","sequence":7}]"#;
    let path = layout::flight_record(Generation(3), Rank(1));
    page.store
        .put(&path, Bytes::from(record))
        .await
        .expect("memory takes it");
    let (_, text) = page.get("/api/flight/3", &[]).await;
    let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&answer["of"], &answer["records"]["rank-1"][0]["sequence"]),
        (&1.into(), &7.into())
    );
    let (_, none) = page.get("/api/flight/4", &[]).await;
    assert!(none.contains(r#""of":0"#), "{none}");
}
