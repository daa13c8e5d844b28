//! What rules read behind `context.`: an attribute is a file here, its line in the list below, and its source (`forwarder/src/situation.rs`).
//!
//! Attributes of the surroundings have a type with a value ([`Surrounding`]). Those of the act (`act`, `scope`) have none:
//! they follow from the path as it is read, and from what hosts' files declare, so a decision makes them itself.

mod act;
mod agent;
mod approvals;
mod attribute;
mod host;
mod limits;
mod network;
mod scope;
mod task;
#[cfg(test)]
mod tests;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::body::{Body, Value};
use super::bundle::ParsedBundle;
use super::diagnostic::Report;
use super::glob::RouteTable;
use super::lookup::{Lookup, LookupAnswer};
use super::parse::{Located, Table};
use super::reading::WRITTEN;
use super::replay::{RecordedAct, ReplayGap};
use super::slice::Slice;
use super::time::{Calendar, Moment};
use super::{TaskSituation, schema};

use self::act::{
    BodyAttribute, HeadersAttribute, LookupAttribute, PathAttribute, QueryAttribute,
    RoutesAttribute, SchemeAttribute, SegmentsAttribute,
};
use self::attribute::AttributeEntry;
use self::scope::ScopeAttribute;

pub use self::agent::{AgentSituation, AskedAgent};
pub use self::approvals::{Approvals, AskedApprovals};
pub use self::attribute::AttributeDoc;
pub(crate) use self::attribute::{Attribute, Surrounding};
pub use self::host::{AskedHost, HostLabels};
pub use self::limits::{AskedLimits, ExhaustedLimits};
pub use self::network::{AskedNetwork, NetworkTrust};
pub(crate) use self::scope::{SCOPES, scope_of};
pub use self::task::{AskedTask, AskedTasks};
pub use self::time::AskedTime;

/// Makes of the list what has to have every attribute.
macro_rules! attributes {
    (
        act: $($own:ident = $act:ty),*;
        surroundings: $($name:ident { $field:ident: $kind:ty = $asked:ty }),*;
    ) => {
        /// An attribute of `context`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum AttributeName {
            $($own,)*
            $($name,)*
        }

        static ATTRIBUTES: &[AttributeEntry] = &[
            $(AttributeEntry::of::<$act>(AttributeName::$own),)*
            $(AttributeEntry::of::<$kind>(AttributeName::$name),)*
        ];

        /// What the caller has gathered for a decision. What is `None` is not there for any rule.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Context {
            pub body: Body,
            /// Of the body as it came, where it is held and limits are read.
            pub body_sha256: Option<[u8; 32]>,
            /// What services have answered. A rule that needs an answer which is not here refuses.
            pub lookups: Vec<(Arc<Lookup>, LookupAnswer)>,
            $(pub $field: Option<$kind>,)*
        }

        impl Context {
            /// The surroundings that a question assumes.
            ///
            /// # Errors
            /// What in the question cannot be.
            pub(crate) fn assumed(
                asked: &AskedContext,
                calendar: Option<&Calendar>,
            ) -> Result<Self, String> {
                Ok(Self {
                    $($field: <$kind>::assumed(&asked.$field, calendar)?,)*
                    ..Self::default()
                })
            }

            /// The surroundings that count whatever rules read, as a record tells them.
            ///
            /// # Errors
            /// What the record does not tell.
            pub(crate) fn recall(record: &RecordedAct<'_>) -> Result<Self, ReplayGap> {
                let mut context = Self::default();
                $(if <$kind>::ALWAYS {
                    context.$field = <$kind>::recall(record, None)?;
                })*
                Ok(context)
            }

            /// The surroundings that rules `read`, as a record tells them.
            ///
            /// # Errors
            /// What the record does not tell.
            pub(crate) fn recall_read(
                &mut self,
                record: &RecordedAct<'_>,
                calendar: Option<&Calendar>,
                read: impl Fn(AttributeName) -> bool,
            ) -> Result<(), ReplayGap> {
                $(if !<$kind>::ALWAYS && read(AttributeName::$name) {
                    self.$field = <$kind>::recall(record, calendar)?;
                })*
                Ok(())
            }

            /// Adds what a record has of the surroundings that rules `read`.
            pub(crate) fn facts(
                &self,
                read: impl Fn(AttributeName) -> bool,
                facts: &mut BTreeMap<String, String>,
            ) {
                $(if let Some(value) = &self.$field
                    && (<$kind>::ALWAYS || read(AttributeName::$name))
                {
                    value.facts(facts);
                })*
            }
        }

        /// The surroundings as a question has them. What it does not say is taken to be nothing special: no time, no
        /// trusted network, no task.
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct AskedContext {
            $(#[serde(flatten)] pub $field: $asked,)*
        }

        impl AskedContext {
            /// What a case says; `None`: something that cannot be used, which has been reported.
            pub(crate) fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<Self> {
                $(let $field = <$kind>::case(table, report);)*
                Some(Self { $($field: $field?,)* })
            }
        }

        /// Compares what a case says with the rest of its bundle. `texts`: what it says, by its keys.
        pub(crate) fn check_case(
            asked: &AskedContext,
            texts: &CaseTexts,
            bundle: &ParsedBundle,
            report: &mut Report<'_>,
        ) {
            $(for (key, _) in <$kind>::KEYS {
                let texts = texts.get(key).map_or(&[][..], Vec::as_slice);
                <$kind>::check(&asked.$field, texts, bundle, report);
            })*
        }

        #[cfg(test)]
        mod each {
            use super::*;

            $(#[test]
            fn $field() {
                tests::agrees::<$kind>(AttributeName::$name, |context, value| {
                    context.$field = value;
                });
            })*
        }
    };
}

