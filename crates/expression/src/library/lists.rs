//! Functions of lists and sets.

use std::cmp::Ordering;

use crate::value::{Error, List, Value, fail, no_overload};

/// The most elements `lists.range` makes.
const RANGE_MAX: i64 = 1 << 20;

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    if function == "lists.range" {
        return Some(match args {
            [Value::Int(n)] if *n > RANGE_MAX => fail(format!("lists.range: {n} is more than {RANGE_MAX}")),
            [Value::Int(n)] => Ok(Value::list((0..*n).map(Value::Int).collect())),
            _ => no_overload(),
        });
    }
    let Value::List(list) = args.first()? else { return None };
    Some(match (function, args) {
        ("isSorted", [_]) => is_sorted(list),
        ("sum", [_]) => sum(list),
        ("min", [_]) => extreme(list, "min", Ordering::Greater),
        ("max", [_]) => extreme(list, "max", Ordering::Less),
        ("indexOf", [_, wanted]) => {
            Ok(Value::Int(list.iter().position(|v| v.equals(wanted)).map_or(-1, |i| i as i64)))
        }
        ("lastIndexOf", [_, wanted]) => {
            let found = (0..list.len()).rev().find(|i| list.get(*i).is_some_and(|v| v.equals(wanted)));
            Ok(Value::Int(found.map_or(-1, |i| i as i64)))
        }
        ("first", [_]) => Ok(Value::Optional(list.get(0).map(Into::into))),
        ("last", [_]) => {
            Ok(Value::Optional(list.len().checked_sub(1).and_then(|i| list.get(i)).map(Into::into)))
        }
        ("slice", [_, Value::Int(from), Value::Int(to)]) => slice(list, *from, *to),
        ("flatten", [_]) => flatten(list, 1).map(Value::list),
        ("flatten", [_, Value::Int(depth)]) => flatten(list, *depth).map(Value::list),
        ("sort", [_]) => sort(list, list),
        ("@sortByAssociatedKeys", [_, Value::List(keys)]) => sort(list, keys),
        ("reverse", [_]) => {
            let mut values: Vec<Value<'a>> = list.iter().collect();
            values.reverse();
            Ok(Value::list(values))
        }
        ("distinct", [_]) => {
            let mut out: Vec<Value<'a>> = Vec::new();
            for value in list.iter() {
                if !out.iter().any(|v| v.equals(&value)) {
                    out.push(value);
                }
            }
            Ok(Value::list(out))
        }
        ("sets.contains", [_, Value::List(other)]) => Ok(Value::Bool(contains(list, other))),
        ("sets.equivalent", [_, Value::List(other)]) => {
            Ok(Value::Bool(contains(list, other) && contains(other, list)))
        }
        ("sets.intersects", [_, Value::List(other)]) => {
            Ok(Value::Bool(other.iter().any(|v| list.iter().any(|w| w.equals(&v)))))
        }
        _ => return None,
    })
}

pub fn unwrap<'a>(list: &Value<'a>) -> Result<Value<'a>, Error> {
    let Value::List(list) = list else { return no_overload() };
    let mut out = Vec::new();
    for value in list.iter() {
        match value {
            Value::Optional(Some(inner)) => out.push((*inner).clone()),
            Value::Optional(None) => {}
            other => return fail(format!("value {} is not optional", super::shown(&other))),
        }
    }
    Ok(Value::list(out))
}

fn contains(list: &List<'_>, other: &List<'_>) -> bool {
    other.iter().all(|v| list.iter().any(|w| w.equals(&v)))
}

fn is_sorted<'a>(list: &List<'a>) -> Result<Value<'a>, Error> {
    let mut previous: Option<Value<'a>> = None;
    for value in list.iter() {
        if let Some(previous) = &previous
            && previous.compare(&value)? == Some(Ordering::Greater)
        {
            return Ok(Value::Bool(false));
        }
        previous = Some(value);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(list: &List<'a>) -> Result<Value<'a>, Error> {
    let mut values = list.iter();
    let Some(first) = values.next() else { return Ok(Value::Int(0)) };
    values.try_fold(first, |sum, value| super::numbers::arithmetic("_+_", &sum, &value))
}

fn extreme<'a>(list: &List<'a>, name: &str, worse: Ordering) -> Result<Value<'a>, Error> {
    let mut best: Option<Value<'a>> = None;
    for value in list.iter() {
        match &best {
            Some(known) if known.compare(&value)? != Some(worse) => {}
            _ => best = Some(value),
        }
    }
    best.map_or_else(|| fail(format!("{name} called on empty list")), Ok)
}

fn slice<'a>(list: &List<'a>, from: i64, to: i64) -> Result<Value<'a>, Error> {
    let length = list.len();
    if from < 0 || to < 0 {
        return fail(format!("cannot slice({from}, {to}), negative indexes not supported"));
    }
    if from > to {
        return fail(format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        ));
    }
    if (length as i64) < to {
        return fail(format!("cannot slice({from}, {to}), list is length {length}"));
    }
    Ok(Value::list((from as usize..to as usize).filter_map(|i| list.get(i)).collect()))
}

fn flatten<'a>(list: &List<'a>, depth: i64) -> Result<Vec<Value<'a>>, Error> {
    if depth < 0 {
        return fail("level must be non-negative");
    }
    let mut out = Vec::new();
    for value in list.iter() {
        match value {
            Value::List(inner) if depth > 0 => out.extend(flatten(&inner, depth - 1)?),
            other => out.push(other),
        }
    }
    Ok(out)
}

fn sort<'a>(list: &List<'a>, keys: &List<'a>) -> Result<Value<'a>, Error> {
    if list.len() != keys.len() {
        return fail(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively",
            list.len(),
            keys.len()
        ));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.iter().zip(list.iter()).collect();
    if let Some((first, _)) = pairs.first() {
        let kind = first.ty();
        if pairs.iter().any(|(k, _)| k.compare(first).is_err() || !k.ty().same(&kind)) {
            return fail("list elements must have the same type");
        }
    }
    pairs.sort_by(|a, b| a.0.compare(&b.0).ok().flatten().unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, v)| v).collect()))
}
