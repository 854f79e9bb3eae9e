use std::fs;
use std::path::Path;

use super::*;

fn files(folder: &Path, config: &str, credentials: &str, profile: Option<&str>) -> ProfileFiles {
    let aws = folder.join(".aws");
    fs::create_dir_all(&aws).unwrap();
    fs::write(aws.join("config"), config).unwrap();
    fs::write(aws.join("credentials"), credentials).unwrap();
    let home = [("HOME".to_owned(), folder.display().to_string())];
    let profile = profile.map(|profile| ("AWS_PROFILE".to_owned(), profile.to_owned()));
    let environment: Environment = home.into_iter().chain(profile).collect();
    ProfileFiles::of(&environment).unwrap()
}

fn files_named_by(variables: &[(&str, &str)]) -> Option<ProfileFiles> {
    ProfileFiles::of(&variables.iter().copied().collect())
}

const CONFIG: &str = "
# a comment
[default]
region = eu-central-1
[profile lab]
region=us-west-2   # where the bucket is
endpoint_url = https://general.example
services = of-the-lab
s3 =
    addressing_style = virtual
    max_concurrent_requests = 20
output = json
[services of-the-lab]
dynamodb =
  endpoint_url = https://tables.example
s3 =
  endpoint_url = https://objects.example
";

const CREDENTIALS: &str = "
[default]
aws_access_key_id = DEFAULTKEY
aws_secret_access_key = default/secret+with=signs
[lab]
aws_access_key_id=LABKEY
aws_secret_access_key=lab-secret
aws_session_token=lab-token
region = us-east-2
";

/// Goal: the files mean what AWS's own tools read in them: sections, comments, nested settings, and what is in `credentials`
/// before what is in `config`.
#[test]
fn profiles_are_read_as_aws_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let default = files(folder.path(), CONFIG, CREDENTIALS, None)
        .read()
        .unwrap()
        .unwrap();
    assert_eq!(default.region(), Some("eu-central-1"));
    assert_eq!((default.endpoint(), default.virtual_hosted()), (None, false));
    let credentials = default.credentials().unwrap().unwrap();
    assert_eq!(credentials.key_id, "DEFAULTKEY");
    assert_eq!(credentials.secret_key, "default/secret+with=signs");
    assert_eq!(credentials.token, None);

    let lab = files(folder.path(), CONFIG, CREDENTIALS, Some("lab"))
        .read()
        .unwrap()
        .unwrap();
    assert_eq!(lab.region(), Some("us-east-2"));
    assert_eq!(lab.endpoint(), Some("https://objects.example"));
    assert!(lab.virtual_hosted());
    assert_eq!(
        lab.credentials().unwrap().unwrap().token.as_deref(),
        Some("lab-token")
    );
}

/// Goal: each profile that cannot be used is refused with its name and the reason, and no secret is repeated.
#[test]
fn profiles_that_cannot_be_used_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[profile a]\nsso_session = work\n[profile b]\ncredential_process = /bin/keys\n\
                  [profile c]\nrole_arn = arn:x\nsource_profile = a\n";
    for (profile, words) in [
        ("a", "`a` gets its credentials by single sign-on (`sso_session`)"),
        (
            "b",
            "`b` gets its credentials by an external process (`credential_process`)",
        ),
        ("c", "`c` gets its credentials by assuming a role (`role_arn`)"),
        ("d", "`d` has aws_access_key_id, but no aws_secret_access_key"),
    ] {
        let files = files(
            folder.path(),
            config,
            "[d]\naws_access_key_id = X\n",
            Some(profile),
        );
        let problem = files
            .read()
            .unwrap()
            .unwrap()
            .credentials()
            .expect_err("it cannot be used");
        assert!(problem.contains(words), "{problem}");
    }
    let missing = files(folder.path(), config, "", Some("e")).read().unwrap_err();
    assert!(
        missing.contains("`e`") && missing.contains("credentials"),
        "{missing}"
    );
    assert_eq!(files(folder.path(), "", "", None).read().unwrap(), None);

    let folder_for_file = files_named_by(&[("AWS_CONFIG_FILE", folder.path().to_str().unwrap())]);
    let problem = folder_for_file.unwrap().read().unwrap_err();
    assert!(problem.contains("cannot be read"), "{problem}");

    for (credentials, words) in [
        ("[x\n", "line 1: the name of a section"),
        ("[x]\nhunter2\n", "line 2: a setting is written"),
        ("key = hunter2\n", "line 1: a setting is in a section"),
    ] {
        let problem = files(folder.path(), "", credentials, None).read().unwrap_err();
        assert!(
            problem.contains(words) && !problem.contains("hunter2"),
            "{problem}"
        );
    }
}

/// Goal: a file or a profile that is named counts where there is no home, as for a service or in a container.
#[test]
fn what_is_named_counts_without_a_home() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    fs::write(&path, CREDENTIALS).unwrap();
    let named = files_named_by(&[("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap())]);
    let default = named.unwrap().read().unwrap().unwrap();
    assert_eq!(default.credentials().unwrap().unwrap().key_id, "DEFAULTKEY");

    let problem = files_named_by(&[("AWS_PROFILE", "lab")])
        .unwrap()
        .read()
        .unwrap_err();
    assert!(
        problem.contains("`lab` (AWS_PROFILE) is neither in `~/.aws/config`"),
        "{problem}"
    );
    assert!(files_named_by(&[]).is_none());
}

/// Goal: keys that somebody renews in the file are used from then on; a file that is unreadable for a moment does no harm.
#[tokio::test]
async fn renewed_keys_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), CONFIG, CREDENTIALS, None);
    let path = files.credentials.clone();
    let provider = ProfileCredentials::new(files);
    let key = async || provider.get_credential().await.unwrap().key_id.clone();
    assert_eq!(key().await, "DEFAULTKEY");

    fs::write(&path, CREDENTIALS.replace("DEFAULTKEY", "LONGERNEWKEY")).unwrap();
    assert_eq!(key().await, "LONGERNEWKEY");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "[default\n").unwrap();
    assert_eq!(key().await, "LONGERNEWKEY");

    // Same length and the same instant: a refusal is what makes it look.
    fs::write(&path, CREDENTIALS.replace("DEFAULTKEY", "NEWESTKEY+/1")).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(written).unwrap();
    assert_eq!(key().await, "LONGERNEWKEY");
    provider.read_again();
    assert_eq!(key().await, "NEWESTKEY+/1");
    let shown = format!("{provider:?}");
    assert!(
        shown.contains(path.to_str().unwrap()) && !shown.contains("secret"),
        "{shown}"
    );
}
