use std::fs;
use std::time::Duration;

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")];

fn with_keys(variables: &[(&str, &str)]) -> Environment {
    KEYS.iter().chain(variables).copied().collect()
}

fn refused(environment: &Environment) -> String {
    open("bucket", &StoreOptions::default(), environment).expect_err("it is refused")
}

/// Goal: an endpoint without encryption needs the explicit word, whichever variable or profile names it; the most specific
/// variable counts.
#[test]
fn http_has_to_be_allowed() {
    for name in ENDPOINTS {
        let problem = refused(&with_keys(&[(name, "http://127.0.0.1:9")]));
        assert!(
            problem.contains(name) && problem.contains("AWS_ALLOW_HTTP=true"),
            "{problem}"
        );
        let allowed = with_keys(&[(name, "http://127.0.0.1:9"), ("AWS_ALLOW_HTTP", "true")]);
        open("bucket", &StoreOptions::default(), &allowed).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::write(&config, "[default]\nendpoint_url = http://127.0.0.1:9\n").unwrap();
    let variables = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("HOME", "/nonexistent"),
    ];
    let problem = refused(&with_keys(&variables));
    assert!(
        problem.contains("endpoint_url of the profile `default`"),
        "{problem}"
    );

    let both = with_keys(&[
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "https://a.example"),
    ]);
    assert_eq!(
        endpoint(&both, None).unwrap().unwrap().as_str(),
        "https://a.example/"
    );
    let problem = refused(&with_keys(&[("AWS_ENDPOINT_URL", "ftp://a.example")]));
    assert!(problem.contains("begins with https://"), "{problem}");
}

/// Goal: who has no credentials is told so at once, instead of after a minute of asking for a role that no machine has.
#[test]
fn missing_credentials_are_refused() {
    let elsewhere = ("AWS_ENDPOINT_URL", "https://a.example");
    for (variables, words) in [
        (vec![elsewhere], "there are no credentials"),
        (
            vec![("AWS_EC2_METADATA_DISABLED", "true")],
            "there are no credentials",
        ),
        (vec![KEYS[0]], "AWS_SECRET_ACCESS_KEY is not"),
        (vec![KEYS[1]], "AWS_ACCESS_KEY_ID is not"),
        (
            vec![("AWS_PROFILE", "lab"), ("HOME", "/nonexistent")],
            "profile `lab`",
        ),
        (vec![elsewhere, ("AWS_PROFILE", "lab")], "profile `lab`"),
        (
            vec![elsewhere, KEYS[0], KEYS[1], ("AWS_CA_BUNDLE", "/nonexistent")],
            "AWS_CA_BUNDLE",
        ),
    ] {
        let problem = refused(&environment(&variables));
        assert!(problem.contains(words), "{problem}");
    }
    open(
        "bucket",
        &StoreOptions::default(),
        &environment(&[elsewhere, ("AWS_SKIP_SIGNATURE", "true")]),
    )
    .expect("a public bucket needs none");
}

/// Goal: a role that the environment names is as good as keys, also away from AWS.
#[test]
fn a_role_of_the_environment_is_enough() {
    for name in [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
    ] {
        let found = credentials(&environment(&[(name, "x")]), None, None, true);
        assert!(found.is_ok_and(|keys| keys.is_none()), "{name}");
    }
}

/// Goal: a request that fails is repeated for as long as the options say, however often that is, and at least every few seconds.
#[test]
fn repetitions_are_limited_by_their_time() {
    let options = StoreOptions {
        retry_timeout: Duration::from_mins(7),
        ..StoreOptions::default()
    };
    let repeated = repetitions(&options);
    assert_eq!(
        (repeated.retry_timeout, repeated.max_retries),
        (options.retry_timeout, usize::MAX)
    );
    assert_eq!(repeated.backoff.max_backoff, LONGEST_PAUSE);
}

/// Goal: with virtual-hosted requests the bucket is part of the host, once.
#[test]
fn virtual_hosted_requests_put_the_bucket_before_the_host() {
    for (given, expected) in [
        ("https://s3.example:9000", "https://bucket.s3.example:9000/"),
        ("https://bucket.s3.example", "https://bucket.s3.example/"),
    ] {
        let endpoint = with_bucket(Url::parse(given).unwrap(), "bucket").unwrap();
        assert_eq!(endpoint.as_str(), expected);
    }
    let problem = with_bucket(Url::parse("https://127.0.0.1").unwrap(), "bucket").unwrap_err();
    assert!(problem.contains("path-style"), "{problem}");
}

/// Goal: a misspelt variable is named with the one that was meant; others that are none of our business are not.
#[test]
fn misspelt_variables_are_noticed() {
    let given = with_keys(&[
        ("AWS_ENDPONT_URL", "x"),
        ("AWS_SECRET_ACESS_KEY", "x"),
        ("AWS_USE_FIPS_ENDPOINT", "true"),
        ("AWS_PAGER", "less"),
        ("AWS_LAMBDA_FUNCTION_NAME", "x"),
        ("AWS_REGION", "x"),
    ]);
    let problems = names::problems(&given);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems[0].contains("AWS_ENDPONT_URL") && problems[0].contains("did you mean AWS_ENDPOINT_URL?")
    );
    assert!(problems[1].contains("did you mean AWS_SECRET_ACCESS_KEY?"));
    assert!(problems[2].contains("AWS_USE_FIPS_ENDPOINT has no effect"));
}
