//! Which decisions the end of the log has.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use serde::Deserialize;
use uuid::Uuid;

use super::read::Backwards;

#[derive(Deserialize)]
struct Decided {
    seq: u64,
    decision: Uuid,
}

/// The ids of all records after the one with this `seq`.
pub fn decisions_after(dir: &Path, seq: u64) -> io::Result<HashSet<Uuid>> {
    let mut decisions = HashSet::new();
    for line in Backwards::new(dir)? {
        let (_, line) = line?;
        // What is no record is `verify`'s to judge.
        let Ok(decided) = serde_json::from_slice::<Decided>(&line) else {
            continue;
        };
        if decided.seq <= seq {
            break;
        }
        decisions.insert(decided.decision);
    }
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::filled;
    use super::*;

    #[test]
    fn the_end_of_the_log_is_read_up_to_the_record() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 50, 2_000);
        for (seq, count) in [(0, 50), (49, 1), (50, 0), (20, 30)] {
            assert_eq!(decisions_after(dir.path(), seq).unwrap().len(), count);
        }
    }
}
