//! An enum owns its names. One table says how each value is written on the command line, in metadata and in messages, and
//! what `--help` says of it; parsing, printing and listing follow from the table and cannot disagree.

use std::{fmt::Display, str::FromStr};

/// How one value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// A name (`majority`), or a name and what follows it (`quorum:K`).
    pub form: &'static str,
    /// Other names that are read as this one; they are never printed.
    pub aliases: &'static [&'static str],
    /// One sentence for `--help`; empty if the name says enough.
    pub help: &'static str,
}

impl Form {
    /// The form without what follows: `quorum` of `quorum:K`, `cuda` of `cuda[:N]`.
    pub fn name(&self) -> &'static str {
        name_of(self.form)
    }

    /// Whether `text` begins with this form's name or one of its aliases.
    pub fn is_named_by(&self, text: &str) -> bool {
        self.name() == name(text) || self.aliases.contains(&name(text))
    }
}

/// What stands before the first colon.
fn name(text: &str) -> &str {
    text.split_once(':').map_or(text, |(name, _)| name)
}

#[doc(hidden)]
pub fn name_of(form: &str) -> &str {
    name(form).trim_end_matches('[')
}

/// What the parsers of numbers say, in other words; `why` itself if it is not theirs.
#[doc(hidden)]
pub fn plain(why: &str) -> &str {
    match why {
        "invalid digit found in string" => "it is not a whole number",
        "invalid float literal" => "it is not a number",
        "cannot parse integer from empty string" | "cannot parse float from empty string" => "a number is missing",
        "number too large to fit in target type" => "the number is too large",
        _ => why,
    }
}

/// A type with a table of its forms. [`names!`](crate::names!) implements it for an enum; `pipe::cli::named` makes a flag of it.
pub trait Names: FromStr<Err = String> + Display {
    const FORMS: &'static [Form];

    /// The name of this value, without what follows it.
    fn name(&self) -> &'static str;

    /// All forms, as a message lists them: "`a`, `b:N` or `c`".
    fn list() -> String {
        let forms: Vec<String> = Self::FORMS.iter().map(|f| format!("`{}`", f.form)).collect();
        match forms.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        }
    }
}

