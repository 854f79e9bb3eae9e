//! A headless Chromium, as Debian packages it, driven by its chromedriver.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::error::CmdError;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use hyper::Method;
use serde_json::{Value, json};
use url::{ParseError, Url};

/// How long anything that a page is asked may take.
const DEADLINE: Duration = Duration::from_mins(2);

/// A browser with one page. It ends with this value.
pub struct Browser {
    client: Client,
    /// Its end is the browser's.
    driver: Child,
    /// What it says goes here; without a reader it would end.
    _said: Lines<BufReader<ChildStdout>>,
}

/// What the browser wrote into one of its logs since it was asked last.
#[derive(Debug)]
struct ReadLog(&'static str);

impl WebDriverCompatibleCommand for ReadLog {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "type": self.0 }).to_string()))
    }
}

impl Browser {
    /// Starts a browser.
    ///
    /// # Panics
    /// If the packages `chromium` and `chromium-driver` are not installed.
    pub async fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the Debian packages `chromium` and `chromium-driver` are installed");
        let stdout = driver.stdout.take().expect("stdout is piped");
        let mut said = BufReader::new(stdout).lines();
        let port = said
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let port = line.split("started successfully on port ").nth(1)?;
                port.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("chromedriver says where it listens");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "--window-size=1400,1000",
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is an object")
        };
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("Chromium starts");
        Self {
            client,
            driver,
            _said: said,
        }
    }

    /// Opens a page.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
    }

    /// Makes the window so large.
    ///
    /// # Panics
    /// If the browser refuses.
    pub async fn resize(&self, width: u32, height: u32) {
        self.client
            .set_window_size(width, height)
            .await
            .expect("the window has another size");
    }

    /// What a JavaScript expression is in the page.
    ///
    /// # Panics
    /// If it throws.
    pub async fn value(&self, expression: &str) -> Value {
        self.client
            .execute(&format!("return ({expression});"), Vec::new())
            .await
            .unwrap_or_else(|error| panic!("`{expression}` in the page: {error}"))
    }

    /// Waits until a JavaScript expression is true in the page.
    ///
    /// # Panics
    /// If it does not become true within two minutes.
    pub async fn wait_for(&self, what: &str, expression: &str) {
        let started = Instant::now();
        while self.value(expression).await != Value::Bool(true) {
            if started.elapsed() > DEADLINE {
                let text = self.value("document.body.innerText").await;
                panic!("waited {DEADLINE:?} until {what}; the page says:\n{text}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A picture of the page, as PNG.
    ///
    /// # Panics
    /// If the browser makes none.
    pub async fn screenshot(&self) -> Vec<u8> {
        self.client.screenshot().await.expect("a picture of the page")
    }

    /// Lines of the page's console that are warnings or worse, since it was asked last.
    ///
    /// # Panics
    /// If the browser does not say.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.read_log("browser").await;
        let bad = entries
            .iter()
            .filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")));
        bad.filter_map(|entry| entry["message"].as_str().map(str::to_owned))
            .collect()
    }

    /// The URLs of all requests that pages made since it was asked last.
    ///
    /// # Panics
    /// If the browser does not say.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.read_log("performance").await;
        let urls = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            let is_request = message["method"] == "Network.requestWillBeSent";
            let url = message["params"]["request"]["url"].as_str()?;
            is_request.then(|| url.to_owned())
        });
        urls.collect()
    }

    async fn read_log(&self, log: &'static str) -> Vec<Value> {
        let entries: Result<Value, CmdError> = self.client.issue_cmd(ReadLog(log)).await;
        match entries.expect("the browser gives its log") {
            Value::Array(entries) => entries,
            other => panic!("the browser's log is `{other}`"),
        }
    }

    /// Closes the page.
    pub async fn close(self) {
        // What ends it anyway is below.
        let _ = self.client.clone().close().await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
