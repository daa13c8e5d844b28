//! `application/x-www-form-urlencoded` bodies, strictly: a declared field has one value and one name.

use std::collections::{BTreeMap, BTreeSet};

use super::{BodyFault, BodyField, METHOD_FIELD, Value, folded, from_text};
use crate::facts::{decode_form, php_name};
use crate::host::show;
use crate::reading::is_method_parameter;

pub(super) fn read(
    text: &str,
    fields: &BTreeMap<String, BodyField>,
) -> Result<BTreeMap<String, Value>, BodyFault> {
    if text.contains(';') {
        return Err(BodyFault::ambiguous(
            "the form has `;`, at which some servers split it",
        ));
    }
    let mut found = FormFields::new(fields);
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_form(name).map_err(form_fault)?;
        found.note_method(&name, || {
            decode_form(value).unwrap_or_else(|_| value.to_owned())
        });
        if found.wants(&name)? {
            found.add(&name, &decode_form(value).map_err(form_fault)?)?;
        }
    }
    Ok(found.values)
}

fn form_fault(why: &'static str) -> BodyFault {
    BodyFault::unreadable(format!("the form {why}"))
}

/// The declared fields of a form, as they are found.
pub(super) struct FormFields<'f> {
    fields: &'f BTreeMap<String, BodyField>,
    pub values: BTreeMap<String, Value>,
}

impl<'f> FormFields<'f> {
    pub(super) fn new(fields: &'f BTreeMap<String, BodyField>) -> Self {
        Self {
            fields,
            values: BTreeMap::new(),
        }
    }

    /// Whether some field is declared under the name, as it stands there.
    pub(super) fn wants(&self, name: &str) -> Result<bool, BodyFault> {
        if name.contains('\0') {
            return Err(BodyFault::ambiguous("the form has a name with a NUL"));
        }
        let mut declared = self.fields.values().flat_map(|field| &field.at);
        if declared.clone().any(|known| known == name) {
            return Ok(true);
        }
        // `amount[]`, `amount.x`, ` amount` and `Amount` are all `amount` to some server, and `a.b` is `a_b`.
        let base = folded(name.trim().split(['[', '.']).next().unwrap_or_default());
        let php = folded(&php_name(name));
        match declared.find(|known| folded(known) == base || folded(&php_name(known)) == php) {
            Some(known) => Err(BodyFault::ambiguous(format!(
                "the form's field `{}` can also be read as `{known}`",
                show(name)
            ))),
            None => Ok(false),
        }
    }

    /// Keeps the method that frameworks take from a form.
    pub(super) fn note_method(&mut self, name: &str, text: impl FnOnce() -> String) {
        if !is_method_parameter(name) {
            return;
        }
        let noted = self.values.entry(METHOD_FIELD.to_owned());
        match noted.or_insert_with(|| Value::Strings(BTreeSet::new())) {
            Value::Strings(methods) => drop(methods.insert(text())),
            Value::String(_) | Value::Decimal(_) | Value::Long(_) | Value::Bool(_) => {}
        }
    }

    pub(super) fn add(&mut self, name: &str, text: &str) -> Result<(), BodyFault> {
        for (field, declared) in self.fields {
            if declared.at.iter().all(|known| known != name) {
                continue;
            }
            let value = from_text(field, declared.kind, text)?;
            match (self.values.get_mut(field), value) {
                (Some(Value::Strings(there)), Value::Strings(more)) => there.extend(more),
                (Some(_), _) => {
                    return Err(BodyFault::ambiguous(format!(
                        "the form has the field `{}` more than once",
                        show(name)
                    )));
                }
                (None, value) => drop(self.values.insert(field.clone(), value)),
            }
        }
        Ok(())
    }
}
