//! What a bundle requires, against what this host gives.

use super::{Guarantee, GuaranteeId, Holds};

/// Checks that each of `required` is given, by fallback at least, or is in `accept_gaps`. Answers the gaps that are accepted: they are in
/// the audit log whenever they count.
///
/// # Errors
/// One line that names each gap, why it is open and what closes it.
pub fn require(
    required: &[GuaranteeId],
    accept_gaps: &[GuaranteeId],
    given: &[Guarantee],
) -> Result<Vec<GuaranteeId>, String> {
    let row = |id: &GuaranteeId| given.iter().find(|row| row.id == *id);
    let (accepted, refused): (Vec<GuaranteeId>, Vec<GuaranteeId>) = required
        .iter()
        .filter(|id| row(id).is_none_or(|row| row.holds == Holds::Open))
        .partition(|id| accept_gaps.contains(id));
    if refused.is_empty() {
        return Ok(accepted);
    }
    let gaps: Vec<String> = refused
        .iter()
        .filter_map(row)
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

#[cfg(test)]
mod tests {
    use super::GuaranteeId::{Exec, IoUring, Tamper, Tcp};
    use super::*;

    fn given() -> Vec<Guarantee> {
        [
            (Tcp, Holds::Enforced),
            (IoUring, Holds::Fallback),
            (Tamper, Holds::Open),
            (Exec, Holds::Open),
        ]
        .map(|(id, holds)| Guarantee {
            id,
            name: id.to_string(),
            holds,
            why: format!("{id} is so"),
            remedy: (id == Tamper).then(|| "a better kernel".into()),
        })
        .to_vec()
    }

    #[test]
    fn a_fallback_is_enough_and_a_gap_is_not() {
        assert_eq!(require(&[Tcp, IoUring], &[], &given()), Ok(vec![]));
        let refused = require(&[Tamper, Exec], &[Exec], &given()).unwrap_err();
        assert!(
            refused.contains("`tamper` (tamper is so; remedy: a better kernel)"),
            "{refused}"
        );
        assert!(!refused.contains("`exec`"), "{refused}");
        let accepted = require(&[Tcp, Exec], &[Exec, Tcp], &given());
        assert_eq!(accepted, Ok(vec![Exec]));
    }
}
