//! Functions that Kubernetes adds to CEL.

use std::sync::Arc;

use apimachinery::quantity::Quantity;
use cel::extractors::This;
use cel::{Context, Env, ExecutionError, Value};

/// Names declared by [`add`]; member functions are not checked when an expression is compiled.
const NAMES: [&str; 4] = ["isQuantity", "quantity", "jsonpatch.escapeKey", "size"];

fn failed(function: &str, message: impl std::fmt::Display) -> ExecutionError {
    ExecutionError::FunctionError { function: function.to_owned(), message: message.to_string() }
}

/// Whether a global function exists; operators always do.
pub(super) fn exists(env: &Env, name: &str) -> bool {
    let operator =
        name.starts_with('_') || name.starts_with('@') || name.starts_with('!') || name.starts_with('-');
    operator || NAMES.contains(&name) || has_overload(env, name)
}

/// The environment tells only whether an overload takes given arguments; a look at its compiled list tells the name.
fn has_overload(env: &Env, name: &str) -> bool {
    // Adding a function that the environment has is refused with a conflict, which is the question asked here.
    let _ = env;
    let mut probe = Context::with_env(super::ENVIRONMENT.clone());
    probe.add_function(name, || Value::Null).is_err()
}

/// A quantity is carried as its text; its functions parse it.
fn quantity(text: &Value, function: &str) -> Result<Quantity, ExecutionError> {
    match text {
        Value::String(s) => Quantity::parse(s).map_err(|e| failed(function, e)),
        Value::Int(i) => Quantity::parse(&i.to_string()).map_err(|e| failed(function, e)),
        other => Err(failed(function, format!("{} is not a quantity", other.type_of()))),
    }
}

fn compare(this: &Value, other: &Value, function: &str) -> Result<std::cmp::Ordering, ExecutionError> {
    Ok(quantity(this, function)?.cmp(&quantity(other, function)?))
}

pub(super) fn add(context: &mut Context<'_, '_>) {
    let results = [
        context.add_function("isQuantity", |text: Arc<String>| Quantity::parse(&text).is_ok()),
        context.add_function("quantity", |text: Arc<String>| -> Result<Value, ExecutionError> {
            Quantity::parse(&text).map_err(|e| failed("quantity", e))?;
            Ok(Value::String(text))
        }),
        context.add_function("isGreaterThan", |This(this): This<Value>, other: Value| {
            compare(&this, &other, "isGreaterThan").map(|o| Value::Bool(o.is_gt()))
        }),
        context.add_function("isLessThan", |This(this): This<Value>, other: Value| {
            compare(&this, &other, "isLessThan").map(|o| Value::Bool(o.is_lt()))
        }),
        context.add_function("compareTo", |This(this): This<Value>, other: Value| {
            compare(&this, &other, "compareTo").map(|o| Value::Int(o as i64))
        }),
        context.add_function("asInteger", |This(this): This<Value>| {
            quantity(&this, "asInteger")?
                .as_i64()
                .map(Value::Int)
                .ok_or_else(|| failed("asInteger", "cannot convert value to integer"))
        }),
        context.add_function("isInteger", |This(this): This<Value>| {
            Ok::<_, ExecutionError>(Value::Bool(quantity(&this, "isInteger")?.as_i64().is_some()))
        }),
        context.add_function("asApproximateFloat", |This(this): This<Value>| {
            Ok::<_, ExecutionError>(Value::Float(quantity(&this, "asApproximateFloat")?.as_f64()))
        }),
        context.add_function("find", |This(this): This<Arc<String>>, pattern: Arc<String>| {
            let regex = regex::Regex::new(&pattern).map_err(|e| failed("find", e))?;
            let found = regex.find(&this).map(|m| m.as_str().to_owned()).unwrap_or_default();
            Ok::<_, ExecutionError>(Value::from(found))
        }),
        context.add_function("findAll", |This(this): This<Arc<String>>, pattern: Arc<String>| {
            let regex = regex::Regex::new(&pattern).map_err(|e| failed("findAll", e))?;
            let found: Vec<Value> = regex.find_iter(&this).map(|m| Value::from(m.as_str())).collect();
            Ok::<_, ExecutionError>(Value::List(Arc::new(found)))
        }),
        context.add_function("jsonpatch.escapeKey", |key: Arc<String>| {
            Value::from(key.replace('~', "~0").replace('/', "~1"))
        }),
        context.add_function("escapeKey", |This(_): This<Value>, key: Arc<String>| {
            Value::from(key.replace('~', "~0").replace('/', "~1"))
        }),
    ];
    for result in results {
        debug_assert!(result.is_ok(), "{result:?}");
    }
}
