//! The files of the page, all inside the program.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const INDEX: &str = include_str!("../../assets/index.html");
/// Name, type, contents.
const ASSETS: [(&str, &str, &str); 7] = [
    ("style.css", CSS, include_str!("../../assets/style.css")),
    ("app.js", JS, include_str!("../../assets/app.js")),
    ("charts.js", JS, include_str!("../../assets/charts.js")),
    ("panels.js", JS, include_str!("../../assets/panels.js")),
    (
        "uplot.js",
        JS,
        include_str!("../../assets/uplot/uPlot.iife.min.js"),
    ),
    ("uplot.css", CSS, include_str!("../../assets/uplot/uPlot.min.css")),
    ("icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
];
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

pub(super) fn index() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], INDEX).into_response()
}

pub(super) fn asset(name: &str) -> Response {
    match ASSETS.iter().find(|(asset, ..)| *asset == name) {
        Some((_, kind, contents)) => ([(header::CONTENT_TYPE, *kind)], *contents).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Nothing from elsewhere, nobody's frame, no old answers.
pub(super) fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the chart library is the published one, byte for byte (`assets/uplot/NOTICE.md`).
    #[test]
    fn the_chart_library_is_the_published_one() {
        let checksum = |name: &str| {
            let (.., contents) = ASSETS
                .iter()
                .find(|(asset, ..)| *asset == name)
                .expect("it is there");
            blake3::hash(contents.as_bytes()).to_string()
        };
        assert_eq!(
            checksum("uplot.js"),
            "ea2d16ff65797375a846049c0f0a17f68b47a2850b9c73f2816ecf040ec9f2ce"
        );
        assert_eq!(
            checksum("uplot.css"),
            "70ead7542eab83ef6ff4269c1f139e3c40f5f59f98302552320b9f79188abba1"
        );
    }

    /// Goal: the page works offline: nothing in it names another server.
    #[test]
    fn the_page_names_no_other_server() {
        for (name, _, contents) in ASSETS.iter().chain([&("index.html", "", INDEX)]) {
            let own = !name.starts_with("uplot");
            let namespace = contents.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !own || !(namespace.contains("http://") || namespace.contains("https://")),
                "`{name}` names another server"
            );
        }
    }
}
