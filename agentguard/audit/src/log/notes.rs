//! What the log says about itself, in records of its own.

use std::time::Duration;

use agentguard_record::{Operation, Operator, Outcome, Record};

use super::{Log, LogError};
use crate::segment::Torn;

impl Log {
    pub(super) fn note_torn(&mut self, torn: &Torn) -> Result<(), LogError> {
        let (segment, kept) = (torn.segment.display().to_string(), torn.kept.display());
        let detail = format!("{} bytes of a torn record set aside in {kept}", torn.bytes);
        tracing::warn!(segment, detail, "the audit log was not closed cleanly");
        self.append(Record::Operator(&recovered(&segment, &detail)))?;
        Ok(())
    }

    pub(super) fn note_outage(&mut self, lasted: Duration) -> Result<(), LogError> {
        let lost = std::mem::take(&mut self.lost);
        let detail = format!(
            "not writable for {} ms, {lost} records lost",
            lasted.as_millis()
        );
        tracing::warn!(detail, "the audit log can be written again");
        let path = self.path.display().to_string();
        self.append(Record::Operator(&recovered(&path, &detail)))?;
        Ok(())
    }
}

fn recovered<'a>(resource: &'a str, detail: &'a str) -> Operator<'a> {
    Operator {
        uid: nix::unistd::geteuid().as_raw(),
        user: None,
        operation: Operation::AuditRecover,
        agent: None,
        resource,
        outcome: Outcome::Allow,
        detail,
        bundle: None,
    }
}
