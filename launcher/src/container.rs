//! The words before a command that run it in a container.

use std::path::Path;

use anyhow::Context;
use zipper_cli::UserError;
use zipper_config::schema::{ContainerConfig, ContainerRuntime};

use crate::processes::in_path;

/// Variables that processes of a run need and enroot would not hand in. Their values stay out of the command line.
const VARIABLES: [&str; 6] = [
    "CUDA_VISIBLE_DEVICES",
    "NCCL_SOCKET_IFNAME",
    "SLURM_JOB_ID",
    "SLURM_NODEID",
    zipper_tls::CREDENTIALS,
    zipper_tls::CREDENTIALS_FILE,
];
/// What the names of others begin with.
const FAMILIES: [&str; 4] = ["AWS_", "NCCL_", "RUST_", "ZIPPER_"];

/// [`words`] for the folder and the variables of this process.
///
/// # Errors
/// If this process has no current folder.
pub(crate) fn words_here(container: &ContainerConfig, gpus: bool) -> anyhow::Result<Vec<String>> {
    let folder = std::env::current_dir().context("no current directory")?;
    let variables: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect();
    Ok(words(
        container,
        gpus,
        &folder,
        variables.iter().map(String::as_str),
    ))
}

/// The words before a command of the image. `folder` is the current one there, too; `variables` are the names of those
/// that are set here.
fn words<'a>(
    container: &ContainerConfig,
    gpus: bool,
    folder: &Path,
    variables: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let mounts = [folder]
        .into_iter()
        .chain(container.mounts.iter().map(AsRef::as_ref))
        .map(|mount| format!("{0}:{0}", mount.display()));
    let mut words = vec![program(container).to_owned()];
    match container.runtime {
        ContainerRuntime::Apptainer => {
            words.push("exec".to_owned());
            words.extend(gpus.then(|| "--nv".to_owned()));
            words.extend(["--pwd".to_owned(), folder.display().to_string()]);
            words.extend(mounts.flat_map(|mount| ["--bind".to_owned(), mount]));
        }
        ContainerRuntime::Enroot => {
            words.push("start".to_owned());
            words.extend(mounts.flat_map(|mount| ["--mount".to_owned(), mount]));
            if gpus {
                words.extend(["--env", "NVIDIA_VISIBLE_DEVICES=all"].map(ToOwned::to_owned));
            }
            let of_family = |name: &&str| FAMILIES.iter().any(|family| name.starts_with(family));
            let mut handed: Vec<&str> = variables.into_iter().filter(of_family).collect();
            handed.sort_unstable();
            handed.extend(VARIABLES);
            words.extend(
                handed
                    .iter()
                    .flat_map(|name| ["--env".to_owned(), (*name).to_owned()]),
            );
        }
    }
    words.extend(container.arguments.iter().cloned());
    words.push(container.image.clone());
    words
}

fn program(container: &ContainerConfig) -> &'static str {
    match container.runtime {
        ContainerRuntime::Apptainer => "apptainer",
        ContainerRuntime::Enroot => "enroot",
    }
}

/// Looks whether the program that runs the container is there.
///
/// # Errors
/// If it is not.
pub(crate) fn check(container: &ContainerConfig) -> Result<(), UserError> {
    let program = program(container);
    if in_path(program).is_some() {
        return Ok(());
    }
    let error = UserError::new(format!(
        "`cluster.container.runtime` is {program}, but there is no program `{program}` in PATH"
    ));
    Err(error.hint("install it, load its module, or leave `cluster.container` out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(runtime: ContainerRuntime) -> ContainerConfig {
        ContainerConfig {
            runtime,
            image: "zipper.sif".to_owned(),
            mounts: vec!["/data".into()],
            program: "zipper-launch".to_owned(),
            arguments: vec!["--writable-tmpfs".to_owned()],
        }
    }

    #[test]
    fn apptainer_keeps_folder_and_environment() {
        let words = words(
            &container(ContainerRuntime::Apptainer),
            true,
            Path::new("/home/a"),
            [],
        );
        assert_eq!(
            words.join(" "),
            "apptainer exec --nv --pwd /home/a --bind /home/a:/home/a --bind /data:/data --writable-tmpfs zipper.sif"
        );
    }

    /// Names of variables are handed to enroot and never their values, which everyone on the node could read.
    #[test]
    fn enroot_is_told_which_variables_to_hand_in() {
        let variables = ["HOME", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT", "ZIPPER_LOG"];
        let words = words(
            &container(ContainerRuntime::Enroot),
            false,
            Path::new("/home/a"),
            variables,
        );
        assert_eq!(
            words.join(" "),
            "enroot start --mount /home/a:/home/a --mount /data:/data --env AWS_ENDPOINT --env AWS_SECRET_ACCESS_KEY \
             --env ZIPPER_LOG --env CUDA_VISIBLE_DEVICES --env NCCL_SOCKET_IFNAME --env SLURM_JOB_ID --env SLURM_NODEID \
             --env ZIPPER_CREDENTIALS --env ZIPPER_CREDENTIALS_FILE \
             --writable-tmpfs zipper.sif"
        );
    }
}
