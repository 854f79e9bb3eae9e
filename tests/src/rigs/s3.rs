//! A real S3-compatible server, SeaweedFS, as `cargo xtask setup` installs it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use zipper_checkpoint::RunStore;

use super::{free_port, repository};

const BUCKET: &str = "zipper";
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A server on loopback with a folder, ports and credentials of its own. It ends with this value.
#[derive(Debug)]
pub struct S3Server {
    folder: tempfile::TempDir,
    ports: [u16; 8],
    child: Option<Child>,
    environment: Vec<(String, String)>,
}

impl S3Server {
    /// Starts a server, and waits until it serves an empty bucket.
    ///
    /// # Panics
    /// If SeaweedFS is not installed, or does not start within a minute.
    pub fn start() -> Self {
        let mut server = Self {
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
            ports: free_ports(),
            child: None,
            environment: Vec::new(),
        };
        server.restart();
        server.environment = read_environment(&server.folder.path().join("env.sh"));
        server
    }

    /// Starts it again after [`S3Server::kill`], with the same ports and the same data, and waits until it serves.
    ///
    /// # Panics
    /// If it does not start within a minute.
    pub fn restart(&mut self) {
        let log = self.folder.path().join("server.log");
        let output = File::options().create(true).append(true).open(&log);
        let output = output.expect("the server's folder is writable");
        let ports = self.ports.map(|port| port.to_string());
        let child = Command::new(repository("cluster/start-s3.sh"))
            .arg("--foreground")
            .arg(self.folder.path())
            .args(ports)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("an open file can be shared"))
            .stderr(output)
            .spawn()
            .expect("cluster/start-s3.sh can be started");
        let child = self.child.insert(child);
        let started = Instant::now();
        while !is_serving(&self.ports) {
            let ended = child.try_wait().expect("the server can be waited for");
            assert!(
                ended.is_none() && started.elapsed() < START_TIMEOUT,
                "the S3 server did not start:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it as a power cut would; nothing is lost that it had confirmed.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the S3 server is running");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }

    /// Its process, for signals.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[0]))
    }

    /// The URL of `prefix` in its bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The AWS_* variables with which programs reach it.
    pub fn env(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    /// The same by way of `endpoint`, such as a proxy.
    pub fn env_via(&self, endpoint: SocketAddr) -> Vec<(String, String)> {
        let endpoint = format!("http://{endpoint}");
        let mut environment = self.env();
        for (name, value) in &mut environment {
            if name == "AWS_ENDPOINT" {
                value.clone_from(&endpoint);
            }
        }
        environment
    }

    /// The run at [`S3Server::url`] of `prefix`, for tests to read.
    pub fn run(&self, prefix: &str) -> RunStore {
        let store = PrefixStore::new(self.store(), prefix);
        RunStore::over(Arc::new(store), &self.url(prefix))
    }

    /// A client of its bucket, which needs no variables, and waits for a server that has just been started again: it answers
    /// 500 until its volumes have registered.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        let patient = RetryConfig {
            max_retries: 100,
            retry_timeout: START_TIMEOUT,
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(1),
                base: 2.0,
            },
        };
        self.store_via(self.address(), patient)
    }

    /// The same by way of `endpoint`.
    ///
    /// # Panics
    /// Never: everything that it needs is given.
    pub fn store_via(&self, endpoint: SocketAddr, retry: RetryConfig) -> Arc<dyn ObjectStore> {
        let mut builder = AmazonS3Builder::new().with_bucket_name(BUCKET).with_retry(retry);
        for (name, value) in self.env_via(endpoint) {
            let key = name.to_ascii_lowercase().parse();
            builder = builder.with_config(key.expect("object_store knows the variable"), value);
        }
        Arc::new(builder.build().expect("the configuration is complete"))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// Ports that nobody listens on.
fn free_ports() -> [u16; 8] {
    // Held until all are found, so that none is found twice.
    let held = [(); 8].map(|()| free_port(Ipv4Addr::LOCALHOST.into()));
    held.map(|(address, _)| address.port())
}

/// `export NAME=value` lines.
fn read_environment(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter_map(|line| line.strip_prefix("export "));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Whether S3 answers and the bucket is there. Buckets are folders of the filer; 409 says that it was there already.
fn is_serving(ports: &[u16; 8]) -> bool {
    let [s3, _, _, filer, ..] = *ports;
    let bucket = format!("/buckets/{BUCKET}/");
    status(s3, "GET", "/healthz") == Some(200) && matches!(status(filer, "POST", &bucket), Some(201 | 409))
}

/// The status of an HTTP request without a body.
fn status(port: u16, method: &str, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head).ok()?.split_once(' ')?.1.parse().ok()
}