attributes! {
    act:
        Scheme = SchemeAttribute,
        Path = PathAttribute,
        Segments = SegmentsAttribute,
        Routes = RoutesAttribute,
        Query = QueryAttribute,
        Headers = HeadersAttribute,
        Body = BodyAttribute,
        Lookup = LookupAttribute,
        Scope = ScopeAttribute;
    surroundings:
        Approvals { approvals: Approvals = AskedApprovals },
        Limits { limits: ExhaustedLimits = AskedLimits },
        Time { time: Moment = AskedTime },
        Network { network: NetworkTrust = AskedNetwork },
        Host { host: HostLabels = AskedHost },
        Agent { agent: AgentSituation = AskedAgent },
        Task { tasks: TaskSituation = AskedTasks };
}

/// Texts of a case by its keys, with their places.
pub(crate) type CaseTexts = BTreeMap<&'static str, Vec<Located<String>>>;

/// What the book says of every attribute.
pub fn attributes() -> impl Iterator<Item = AttributeDoc> {
    ATTRIBUTES.iter().map(|entry| entry.doc)
}

/// Keys by which cases give attributes.
pub(crate) fn case_keys() -> impl Iterator<Item = &'static str> {
    attributes().flat_map(|doc| doc.keys.iter().map(|(key, _)| *key))
}

