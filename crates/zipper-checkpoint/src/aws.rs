//! From the standard `AWS_*` variables and profiles to an S3 client.
//!
//! Credentials come from the first of: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; the profile; a web identity, a container's
//! or a machine's role, where object_store asks for them. Endpoint and region: variables first, then the profile.

mod names;
mod profile;

use std::fs;
use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use url::Url;

use crate::options::{Environment, StoreOptions};
pub(crate) use profile::ProfileCredentials;
use profile::{Profile, ProfileFiles};

/// Longest pause between two tries of a request.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// Variables that this module reads itself, in the order that counts.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// A client for `bucket`, and its credentials if they are read from files.
pub(crate) fn open(
    bucket: &str,
    options: &StoreOptions,
    environment: &Environment,
) -> Result<(AmazonS3, Option<Arc<ProfileCredentials>>), String> {
    names::warn(environment);
    let files = ProfileFiles::of(environment);
    let profile = files.as_ref().map(ProfileFiles::read).transpose()?.flatten();
    let endpoint = endpoint(environment, profile.as_ref())?;
    let credentials = credentials(environment, files, profile.as_ref(), endpoint.is_some())?;

    let mut client = ClientOptions::new();
    // Plain DELETE requests: not every server has the bulk request, and few objects are deleted at a time.
    let mut builder = AmazonS3Builder::new()
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_bucket_name(bucket);
    let used = |name: &str| names::is_used(name) && !ENDPOINTS.contains(&name);
    for (name, value) in environment.iter().filter(|(name, _)| used(name)) {
        match name.to_ascii_lowercase().parse() {
            Ok(AmazonS3ConfigKey::Client(key)) => client = client.with_config(key, value),
            Ok(key) => builder = builder.with_config(key, value),
            Err(_) => {}
        }
    }
    if let Some(region) = region(environment, profile.as_ref()) {
        builder = builder.with_region(region);
    }
    let virtual_hosted = is_virtual_hosted(environment, profile.as_ref());
    builder = builder.with_virtual_hosted_style_request(virtual_hosted);
    if let Some(endpoint) = endpoint {
        client = client.with_allow_http(endpoint.scheme() == "http");
        let endpoint = if virtual_hosted {
            with_bucket(endpoint, bucket)?
        } else {
            endpoint
        };
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    if let Some(credentials) = &credentials {
        builder = builder.with_credentials(Arc::clone(credentials) as _);
    }
    for certificate in extra_certificates(environment)? {
        client = client.with_root_certificate(certificate);
    }
    let client = client
        .with_timeout(options.request_timeout)
        .with_connect_timeout(options.request_timeout.min(LONGEST_PAUSE));
    let store = builder
        .with_client_options(client)
        .with_retry(repetitions(options))
        .build()
        .map_err(|error| error.to_string())?;
    Ok((store, credentials))
}

/// How long a request that fails is repeated: the time is the limit, not the number.
fn repetitions(options: &StoreOptions) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: LONGEST_PAUSE,
            ..BackoffConfig::default()
        },
        max_retries: usize::MAX,
        retry_timeout: options.retry_timeout,
    }
}

/// Which region requests are signed for, if anything names one.
fn region<'a>(environment: &'a Environment, profile: Option<&'a Profile>) -> Option<&'a str> {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|name| environment.get(name))
        .or(profile.and_then(Profile::region))
}

/// Whether requests have the bucket before their host.
fn is_virtual_hosted(environment: &Environment, profile: Option<&Profile>) -> bool {
    environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").map_or_else(
        || profile.is_some_and(Profile::virtual_hosted),
        |value| value.eq_ignore_ascii_case("true"),
    )
}

/// Where the server is, if it is not AWS.
fn endpoint(environment: &Environment, profile: Option<&Profile>) -> Result<Option<Url>, String> {
    if environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
        return Ok(None);
    }
    let from_variables = ENDPOINTS
        .iter()
        .find_map(|name| Some(((*name).to_owned(), environment.get(name)?)));
    let from_profile = || {
        let profile = profile?;
        Some((format!("endpoint_url of {profile}"), profile.endpoint()?))
    };
    let Some((origin, endpoint)) = from_variables.or_else(from_profile) else {
        return Ok(None);
    };
    let url = Url::parse(endpoint).map_err(|error| format!("{origin} is `{endpoint}`: {error}"))?;
    match url.scheme() {
        "https" => Ok(Some(url)),
        "http" if environment.is_true("AWS_ALLOW_HTTP") => Ok(Some(url)),
        "http" => Err(format!(
            "{origin} is `{endpoint}`, which is not encrypted: use https, or set AWS_ALLOW_HTTP=true"
        )),
        _ => Err(format!("{origin} is `{endpoint}`: it begins with https://")),
    }
}

/// Puts the bucket before the host, as virtual-hosted requests want it, if it is not there already.
fn with_bucket(mut endpoint: Url, bucket: &str) -> Result<Url, String> {
    let problem =
        || format!("`{endpoint}` cannot have the bucket `{bucket}` before its host: use path-style requests");
    let host = endpoint.domain().ok_or_else(problem)?;
    if host
        .strip_prefix(bucket)
        .is_some_and(|rest| rest.starts_with('.'))
    {
        return Ok(endpoint);
    }
    let host = format!("{bucket}.{host}");
    let failed = problem();
    endpoint.set_host(Some(&host)).map_err(|_| failed)?;
    Ok(endpoint)
}

/// The profile's keys, if the environment has none. `elsewhere`: the server is not AWS.
fn credentials(
    environment: &Environment,
    files: Option<ProfileFiles>,
    profile: Option<&Profile>,
    elsewhere: bool,
) -> Result<Option<Arc<ProfileCredentials>>, String> {
    let has = |name: &str| environment.get(name).is_some();
    match (has("AWS_ACCESS_KEY_ID"), has("AWS_SECRET_ACCESS_KEY")) {
        (true, true) => return Ok(None),
        (true, false) => return Err("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".to_owned()),
        (false, true) => return Err("AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".to_owned()),
        (false, false) => {}
    }
    if let (Some(profile), Some(files)) = (profile, files)
        && profile.credentials()?.is_some()
    {
        return Ok(Some(Arc::new(ProfileCredentials::new(files))));
    }
    let role = environment.is_true("AWS_SKIP_SIGNATURE")
        || has("AWS_WEB_IDENTITY_TOKEN_FILE")
        || has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || has("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        || has("AWS_METADATA_ENDPOINT");
    // Only a machine of AWS has a role of its own, and asking for it elsewhere takes a minute.
    if !role && (elsewhere || environment.is_true("AWS_EC2_METADATA_DISABLED")) {
        return Err(
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile in \
             ~/.aws/credentials"
                .to_owned(),
        );
    }
    Ok(None)
}

/// Authorities beyond the system's: `AWS_CA_BUNDLE`, for servers with certificates of their own.
fn extra_certificates(environment: &Environment) -> Result<Vec<Certificate>, String> {
    let Some(path) = environment.get("AWS_CA_BUNDLE") else {
        return Ok(Vec::new());
    };
    let problem = |reason: String| format!("AWS_CA_BUNDLE is `{path}`: {reason}");
    let pem = fs::read(path).map_err(|error| problem(error.to_string()))?;
    Certificate::from_pem_bundle(&pem).map_err(|error| problem(error.to_string()))
}

#[cfg(test)]
mod tests;
