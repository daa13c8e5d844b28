//! Audit records as an operator reads them.

use std::fmt;

use serde_json::Value;

/// One record of `audit search --json`.
#[derive(Clone)]
pub struct Record(pub Value);

impl Record {
    /// Every record of a JSON array.
    pub fn all(array: &Value) -> Vec<Self> {
        let records = array.as_array().expect("an array of records");
        records.iter().cloned().map(Self).collect()
    }

    /// A string at `pointer` (JSON Pointer); empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub fn number(&self, pointer: &str) -> u64 {
        self.0
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number at {pointer}: {self:?}"))
    }

    /// How many acts it stands for.
    pub fn count(&self) -> u64 {
        self.0
            .pointer("/count")
            .and_then(Value::as_u64)
            .unwrap_or(1)
    }

    pub fn agent(&self) -> &str {
        self.text("/agent")
    }

    pub fn action(&self) -> &str {
        self.text("/action")
    }

    pub fn resource(&self) -> &str {
        self.text("/resource")
    }

    pub fn outcome(&self) -> &str {
        self.text("/outcome")
    }

    pub fn reason(&self) -> &str {
        self.text("/reason")
    }

    pub fn path(&self) -> &str {
        self.text("/request/path")
    }

    /// Whether it is about an HTTP request, and not about a connection or a look-up.
    pub fn is_request(&self) -> bool {
        self.0.pointer("/request").is_some_and(Value::is_object) && !self.path().is_empty()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}
