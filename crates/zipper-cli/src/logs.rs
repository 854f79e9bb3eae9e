//! Logs: on stderr, as text for people or as JSON for machines.
//!
//! A line of JSON has the fields of OpenTelemetry's log data model where it has a word for them: `timestamp`, `severity_text`, `body`,
//! `trace_id`, `span_id`, `attributes`, `resource`. All processes of a run have its `trace_id`; a `span_id` is that of the innermost
//! span, whose fields, and those of the ones around it, are in `attributes`.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable that says in which format a process logs.
pub const LOG_FORMAT: &str = "ZIPPER_LOG_FORMAT";

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON document on each line.
    Json,
}

impl LogFormat {
    /// As it is given on the command line and in [`LOG_FORMAT`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

static FORMAT: RwLock<LogFormat> = RwLock::new(LogFormat::Text);
static RESOURCE: RwLock<Option<Resource>> = RwLock::new(None);
static AROUND: Mutex<Option<Around>> = Mutex::new(None);

/// Writes by calling what it is given, and does something before and after.
pub type Around = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// What all lines of this process have.
#[derive(Debug, Clone)]
struct Resource {
    trace_id: String,
    attributes: Map<String, Value>,
}

/// The format in which this process logs.
pub fn log_format() -> LogFormat {
    *FORMAT.read().unwrap_or_else(PoisonError::into_inner)
}

/// Says which run this process belongs to, and what it is in it: `[("node", "0"), ("worker", "node0/1")]`. For logs in JSON.
pub fn describe_process(run_url: &str, name: &str, attributes: &[(&str, String)]) {
    let fixed = [
        ("service.name", name.to_owned()),
        ("process.pid", std::process::id().to_string()),
        ("host.name", crate::hostname()),
        ("zipper.run", run_url.to_owned()),
    ];
    let own = attributes
        .iter()
        .map(|(key, value)| (format!("zipper.{key}"), value.clone()));
    let fixed = fixed.into_iter().map(|(key, value)| (key.to_owned(), value));
    let attributes = fixed.chain(own).map(|(key, value)| (key, Value::String(value)));
    let resource = Resource {
        trace_id: format!("{:032x}", digest(run_url)),
        attributes: attributes.collect(),
    };
    *RESOURCE.write().unwrap_or_else(PoisonError::into_inner) = Some(resource);
}

/// 16 bytes, as OpenTelemetry's ids of traces have: FNV-1a.
fn digest(text: &str) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mix = |digest: u128, byte: u8| (digest ^ u128::from(byte)).wrapping_mul(PRIME);
    text.bytes().fold(BASIS, mix)
}

/// Lets logs be written by `around`, so that they do not garble what keeps itself up to date on the terminal.
pub fn write_logs_by(around: Option<Around>) {
    *AROUND.lock().unwrap_or_else(PoisonError::into_inner) = around;
}

/// Sends logs to stderr, at the level that `ZIPPER_LOG` or else `default_filter` says (`info`, `zipper_train=debug`), in the format
/// that [`LOG_FORMAT`] names.
pub fn init_tracing(default_filter: &str) {
    init_tracing_as(default_filter, None);
}

/// As [`init_tracing`], in `format` if it is given.
pub fn init_tracing_as(default_filter: &str, format: Option<LogFormat>) {
    let wanted = std::env::var("ZIPPER_LOG").ok();
    let filter = chosen_filter(wanted.as_deref()).unwrap_or_else(|warning| {
        eprintln!("warning: {warning}");
        None
    });
    let inherited = std::env::var(LOG_FORMAT).is_ok_and(|format| format == LogFormat::Json.name());
    let format = format.unwrap_or(if inherited {
        LogFormat::Json
    } else {
        LogFormat::Text
    });
    *FORMAT.write().unwrap_or_else(PoisonError::into_inner) = format;
    let builder = tracing_subscriber::fmt()
        // Colours are for people: logs in files are searched.
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(default_filter)))
        .with_writer(Stderr);
    // A second call, as in tests, changes nothing.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder
            .fmt_fields(JsonFields::new())
            .event_format(OpenTelemetry)
            .try_init(),
    };
}

