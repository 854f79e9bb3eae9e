//! Names of `AWS_*` variables, so that a misspelt one is not simply without effect.

use crate::options::Environment;

/// The variables that have an effect.
const USED: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_ALLOW_HTTP",
    "AWS_CA_BUNDLE",
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_IMDSV1_FALLBACK",
    "AWS_METADATA_ENDPOINT",
    "AWS_PROFILE",
    "AWS_PROXY_CA_CERTIFICATE",
    "AWS_PROXY_EXCLUDES",
    "AWS_PROXY_URL",
    "AWS_REGION",
    "AWS_REQUEST_PAYER",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_S3_EXPRESS",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_SKIP_SIGNATURE",
    "AWS_SSE_BUCKET_KEY_ENABLED",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_UNSIGNED_PAYLOAD",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

/// Variables of AWS's own tools that change where requests go, which nothing here does.
const UNSUPPORTED: &[&str] = &["AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT"];

/// How alike two names are at least when one is a misspelling of the other.
const ALIKE: f64 = 0.9;

/// Whether a variable has an effect. object_store knows more, one of which ends the verification of certificates.
pub(crate) fn is_used(name: &str) -> bool {
    USED.contains(&name)
}

/// Warns of variables without effect that look as if one was meant.
pub(crate) fn warn(environment: &Environment) {
    for problem in problems(environment) {
        tracing::warn!("{problem}");
    }
}

pub(crate) fn problems(environment: &Environment) -> Vec<String> {
    environment
        .iter()
        .filter(|(name, _)| name.starts_with("AWS_") && !is_used(name))
        .filter_map(|(name, _)| {
            if UNSUPPORTED.contains(&name) {
                return Some(format!(
                    "{name} has no effect: give the endpoint in AWS_ENDPOINT_URL_S3"
                ));
            }
            let alike = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
            let nearest = USED.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
            (alike(nearest) >= ALIKE)
                .then(|| format!("the variable {name} has no effect: did you mean {nearest}?"))
        })
        .collect()
}
