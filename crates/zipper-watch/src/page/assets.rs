//! The files of the page, all inside the program.

use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const INDEX: &str = include_str!("../../assets/index.html");
/// Name, type, contents.
const ASSETS: [(&str, &str, &str); 5] = [
    ("style.css", CSS, include_str!("../../assets/style.css")),
    ("app.js", JS, include_str!("../../assets/app.js")),
    ("charts.js", JS, include_str!("../../assets/charts.js")),
    ("panels.js", JS, include_str!("../../assets/panels.js")),
    ("icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
];
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

pub(super) fn index() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], INDEX).into_response()
}

/// The chart library, which the crate `plotly` has for pages without internet.
static PLOTLY: LazyLock<String> = LazyLock::new(|| first_script(&plotly::Plot::offline_js_sources()));
const PLOTLY_NAME: &str = "plotly.js";
/// It is large, and the same as long as the program is.
const KEPT_A_DAY: &str = "private, max-age=86400";

pub(super) fn asset(name: &str) -> Response {
    if name == PLOTLY_NAME {
        let headers = [(header::CONTENT_TYPE, JS), (header::CACHE_CONTROL, KEPT_A_DAY)];
        return (headers, PLOTLY.as_str()).into_response();
    }
    match ASSETS.iter().find(|(asset, ..)| *asset == name) {
        Some((_, kind, contents)) => ([(header::CONTENT_TYPE, *kind)], *contents).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What is in the first `<script>` of some HTML.
fn first_script(html: &str) -> String {
    let script = html
        .split_once("<script")
        .and_then(|(_, rest)| rest.split_once('>'));
    let script = script.and_then(|(_, rest)| rest.split_once("</script>"));
    script.map_or_else(String::new, |(script, _)| script.to_owned())
}

/// Nothing from elsewhere, nobody's frame, no old answers. The hash is that of nothing: Plotly makes empty style sheets and fills
/// them by script.
pub(super) fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self' \
             'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the crate gives the chart library as the first script of its HTML, and nothing else with it.
    #[test]
    fn the_chart_library_is_one_script() {
        assert!(PLOTLY.trim_start().starts_with("/**\n* plotly.js v"));
        assert!(PLOTLY.contains("newPlot") && !PLOTLY.contains("MathJax =") && !PLOTLY.contains("<script"));
        assert_eq!(first_script("no script"), "");
    }

    /// Goal: the page works offline: nothing in it names another server.
    #[test]
    fn the_page_names_no_other_server() {
        for (name, _, contents) in ASSETS.iter().chain([&("index.html", "", INDEX)]) {
            let namespace = contents.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !(namespace.contains("http://") || namespace.contains("https://")),
                "`{name}` names another server"
            );
        }
    }
}
