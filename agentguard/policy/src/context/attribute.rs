//! What every attribute of `context` says of itself, and what those of the surroundings can do besides.

use std::borrow::Cow;
use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;

use super::{ActFacts, AttributeName};
use crate::bundle::ParsedBundle;
use crate::diagnostic::Report;
use crate::parse::{Located, Table};
use crate::replay::{RecordedAct, ReplayGap};
use crate::schema::Shape;
use crate::time::Calendar;

/// One attribute of `context`.
pub(crate) trait Attribute {
    /// As rules write it behind `context.`.
    const NAME: &'static str;
    /// Its type in the schema; of the attributes that hosts' files declare, what their types look like.
    const CEDAR: &'static str;
    /// Whether passed connections have it, too.
    const CONNECT: bool;
    /// One sentence for those who write rules.
    const DOC: &'static str;
    /// Names of the facts by which a record tells it.
    const FACTS: &'static [&'static str];
    /// Keys by which a case gives it, and what is written for each.
    const KEYS: &'static [(&'static str, &'static str)];
    /// Why a record that does not tell it cannot be replayed.
    const MISSING: &'static str = "the new rules read what the record does not tell";

    /// Its type in the schema of the hosts that `shape` is of.
    fn schema(_shape: &Shape) -> Cow<'static, str> {
        Cow::Borrowed(Self::CEDAR)
    }

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression;
}

/// An attribute whose value is not the act's own: it is gathered for a decision, assumed by a question, told by a record.
pub(crate) trait Surrounding: Attribute + Sized {
    /// Whether it counts whatever rules read: then each record tells it.
    const ALWAYS: bool = false;
    /// What a question assumes of it, with the keys that its JSON has.
    type Asked;

    /// Adds what a record has of it.
    fn facts(&self, facts: &mut BTreeMap<String, String>);

    /// The value that rules read the same of as when the record was made. `calendar`: of the bundle that decides now.
    ///
    /// # Errors
    /// What of it the record does not tell.
    fn recall(
        record: &RecordedAct<'_>,
        calendar: Option<&Calendar>,
    ) -> Result<Option<Self>, ReplayGap>;

    /// What a case says of it; `None`: nothing that can be used, which has been reported.
    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<Self::Asked>;

    /// Compares what a case says with the rest of its bundle. `texts`: where it says it.
    fn check(
        _asked: &Self::Asked,
        _texts: &[Located<String>],
        _bundle: &ParsedBundle,
        _report: &mut Report<'_>,
    ) {
    }

    /// The value that a question assumes.
    ///
    /// # Errors
    /// What in the question cannot be.
    fn assumed(asked: &Self::Asked, calendar: Option<&Calendar>) -> Result<Option<Self>, String>;
}

/// What the book says of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeDoc {
    /// As rules write it behind `context.`.
    pub name: &'static str,
    /// Its type in the Cedar schema.
    pub cedar: &'static str,
    /// Whether passed connections have it, too.
    pub connect: bool,
    /// One sentence.
    pub doc: &'static str,
    /// Names of the facts by which a record tells it.
    pub facts: &'static [&'static str],
    /// Keys by which a case gives it, and what is written for each.
    pub keys: &'static [(&'static str, &'static str)],
}

/// An [`Attribute`] as a value.
pub(crate) struct AttributeEntry {
    pub name: AttributeName,
    pub doc: AttributeDoc,
    pub missing: &'static str,
    pub schema: fn(&Shape) -> Cow<'static, str>,
    pub cedar: fn(&ActFacts<'_>) -> RestrictedExpression,
}

impl AttributeEntry {
    pub(super) const fn of<A: Attribute>(name: AttributeName) -> Self {
        Self {
            name,
            doc: AttributeDoc {
                name: A::NAME,
                cedar: A::CEDAR,
                connect: A::CONNECT,
                doc: A::DOC,
                facts: A::FACTS,
                keys: A::KEYS,
            },
            missing: A::MISSING,
            schema: A::schema,
            cedar: A::cedar,
        }
    }
}

pub(super) fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

pub(super) fn set<'t>(texts: impl IntoIterator<Item = &'t str>) -> RestrictedExpression {
    RestrictedExpression::new_set(texts.into_iter().map(text))
}

/// What nobody has gathered has nothing that a rule could read: its evaluation fails, and the act is refused.
pub(super) fn record<const N: usize>(
    fields: Option<[(&str, RestrictedExpression); N]>,
) -> RestrictedExpression {
    let fields = fields.into_iter().flatten();
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .expect("the names are different")
}
