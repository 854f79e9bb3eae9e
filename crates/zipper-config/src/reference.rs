//! The reference of the configuration, made of its types: docs/configuration.md for people, and a JSON Schema for editors.

use std::fmt::Write;

use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value};

use crate::RunConfig;
use crate::sweep::SweepConfig;

/// The JSON Schema of a run's configuration, with which an editor completes keys and shows what they mean.
pub fn run_schema() -> Value {
    schema_for!(RunConfig).to_value()
}

/// Every key of a run's configuration and of a comparison: what it takes, what it is when it is left out, what it means.
pub fn markdown() -> String {
    let mut text = "\
# Configuration reference

Made of the types in `crates/zipper-config` by `cargo xtask reference`; do not edit.

A key is required where its default says so. An unknown key is an error, which names the nearest known one. `zipper-launch --set
training.align.lr=1e-3` changes a key for one run, and `<run>/run.yaml` holds all of them as they were. Durations are written as `30s`, `5m` or
`1h 30m`; relative paths are below the folder that the command is started in.

Editors that know JSON Schema complete keys and show this text: `zipper-launch schema > zipper.schema.json`, and in the first line of a
configuration `# yaml-language-server: $schema=zipper.schema.json`.
"
    .to_owned();
    describe::<RunConfig>("A run", &mut text);
    describe::<SweepConfig>("A comparison", &mut text);
    text
}

fn describe<T: JsonSchema>(title: &str, text: &mut String) {
    let root = schema_for!(T).to_value();
    let reference = Reference {
        definitions: root["$defs"].as_object().cloned().unwrap_or_default(),
    };
    let _ = writeln!(text, "\n## {title}\n");
    reference.section("", &root, text);
}

/// A schema with what it refers to.
struct Reference {
    definitions: Map<String, Value>,
}

impl Reference {
    /// The keys of one mapping, then those of the mappings in it.
    fn section(&self, path: &str, schema: &Value, text: &mut String) {
        if !path.is_empty() {
            let _ = writeln!(text, "\n### `{path}`\n");
        }
        let _ = writeln!(text, "{}\n", description(schema));
        let _ = writeln!(
            text,
            "| key | value | default | meaning |\n| --- | --- | --- | --- |"
        );
        let properties = schema["properties"].as_object().into_iter().flatten();
        let mut below = Vec::new();
        for (key, property) in properties {
            let required = schema["required"]
                .as_array()
                .is_some_and(|keys| keys.iter().any(|required| required == key));
            let (value, mapping) = self.value(property);
            let default = if required {
                "required".to_owned()
            } else {
                default(&property["default"])
            };
            let own = description(property);
            let meaning = format!("{own} {}", self.choices(property));
            let _ = writeln!(text, "| `{key}` | {value} | {default} | {} |", meaning.trim());
            if let Some((ending, mapping)) = mapping {
                let separator = if path.is_empty() { "" } else { "." };
                below.push((format!("{path}{separator}{key}{ending}"), mapping));
            }
        }
        for (path, mapping) in below {
            self.section(&path, mapping, text);
        }
    }

    /// What a key takes, in words; and where that is a mapping of keys, its schema, with what stands behind the key in a path to it.
    fn value<'a>(&'a self, schema: &'a Value) -> (String, Option<(&'static str, &'a Value)>) {
        let schema = self.resolved(schema);
        if schema["properties"].is_object() {
            return ("keys, see below".to_owned(), Some(("", schema)));
        }
        if schema["oneOf"].is_array() || schema["enum"].is_array() {
            return ("one of those named".to_owned(), None);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds
                .iter()
                .find_map(|kind| kind.as_str().filter(|kind| *kind != "null")),
            kind => kind.as_str(),
        };
        match kind {
            Some("string") => ("text".to_owned(), None),
            Some("boolean") => ("`true` or `false`".to_owned(), None),
            Some("integer") => ("whole number".to_owned(), None),
            Some("number") => ("number".to_owned(), None),
            Some("array") => {
                let (item, mapping) = self.value(&schema["items"]);
                (
                    format!("list of {item}"),
                    mapping.map(|(_, mapping)| ("[]", mapping)),
                )
            }
            Some("object") => {
                let (item, mapping) = self.value(&schema["additionalProperties"]);
                (
                    format!("{item}, by language"),
                    mapping.map(|(_, mapping)| (".<lang>", mapping)),
                )
            }
            _ => ("anything".to_owned(), None),
        }
    }

    /// `` `native`: what it means. `` for each of the values that a key can be.
    fn choices(&self, schema: &Value) -> String {
        let mut schema = self.resolved(schema);
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                schema = self.resolved(&schema[inner]);
            }
        }
        let choices = schema["oneOf"].as_array().into_iter().flatten();
        let choices = choices.filter_map(|choice| {
            let name = choice["const"].as_str()?;
            Some(format!("`{name}`: {}", description(choice)))
        });
        choices.collect::<Vec<_>>().join(" ")
    }

    /// What a schema refers to, or itself; without the `null` of what may be left out.
    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let any_of = schema["anyOf"].as_array().into_iter().flatten();
        let schema = any_of
            .into_iter()
            .find(|option| option["type"] != "null")
            .unwrap_or(schema);
        let definition = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        definition.map_or(schema, |name| &self.definitions[name])
    }
}

fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// A default as YAML has it; nothing for one that is a mapping, whose keys have defaults of their own.
fn default(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Object(_) => String::new(),
        Value::String(text) => format!("`{}`", text.replace('\n', "\\n")),
        Value::Array(items) if items.is_empty() => "`[]`".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                .collect();
            format!("`[{}]`", items.join(", "))
        }
        value => format!("`{value}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key has a meaning, and mappings and values that are lists of mappings are described, too.
    #[test]
    fn every_key_is_explained() {
        let text = markdown();
        for expected in [
            "### `model.encoder`",
            "### `evaluation.tests[]`",
            "### `training.augment.spec_augment`",
            "| `rank` | whole number | `16` | LoRA rank r. |",
            "| `lease_ttl` | text | `",
            "`padded_30s`: Whisper's own windows",
            "### `axes[]`",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing from:\n{text}");
        }
        let unexplained: Vec<&str> = text.lines().filter(|line| line.ends_with("|  |")).collect();
        assert_eq!(unexplained, [""; 0]);
        assert!(
            !text.contains("| anything |"),
            "a key takes values that are not described"
        );
    }
}
