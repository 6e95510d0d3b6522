//! Man pages and completions, made from the same definitions as `--help`.

use anyhow::Result;
use clap::Command;
use clap_complete::Shell;

crate::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Generate {
        Man = "man",
        Bash = "complete-bash",
        Zsh = "complete-zsh",
        Fish = "complete-fish",
    }
}

impl Generate {
    /// For a program that is installed as `name`.
    pub(super) fn text(self, command: Command, name: &str) -> Result<Vec<u8>> {
        let shell = match self {
            Self::Man => None,
            Self::Bash => Some(Shell::Bash),
            Self::Zsh => Some(Shell::Zsh),
            Self::Fish => Some(Shell::Fish),
        };
        // clap keeps names as long as the program runs.
        let name: &'static str = name.to_owned().leak();
        let mut command = command.name(name).bin_name(name);
        let mut text = vec![];
        match shell {
            Some(shell) => clap_complete::generate(shell, &mut command, name, &mut text),
            None => clap_mangen::Man::new(command).render(&mut text)?,
        }
        Ok(text)
    }
}
