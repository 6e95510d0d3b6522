//! The flags that the metrics declare.

use std::collections::BTreeMap;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgMatches, Command, FromArgMatches};
use nets::scorer;

/// What the user chose for the metrics, by the name of the choice, which is also the name of the flag.
#[derive(Clone, Debug)]
pub struct Choices(pub BTreeMap<String, String>);

impl clap::Args for Choices {
    fn augment_args(command: Command) -> Command {
        let flag = |choice: &&'static scorer::Choice| {
            let values = choice.values.iter().map(|form| PossibleValue::new(form.form).help(form.help.trim()));
            let parser = PossibleValuesParser::new(values);
            let arg = Arg::new(choice.name).long(choice.name).help(choice.help).value_name("V");
            let arg = arg.help_heading("Scoring").value_parser(parser);
            if let Some(default) = choice.default { arg.default_value(default) } else { arg }
        };
        command.args(scorer::choices(|_| true).iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Choices {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value =
            |choice: &scorer::Choice| Some((choice.name.into(), matches.get_one::<String>(choice.name)?.clone()));
        Ok(Self(scorer::choices(|_| true).into_iter().filter_map(value).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
