//! What a bundle requires, against what this host gives.

use super::{Guarantee, Holds, IDS};

/// A bundle's requirements are met.
#[derive(Debug, PartialEq, Eq)]
pub struct Met {
    /// Required and not given, and the configuration accepts that: in the audit log whenever it counts.
    pub accepted: Vec<String>,
}

/// Whether all of `required` is given, by fallback at least, or is in `accept_gaps`.
///
/// # Errors
/// One line that names each gap, why it is open and what closes it.
pub fn require(
    required: &[String],
    accept_gaps: &[String],
    given: &[Guarantee],
) -> Result<Met, String> {
    let open = |id: &&String| {
        let row = given.iter().find(|row| row.id == **id);
        row.is_none_or(|row| row.holds == Holds::Open)
    };
    let (accepted, refused): (Vec<&String>, Vec<&String>) = required
        .iter()
        .filter(open)
        .partition(|id| accept_gaps.contains(id));
    if refused.is_empty() {
        let accepted = accepted.into_iter().cloned().collect();
        return Ok(Met { accepted });
    }
    let gaps: Vec<String> = refused
        .iter()
        .filter_map(|id| given.iter().find(|row| row.id == **id))
        .map(|row| match &row.remedy {
            Some(remedy) => format!("`{}` ({}; remedy: {remedy})", row.id, row.why),
            None => format!("`{}` ({})", row.id, row.why),
        })
        .collect();
    Err(format!(
        "the bundle requires what this host cannot give: {}; close the gap, or list it in `[policy] accept_gaps`",
        gaps.join(", ")
    ))
}

/// The guarantee that was probably meant.
pub fn nearest(word: &str) -> Option<&'static str> {
    IDS.iter()
        .map(|id| (strsim::damerau_levenshtein(word, id), *id))
        .filter(|(distance, id)| *distance <= 1 + id.len() / 4)
        .min()
        .map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Vec<Guarantee> {
        [
            ("tcp", Holds::Enforced),
            ("io-uring", Holds::Fallback),
            ("tamper", Holds::Open),
            ("exec", Holds::Open),
        ]
        .map(|(id, holds)| Guarantee {
            id: id.into(),
            name: id.into(),
            holds,
            why: format!("{id} is so"),
            remedy: (id == "tamper").then(|| "a better kernel".into()),
        })
        .to_vec()
    }

    #[test]
    fn a_fallback_is_enough_and_a_gap_is_not() {
        let ids = |ids: &[&str]| -> Vec<String> { ids.iter().map(|id| (*id).into()).collect() };
        let none = Met { accepted: vec![] };
        assert_eq!(require(&ids(&["tcp", "io-uring"]), &[], &given()), Ok(none));
        let refused = require(&ids(&["tamper", "exec"]), &ids(&["exec"]), &given()).unwrap_err();
        assert!(
            refused.contains("`tamper` (tamper is so; remedy: a better kernel)"),
            "{refused}"
        );
        assert!(!refused.contains("`exec`"), "{refused}");
        let accepted = require(&ids(&["tcp", "exec"]), &ids(&["exec", "tcp"]), &given());
        assert_eq!(
            accepted,
            Ok(Met {
                accepted: ids(&["exec"])
            })
        );
    }

    #[test]
    fn near_names_are_offered() {
        assert_eq!(nearest("tampr"), Some("tamper"));
        assert_eq!(nearest("unix-socket"), Some("unix-sockets"));
        assert_eq!(nearest("everything"), None);
    }
}