/// Declares an enum together with its names:
///
/// ```
/// pipe::names! {
///     /// How votes become a preference.
///     #[derive(Clone, Debug, PartialEq)]
///     pub enum Rule {
///         /// The image that more metrics prefer.
///         Majority = "majority" | "most",
///         /// At least K metrics.
///         Quorum(usize) = "quorum:K" where |k| *k > 0 => "K is at least 1",
///         /// The sum of the scores, of which the loser's counts less.
///         Sum(f64 = 1.0) = "sum[:WEIGHT]",
///     }
/// }
/// assert_eq!("most".parse(), Ok(Rule::Majority));
/// assert_eq!(Rule::Quorum(3).to_string(), "quorum:3");
/// assert!("quorum:x".parse::<Rule>().is_err() && "quorum:0".parse::<Rule>().is_err());
/// assert_eq!("sum".parse(), Ok(Rule::Sum(1.0)));
/// ```
///
/// The first string is the name that is printed; further ones, after `|`, are read as well. A value's doc comment is its help
/// line. A variant with a field is written `name:FIELD`; the field's type parses and prints it. A field with a default may be left
/// out, and one with a condition (`where`) is refused if it does not hold. `#[serde(try_from = "String")]` reads the enum from JSON.
#[macro_export]
macro_rules! names {
    ($(#[$meta:meta])* $vis:vis enum $enum:ident {
        $($(#[doc = $help:literal])* $value:ident $(($data:ty $(= $default:expr)?))? = $form:literal
            $(| $alias:literal)* $(where $holds:expr => $condition:literal)?),+ $(,)?
    }) => {
        $(#[$meta])*
        $vis enum $enum { $($(#[doc = $help])* $value $(($data))?),+ }

        impl $crate::names::Names for $enum {
            const FORMS: &'static [$crate::names::Form] = &[$($crate::names::Form {
                form: $form,
                aliases: &[$($alias),*],
                help: concat!($($help),*),
            }),+];

            fn name(&self) -> &'static str {
                match self { $($enum::$value { .. } => $crate::names::name_of($form)),+ }
            }
        }

        impl TryFrom<String> for $enum {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl ::std::fmt::Display for $enum {
            fn fmt(&self, f: &mut ::std::fmt::Formatter) -> ::std::fmt::Result {
                f.write_str($crate::names::Names::name(self))?;
                match self {
                    $($enum::$value $(($crate::names!(@bind data $data)))? => {
                        $(let data: &$data = data; write!(f, ":{data}")?;)?
                    })+
                }
                Ok(())
            }
        }

        impl ::std::str::FromStr for $enum {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let mut forms = <Self as $crate::names::Names>::FORMS.iter();
                let rest = text.split_once(':').map(|(_, rest)| rest);
                $(if forms.next().is_some_and(|form| form.is_named_by(text)) {
                    return $crate::names!(@parse $enum::$value, $form, rest $(, $data, [$($default)?])? $(, $holds => $condition)?);
                })+
                let _ = (forms, rest);
                Err(format!("'{text}' is not known; expected {}", <Self as $crate::names::Names>::list()))
            }
        }
    };
    (@bind $name:ident $data:ty) => { $name };
    (@parse $enum:ident :: $value:ident, $form:literal, $rest:ident) => {
        match $rest {
            None => Ok($enum::$value),
            Some(_) => Err(format!("nothing follows `{}`", $form)),
        }
    };
    (@default $enum:ident :: $value:ident, $form:literal) => { Err(format!("expected `{}`", $form)) };
    (@default $enum:ident :: $value:ident, $form:literal, $default:expr) => { Ok($enum::$value($default)) };
    (@parse $enum:ident :: $value:ident, $form:literal, $rest:ident, $data:ty, [$($default:expr)?]
        $(, $holds:expr => $condition:literal)?) => {
        match $rest.map(|rest| (rest, rest.parse::<$data>())) {
            $(Some((rest, Ok(data))) if !{ let holds: fn(&$data) -> bool = $holds; holds(&data) } => {
                Err(format!("'{rest}' does not fit `{}`: {}", $form, $condition))
            })?
            Some((_, Ok(data))) => Ok($enum::$value(data)),
            Some((rest, Err(why))) => {
                Err(format!("'{rest}' does not fit `{}`: {}", $form, $crate::names::plain(&why.to_string())))
            }
            None => $crate::names!(@default $enum::$value, $form $(, $default)?),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::Names;

    names! {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Word {
            Plain = "plain" | "simple" | "bare",
            /// Two lines
            /// of help.
            Counted(u8) = "counted:N" where |n| *n < 9 => "N is below 9",
            Spoken(usize = 7) = "spoken[:TIMES]",
        }
    }

    #[test]
    fn a_value_is_read_as_it_is_printed() {
        for (word, text) in [(Word::Plain, "plain"), (Word::Counted(3), "counted:3"), (Word::Spoken(2), "spoken:2")] {
            assert_eq!(word.to_string(), text);
            assert_eq!(text.parse(), Ok(word));
        }
        assert_eq!(["simple", "bare"].map(str::parse), [Ok(Word::Plain), Ok(Word::Plain)]);
        assert_eq!("spoken".parse(), Ok(Word::Spoken(7)));
        assert_eq!(Word::FORMS[1].help, " Two lines of help.");
    }

    #[test]
    fn an_error_says_what_is_expected() {
        let error = |text: &str| text.parse::<Word>().unwrap_err();
        assert_eq!(error("odd"), "'odd' is not known; expected `plain`, `counted:N` or `spoken[:TIMES]`");
        assert_eq!(error("plain:1"), "nothing follows `plain`");
        assert_eq!(error("counted"), "expected `counted:N`");
        assert!(error("counted:300").starts_with("'300' does not fit `counted:N`: "), "{}", error("counted:300"));
        assert_eq!(error("counted:9"), "'9' does not fit `counted:N`: N is below 9");
        assert!(error("counted:x").ends_with("it is not a whole number") && error("spoken:").ends_with("is missing"));
        assert!(error("spoken[").contains("is not known") && error("spoken:").contains("does not fit"));
    }
}
