//! A forbid as it holds of the forms in which lenient servers compare a path: what it says of the path is compared with
//! letters folded on both sides. Where it says for which paths it does not hold, the path counts as it is written.

use cedar_policy::{Policy, PolicyId};
use serde_json::{Map, Value, json};

use super::path::{fold, without_slash};
use crate::context::AttributeName;
use crate::reads::Reads;

/// What the attributes are called in Cedar's context that have a path as it is written: no rule can name them.
pub(crate) const WRITTEN: &str = " as written";

/// Attributes that follow from the path alone.
const OF_PATHS: [&str; 4] = ["path", "segments", "routes", "scope"];

#[derive(Clone, Debug)]
pub(crate) struct LenientForbid {
    pub policy: Policy,
    /// Something that it compares with changes when it is folded, so that a path which does not may still meet it.
    pub folds: bool,
}

impl LenientForbid {
    /// `None`: it holds of every path, or of none.
    pub(crate) fn of(policy: &Policy, reads: &Reads) -> Option<Self> {
        let by_path = [
            AttributeName::Path,
            AttributeName::Segments,
            AttributeName::Routes,
            AttributeName::Scope,
            AttributeName::Body,
            AttributeName::Lookup,
        ];
        if !by_path.into_iter().any(|attribute| reads.has(attribute)) {
            return None;
        }
        let mut json = policy.to_json().expect("a static policy has a JSON form");
        let mut folds = false;
        let conditions = json["conditions"].as_array_mut().into_iter().flatten();
        for condition in conditions {
            let holds = condition["kind"] == "when";
            relax(&mut condition["body"], holds, &mut folds);
        }
        let id = PolicyId::new(policy.id());
        let policy = Policy::from_json(Some(id), json);
        Some(Self {
            policy: policy.expect("only texts and names have changed"),
            folds,
        })
    }
}

/// `holds`: whether the forbid holds where the expression does.
fn relax(expression: &mut Value, holds: bool, folds: &mut bool) {
    let Some(object) = expression.as_object_mut() else {
        return;
    };
    let Some((operator, parts)) = object.iter_mut().next() else {
        return;
    };
    match operator.as_str() {
        "&&" | "||" => {
            for side in ["left", "right"] {
                relax(&mut parts[side], holds, folds);
            }
        }
        "!" => relax(&mut parts["arg"], !holds, folds),
        "if-then-else" => {
            for part in ["if", "then", "else"] {
                relax(&mut parts[part], holds, folds);
            }
        }
        "!=" => atom(expression, !holds, folds),
        _ => atom(expression, holds, folds),
    }
}

/// One test.
fn atom(expression: &mut Value, holds: bool, folds: &mut bool) {
    match holds {
        true => comparison(expression, folds),
        false => as_written(expression),
    }
}

/// Folds every text that the path, or a route, is compared with.
fn comparison(expression: &mut Value, folds: &mut bool) {
    let by_path = reads(expression, &["path", "routes"]);
    let operator = expression
        .as_object_mut()
        .and_then(|it| it.iter_mut().next());
    match operator {
        Some((operator, like)) if by_path && operator == "like" => {
            fold_pattern(&mut like["pattern"], folds);
        }
        Some((operator, sides))
            if by_path && ["==", "!=", "contains"].contains(&operator.as_str()) =>
        {
            for side in ["left", "right"] {
                match sides[side].get_mut("Set").and_then(Value::as_array_mut) {
                    Some(set) => set.iter_mut().for_each(|one| fold_text(one, folds)),
                    None => fold_text(&mut sides[side], folds),
                }
            }
        }
        _ => {}
    }
    children(expression).for_each(|child| comparison(child, folds));
}

/// Takes the attributes of the path as it is written.
fn as_written(expression: &mut Value) {
    if let Some(name) = attribute(expression) {
        if OF_PATHS.contains(&name) {
            let name = format!("{name}{WRITTEN}");
            expression["."]["attr"] = json!(name);
        }
        return;
    }
    children(expression).for_each(as_written);
}

fn fold_text(literal: &mut Value, folds: &mut bool) {
    let Some(raw) = literal.get("Value").and_then(Value::as_str) else {
        return;
    };
    let folded = without_slash(&fold(raw));
    if folded != raw {
        *folds = true;
        literal["Value"] = folded.into();
    }
}

fn fold_pattern(pattern: &mut Value, folds: &mut bool) {
    let raw = joined(pattern.as_array().map_or(&[][..], Vec::as_slice));
    let fold = |piece: &Value| match piece.get("Literal").and_then(Value::as_str) {
        Some(text) => json!({ "Literal": fold(text) }),
        None => piece.clone(),
    };
    let folded: Vec<Value> = raw.iter().map(fold).collect();
    *folds |= folded != raw;
    *pattern = folded.into();
}

/// A pattern with its characters joined to texts.
fn joined(pattern: &[Value]) -> Vec<Value> {
    let mut pieces: Vec<Value> = Vec::new();
    for piece in pattern {
        let text = piece.get("Literal").and_then(Value::as_str);
        let last = pieces.last_mut().and_then(|last| last.get_mut("Literal"));
        match (text, last) {
            (Some(text), Some(Value::String(before))) => before.push_str(text),
            _ => pieces.push(piece.clone()),
        }
    }
    pieces
}

/// The attribute of `context` that the expression is.
fn attribute(expression: &Value) -> Option<&str> {
    let of = expression.get(".")?;
    (of["left"]["Var"] == "context").then(|| of["attr"].as_str())?
}

fn reads(expression: &Value, names: &[&str]) -> bool {
    if let Some(name) = attribute(expression) {
        return names.contains(&name);
    }
    match expression {
        Value::Object(object) => object.values().any(|child| reads(child, names)),
        Value::Array(list) => list.iter().any(|child| reads(child, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn children(expression: &mut Value) -> Box<dyn Iterator<Item = &mut Value> + '_> {
    match expression {
        Value::Object(object) => Box::new(Map::values_mut(object)),
        Value::Array(list) => Box::new(list.iter_mut()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Box::new(std::iter::empty())
        }
    }
}
