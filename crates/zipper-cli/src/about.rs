//! What a program says about itself: completions for shells, manual pages, and its part of docs/commands.md.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Command, Subcommand};
use clap_complete::Shell;

use crate::ExitStatus;

/// Subcommands that every program with subcommands has.
#[derive(Debug, Subcommand)]
pub enum About {
    /// Print completions for a shell.
    ///
    /// Examples:
    ///   source <(zipper-launch completions bash)
    ///   zipper-launch completions zsh > ~/.zfunc/_zipper-launch
    ///   zipper-worker completions fish > ~/.config/fish/completions/zipper-worker.fish
    #[command(verbatim_doc_comment)]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages, one for each command, into a folder.
    ///
    /// Examples:
    ///   zipper-launch man ~/.local/share/man/man1
    #[command(verbatim_doc_comment)]
    Man {
        /// The folder, which is made.
        folder: PathBuf,
    },
    /// Print the help of every command as Markdown: `cargo xtask reference` makes docs/commands.md of it.
    #[command(hide = true)]
    Reference,
}

impl About {
    /// Says it about `command`.
    ///
    /// # Errors
    /// If stdout is closed or the folder cannot be written.
    pub fn run(&self, mut command: Command) -> anyhow::Result<ExitStatus> {
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        match self {
            Self::Completions { shell } => clap_complete::generate(*shell, &mut command, name, &mut text),
            Self::Man { folder } => write_pages(command, folder)?,
            Self::Reference => text = reference(command).into_bytes(),
        }
        std::io::stdout()
            .lock()
            .write_all(&text)
            .context("stdout is closed")?;
        Ok(ExitStatus::Done)
    }
}

fn write_pages(command: Command, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("cannot write into `{}`", folder.display()))
}

/// The help of a command and of all below it that are not hidden.
fn reference(mut command: Command) -> String {
    command.build();
    let mut text = String::new();
    let name = command.get_name().to_owned();
    describe(&mut command, &name, &mut text);
    text
}

fn describe(command: &mut Command, path: &str, text: &mut String) {
    // What a variable happens to be set to is no part of it.
    let mut shown = command
        .clone()
        .mut_args(|argument| argument.hide_env_values(true));
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim());
    let below = command
        .get_subcommands_mut()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help");
    for command in below {
        let path = format!("{path} {}", command.get_name());
        describe(command, &path, text);
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    /// A program.
    #[derive(Debug, Parser)]
    #[command(name = "prog")]
    struct Program {
        #[command(subcommand)]
        command: Commands,
    }

    #[derive(Debug, Subcommand)]
    enum Commands {
        /// Go there.
        Go {
            /// How fast.
            #[arg(long, env = "PROG_SPEED", default_value_t = 3)]
            speed: u32,
        },
        /// Not for people.
        #[command(hide = true)]
        Secret,
        #[command(flatten)]
        About(About),
    }

    #[test]
    fn the_reference_has_what_people_type() {
        let text = reference(Program::command());
        for expected in [
            "## prog\n",
            "## prog go\n\n```text\nGo there",
            "[env: PROG_SPEED]",
            "[default: 3]",
            "## prog completions\n",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing from:\n{text}");
        }
        for hidden in ["secret", "reference", "## prog help"] {
            assert!(!text.contains(hidden), "`{hidden}` is in:\n{text}");
        }
    }

    #[test]
    fn there_is_a_page_for_each_command() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        write_pages(Program::command(), &pages).unwrap();
        let page = std::fs::read_to_string(pages.join("prog-go.1")).unwrap();
        assert!(page.contains("How fast"), "{page}");
        assert!(!pages.join("prog-secret.1").exists());
    }
}
