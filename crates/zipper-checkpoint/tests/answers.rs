//! Goal: what servers answer means what it should: which errors are for a person to mend, which pass by themselves, and why.
//! Method: a server that gives the answers of the test, and keeps what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zipper_checkpoint::{Environment, ErrorKind, RunStore, StoreOptions};
use zipper_types::Advised;

/// Status, and the code in the body as S3 gives it.
type Answer = (u16, &'static str);

/// Gives one answer after the other, the last one for ever.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&asked);
        tokio::spawn(async move {
            for number in 0.. {
                let (connection, _) = listener.accept().await.unwrap();
                let answer = answers[number.min(answers.len() - 1)];
                let head = serve(connection, answer).await;
                keep.lock().unwrap().push(head);
            }
        });
        Self { address, asked }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn first_line(&self) -> String {
        self.asked.lock().unwrap()[0].lines().next().unwrap().to_owned()
    }
}

/// Reads the head of one request and answers; returns the head.
async fn serve(mut connection: TcpStream, (status, code): Answer) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let body = if status == 200 {
        "content".to_owned()
    } else {
        format!("<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>")
    };
    let answer = format!(
        "HTTP/1.1 {status} {code}\r\nContent-Length: {}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"x\"\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    // A client that does not wait for its answer is none of our business.
    let _ = connection.write_all(answer.as_bytes()).await;
    String::from_utf8_lossy(&head).into_owned()
}

fn open(url: &str, variables: &[(&str, &str)]) -> RunStore {
    let keys = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let environment: Environment = keys
        .into_iter()
        .chain([("AWS_ALLOW_HTTP", "true")])
        .chain(variables.iter().copied())
        .collect();
    let options = StoreOptions {
        retry_timeout: Duration::from_millis(300),
        ..StoreOptions::default()
    };
    RunStore::open_in(url, &options, &environment).unwrap()
}

#[tokio::test]
async fn refusals_and_failures_are_told_apart() {
    for (answer, kind, words) in [
        ((403, "ExpiredToken"), ErrorKind::Denied, "have expired"),
        ((403, "RequestTimeTooSkewed"), ErrorKind::Denied, "the clock"),
        (
            (403, "SignatureDoesNotMatch"),
            ErrorKind::Denied,
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            (403, "InvalidAccessKeyId"),
            ErrorKind::Denied,
            "AWS_ACCESS_KEY_ID",
        ),
        ((403, "AccessDenied"), ErrorKind::Denied, "denies access"),
        ((401, "Unauthorized"), ErrorKind::Denied, "denies access"),
        ((403, "QuotaExceeded"), ErrorKind::Full, "no room left"),
        ((507, "XMinioStorageFull"), ErrorKind::Full, "no room left"),
        ((503, "SlowDown"), ErrorKind::Io, "cannot read"),
        ((404, "NoSuchKey"), ErrorKind::NotFound, "does not exist"),
        (
            (404, "NoSuchBucket"),
            ErrorKind::Config,
            "no such bucket; make it",
        ),
    ] {
        let server = Server::start(vec![answer]).await;
        let run = open("s3://bucket/runs/a", &[("AWS_ENDPOINT_URL", &server.endpoint())]);
        let error = run.get("run.yaml").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{answer:?}: {error:?}");
        let passes = !matches!(kind, ErrorKind::NotFound | ErrorKind::Config);
        assert_eq!(error.is_retryable(), passes, "{answer:?}");
        let message = error.to_string();
        assert!(
            message.contains("s3://bucket/runs/a/run.yaml") && message.contains(words),
            "{message}"
        );
    }
}

/// A bucket that has answered once is one that may come back.
#[tokio::test]
async fn a_bucket_that_goes_away_is_an_outage() {
    let server = Server::start(vec![(200, "OK"), (404, "NoSuchBucket")]).await;
    let run = open("s3://bucket/runs/a", &[("AWS_ENDPOINT_URL", &server.endpoint())]);
    assert_eq!(run.get("run.yaml").await.unwrap(), "content");
    let error = run.get("run.yaml").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    assert!(error.is_retryable());
}

/// A variable that object_store knows and docs/storage.md does not has no effect: one of them would end the verification of
/// certificates. Method: one that a server can see.
#[tokio::test]
async fn a_variable_that_is_not_documented_has_no_effect() {
    let server = Server::start(vec![(200, "OK")]).await;
    let run = open(
        "s3://bucket/runs/a",
        &[
            ("AWS_ENDPOINT_URL", &server.endpoint()),
            ("AWS_USER_AGENT", "a-stray-variable"),
        ],
    );
    assert_eq!(run.get("run.yaml").await.unwrap(), "content");
    let asked = server.asked.lock().unwrap().concat();
    assert!(
        asked.starts_with("GET ") && !asked.contains("a-stray-variable"),
        "{asked}"
    );
}

/// Path-style requests by default, virtual-hosted ones where they are asked for. Method: a proxy sees where requests go.
#[tokio::test]
async fn the_bucket_is_in_the_path_or_in_the_host() {
    for (style, place) in [
        ("false", "http://s3.example:9000/bucket/runs/a/run.yaml"),
        ("true", "http://bucket.s3.example:9000/runs/a/run.yaml"),
    ] {
        let proxy = Server::start(vec![(200, "OK")]).await;
        let run = open(
            "s3://bucket/runs/a",
            &[
                ("AWS_ENDPOINT_URL", "http://s3.example:9000"),
                ("AWS_PROXY_URL", &proxy.endpoint()),
                ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", style),
            ],
        );
        assert_eq!(run.get("run.yaml").await.unwrap(), "content");
        assert_eq!(proxy.first_line(), format!("GET {place} HTTP/1.1"));
    }
}

/// Requests are signed for the region that the environment names, or else the profile.
#[tokio::test]
async fn requests_are_signed_for_the_region_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::write(&config, "[default]\nregion = eu-south-2\n").unwrap();
    let profile = ("AWS_CONFIG_FILE", config.to_str().unwrap());
    for (variables, region) in [
        (
            vec![
                profile,
                ("AWS_DEFAULT_REGION", "eu-north-1"),
                ("AWS_REGION", "eu-west-3"),
            ],
            "eu-west-3",
        ),
        (vec![profile, ("AWS_DEFAULT_REGION", "eu-north-1")], "eu-north-1"),
        (vec![profile], "eu-south-2"),
    ] {
        let server = Server::start(vec![(200, "OK")]).await;
        let endpoint = server.endpoint();
        let variables = [variables, vec![("AWS_ENDPOINT_URL", &endpoint)]].concat();
        let run = open("s3://bucket/runs/a", &variables);
        assert_eq!(run.get("run.yaml").await.unwrap(), "content");
        let asked = server.asked.lock().unwrap().concat();
        assert!(asked.contains(&format!("/{region}/s3/aws4_request")), "{asked}");
    }
}
