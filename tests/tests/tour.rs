//! Goal: docs/tour.md names functions and types that are where it says.
//! Method: of each link with code in it, the last name must be defined in the file it leads to.

use std::fs;
use std::path::Path;

use regex::Regex;

#[test]
fn every_stop_of_the_tour_is_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let tour = fs::read_to_string(docs.join("tour.md")).expect("the tour is there");
    let link = Regex::new(r"\[`([\w:]+)`\]\((\.\./[^)]+)\)").expect("it compiles");
    let mut stops = 0;
    for found in link.captures_iter(&tour) {
        let (name, file) = (&found[1], &found[2]);
        let name = name.rsplit("::").next().unwrap_or(name);
        let code = fs::read_to_string(docs.join(file)).unwrap_or_else(|error| panic!("`{file}`: {error}"));
        let definition = Regex::new(&format!(r"\b(fn|struct|trait) {name}\b")).expect("it compiles");
        assert!(
            definition.is_match(&code),
            "docs/tour.md: `{name}` is not in `{file}`"
        );
        stops += 1;
    }
    assert!(stops > 20, "{stops} stops are not the whole tour");
}