/// The filter that the user wants, if any; or what is wrong with it.
fn chosen_filter(wanted: Option<&str>) -> Result<Option<EnvFilter>, String> {
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    EnvFilter::try_new(wanted).map(Some).map_err(|error| {
        format!(
            "`ZIPPER_LOG={wanted}` is not a filter such as `info,zipper_train=debug`, and is ignored: {error}"
        )
    })
}

/// Stderr, by way of [`write_logs_by`].
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let around = AROUND.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(around) = around else {
            io::stderr().write_all(bytes)?;
            return Ok(bytes.len());
        };
        let mut result = Ok(());
        around(&mut || result = io::stderr().write_all(bytes));
        result.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Lines of JSON.
struct OpenTelemetry;

impl<S> FormatEvent<S, JsonFields> for OpenTelemetry
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        let mut add = |key: &str, value: Value| line.insert(key.to_owned(), value);
        let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        add("timestamp", now.into());
        add("severity_text", event.metadata().level().as_str().into());
        let mut attributes = Map::new();
        attributes.insert("code.namespace".to_owned(), event.metadata().target().into());
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                let extensions = span.extensions();
                let fields = extensions.get::<FormattedFields<JsonFields>>();
                let fields = fields.and_then(|fields| serde_json::from_str::<Map<_, _>>(&fields.fields).ok());
                attributes.extend(fields.unwrap_or_default());
            }
        }
        if let Some(span) = context.lookup_current() {
            add("span_id", format!("{:016x}", span.id().into_u64()).into());
            add("span_name", span.name().into());
        }
        let mut told = Fields {
            body: String::new(),
            attributes,
        };
        event.record(&mut told);
        add("body", told.body.into());
        add("attributes", Value::Object(told.attributes));
        if let Some(resource) = &*RESOURCE.read().unwrap_or_else(PoisonError::into_inner) {
            add("trace_id", resource.trace_id.clone().into());
            add("resource", Value::Object(resource.attributes.clone()));
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// The fields of an event; its message is the body.
struct Fields {
    body: String,
    attributes: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.attributes.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.body = format!("{value:?}");
        } else {
            self.add(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.body);
        } else {
            self.add(field, value.into());
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that others have computed.
    #[test]
    fn digests_are_those_of_fnv_1a() {
        assert_eq!(digest(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(digest("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_filter_that_is_none_is_told_of() {
        assert!(matches!(chosen_filter(None), Ok(None)));
        assert!(matches!(
            chosen_filter(Some("info,zipper_train=debug")),
            Ok(Some(_))
        ));
        let warning = chosen_filter(Some("zipper_train=debgu")).expect_err("there is no such level");
        assert!(
            warning.starts_with("`ZIPPER_LOG=zipper_train=debgu` is not a filter"),
            "{warning}"
        );
    }

    /// What a test's logs are written into.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Goal: a line says what happened, in which spans, in which process of which run, in words that collectors know.
    #[test]
    fn a_line_of_json_has_its_run_and_its_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields::new())
            .event_format(OpenTelemetry)
            .with_writer(move || writer.clone())
            .finish();
        describe_process("file:///runs/a", "zipper-worker", &[("node", "0".to_owned())]);
        tracing::subscriber::with_default(subscriber, || {
            let _generation = tracing::info_span!("generation", generation = 3, rank = 1).entered();
            let _step = tracing::info_span!("step", step = 7).entered();
            tracing::warn!(loss = 2.5, "the loss is {}", "high");
        });
        let text = String::from_utf8(lines.0.lock().expect("nobody panics").clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&line["body"], &line["severity_text"]),
            (&"the loss is high".into(), &"WARN".into())
        );
        for (key, value) in [("generation", 3.0), ("rank", 1.0), ("step", 7.0), ("loss", 2.5)] {
            assert_eq!(line["attributes"][key].as_f64(), Some(value), "{key} in {text}");
        }
        assert_eq!(line["span_name"], "step");
        let trace = line["trace_id"].as_str().expect("a run has an id");
        assert!(
            trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{trace}"
        );
        assert_eq!(line["resource"]["zipper.node"], "0");
        assert_eq!(line["resource"]["service.name"], "zipper-worker");
    }
}