/// The attributes' types in the schema: those of passed connections, or else of requests to the hosts of `shape`.
pub(crate) fn schema(connect: bool, shape: &schema::Shape) -> String {
    entries(connect)
        .map(|entry| format!("{}: {}", entry.doc.name, (entry.schema)(shape)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Cedar's context; of the attributes those that `read` tells.
pub(crate) fn cedar(
    facts: &ActFacts<'_>,
    read: impl Fn(AttributeName) -> bool,
) -> cedar_policy::Context {
    let read = || entries(facts.path.is_none()).filter(|entry| read(entry.name));
    let pairs = read().map(|entry| (entry.doc.name.to_owned(), (entry.cedar)(facts)));
    let as_written = facts.as_written();
    let written = as_written.iter().flat_map(|facts| {
        let of_paths = read().filter(|entry| entry.name.is_of_paths());
        of_paths.map(move |entry| {
            let name = format!("{}{WRITTEN}", entry.doc.name);
            (name, (entry.cedar)(facts))
        })
    });
    cedar_policy::Context::from_pairs(pairs.chain(written))
        .expect("the names are different and the values are plain")
}

fn entries(connect: bool) -> impl Iterator<Item = &'static AttributeEntry> {
    ATTRIBUTES
        .iter()
        .filter(move |entry| !connect || entry.doc.connect)
}

impl AttributeName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut entries = ATTRIBUTES.iter();
        let entry = entries.find(|entry| entry.doc.name == name)?;
        Some(entry.name)
    }

    /// Whether it follows from the path alone.
    fn is_of_paths(self) -> bool {
        matches!(
            self,
            Self::Path | Self::Segments | Self::Routes | Self::Scope
        )
    }

    fn entry(self) -> &'static AttributeEntry {
        // The list has them in the order of their declaration, which a test holds it to.
        &ATTRIBUTES[self as usize]
    }

    /// Why a record that does not tell it cannot be replayed.
    pub(crate) fn missing(self) -> &'static str {
        self.entry().missing
    }
}

/// Some of the attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttributeSet(u32);

const _: () = assert!(
    ATTRIBUTES.len() <= 32,
    "each attribute has a bit of an `AttributeSet`"
);

impl AttributeSet {
    pub(crate) fn insert(&mut self, name: AttributeName) {
        self.0 |= 1 << name as u32;
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn has(self, name: AttributeName) -> bool {
        self.0 & 1 << name as u32 != 0
    }
}

impl Context {
    /// Whether some task that counts narrows what is done by its scope.
    pub(crate) fn narrows_by_scope(&self) -> bool {
        self.tasks
            .as_ref()
            .is_some_and(TaskSituation::narrow_by_scope)
    }

    /// Roles of the people who have approved it.
    pub(crate) fn approved_by(&self) -> &BTreeSet<String> {
        let approvals = self.approvals.as_ref();
        approvals.map_or(&NONE, |approvals| &approvals.roles)
    }

    /// Whether the limit has no room. Whatever is not known to have none is taken to have some, until it is charged.
    pub(crate) fn is_exhausted(&self, limit: &str) -> bool {
        let limits = self.limits.as_ref();
        limits.is_some_and(|limits| limits.ids.contains(limit))
    }
}

static NONE: BTreeSet<String> = BTreeSet::new();

/// What rules read of one reading of an act.
#[derive(Clone)]
pub(crate) struct ActFacts<'a> {
    pub action: &'a str,
    pub scheme: &'a str,
    /// `None`: a connection whose bytes are passed.
    pub path: Option<&'a str>,
    /// Of a lenient server's reading: what is written.
    pub written: Option<WrittenPath<'a>>,
    /// Whose routes the path is compared with.
    pub slice: &'a Slice,
    pub body: &'a BTreeMap<String, Value>,
    pub lookup: &'a BTreeMap<String, Value>,
    pub scope: BTreeSet<&'static str>,
    /// Roles of those who have approved it, and of those who are tried.
    pub approvals: &'a BTreeSet<String>,
    /// Ids of the limits that have room.
    pub limits: &'a BTreeSet<String>,
    /// The rest of the surroundings.
    pub context: &'a Context,
}

/// A path as it is written, and what it does.
#[derive(Clone, Copy)]
pub(crate) struct WrittenPath<'a> {
    pub path: &'a str,
    pub scope: &'a BTreeSet<&'static str>,
}

impl<'a> ActFacts<'a> {
    /// The routes that the path is compared with.
    pub(crate) fn routes(&self) -> &'a RouteTable<()> {
        match (&self.written, &self.slice.lenient) {
            (Some(_), Some(lenient)) => &lenient.routes,
            (None, _) | (_, None) => &self.slice.routes,
        }
    }

    fn as_written(&self) -> Option<Self> {
        let written = self.written?;
        Some(Self {
            path: Some(written.path),
            scope: written.scope.clone(),
            written: None,
            ..self.clone()
        })
    }
}
