//! CEL expressions, as admission policies, match conditions and custom resource rules use them.
//!
//! An expression is compiled once for the variables it may use and evaluated against JSON. Objects that an expression
//! makes (`Object.spec{…}`, `JSONPatch{…}`) are plain maps here: their fields are checked where they are used.

mod functions;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, MapEntryExpr, MapExpr};
use cel::objects::{Key, Map};
use cel::{Context, Env, extensions};
use serde_json::Value;

/// Longer expressions are refused; upstream's cost limit makes them useless anyway.
const SOURCE_BYTES_MAX: usize = 64 << 10;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    for (name, added) in [
        ("strings", env.add_extension(extensions::strings).map(|_| ())),
        ("lists", env.add_extension(extensions::lists).map(|_| ())),
        ("math", env.add_extension(extensions::math).map(|_| ())),
        ("encoders", env.add_extension(extensions::encoders).map(|_| ())),
    ] {
        if let Err(error) = added {
            tracing::error!(name, %error, "a CEL library is not available");
        }
    }
    Arc::new(env)
});

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Program {
    expression: Arc<IdedExpr>,
}

/// Values an expression may refer to, by name.
#[derive(Clone, Default)]
pub struct Variables(HashMap<String, cel::Value>);

impl Variables {
    pub fn set(&mut self, name: &str, value: &Value) {
        self.0.insert(name.to_owned(), from_json(value));
    }

    /// Sets a map of values that are CEL values already, such as results of other expressions.
    pub fn set_map(&mut self, name: &str, values: &HashMap<String, cel::Value>) {
        let map = values.iter().map(|(k, v)| (Key::from(k.clone()), v.clone())).collect();
        self.0.insert(name.to_owned(), cel::Value::Map(Map { map: Arc::new(map) }));
    }
}

impl Program {
    /// Compiles an expression that may use `variables`. The error is what follows "compilation failed: ".
    pub fn compile(source: &str, variables: &[&str]) -> Result<Program, String> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(format!("ERROR: <input>:1:1: expression longer than {SOURCE_BYTES_MAX} bytes"));
        }
        let program =
            ENVIRONMENT.compile(source).map_err(|e| format!("ERROR: <input>: Syntax error: {e}"))?;
        let mut expression = program.expression().clone();
        structs_to_maps(&mut expression);
        let mut scope: Vec<String> = variables.iter().map(|v| (*v).to_owned()).collect();
        undeclared(&expression, &mut scope)?;
        Ok(Program { expression: Arc::new(expression) })
    }

    pub fn evaluate(&self, variables: &Variables) -> Result<cel::Value, String> {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        functions::add(&mut context);
        for (name, value) in &variables.0 {
            context.add_variable_from_value(name.clone(), value.clone());
        }
        cel::Value::resolve(&self.expression, &context).map_err(|e| message(&e))
    }

    pub fn evaluate_bool(&self, variables: &Variables) -> Result<bool, String> {
        match self.evaluate(variables)? {
            cel::Value::Bool(b) => Ok(b),
            other => Err(format!("the result is {}, not a bool", other.type_of())),
        }
    }

    pub fn evaluate_string(&self, variables: &Variables) -> Result<String, String> {
        match self.evaluate(variables)? {
            cel::Value::String(s) => Ok(s.to_string()),
            other => Err(format!("the result is {}, not a string", other.type_of())),
        }
    }
}

/// The error in the words of upstream's interpreter where they differ.
fn message(error: &cel::ExecutionError) -> String {
    match error {
        cel::ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        cel::ExecutionError::NoSuchOverload(_) => "no such overload".to_owned(),
        other => other.to_string(),
    }
}

pub fn from_json(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(i) => cel::Value::Int(i),
            None => n
                .as_u64()
                .map(cel::Value::UInt)
                .unwrap_or_else(|| cel::Value::Float(n.as_f64().unwrap_or(0.0))),
        },
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(from_json).collect())),
        Value::Object(members) => {
            // A null member is an unset field; CEL must not see it as present.
            let map = members.iter().filter(|(_, v)| !v.is_null());
            let map = map.map(|(k, v)| (Key::from(k.clone()), from_json(v))).collect();
            cel::Value::Map(Map { map: Arc::new(map) })
        }
    }
}

pub fn to_json(value: &cel::Value) -> Result<Value, String> {
    value.json().map_err(|e| e.to_string())
}

fn children(expr: &mut Expr) -> Vec<&mut IdedExpr> {
    match expr {
        Expr::Call(call) => call.target.iter_mut().map(|t| &mut **t).chain(call.args.iter_mut()).collect(),
        Expr::Comprehension(c) => {
            vec![&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
        }
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Map(map) => map.entries.iter_mut().flat_map(entry_children).collect(),
        Expr::Struct(object) => object.entries.iter_mut().flat_map(entry_children).collect(),
        Expr::Select(select) => vec![&mut select.operand],
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
    }
}

fn entry_children(entry: &mut IdedEntryExpr) -> Vec<&mut IdedExpr> {
    match &mut entry.expr {
        EntryExpr::StructField(field) => vec![&mut field.value],
        EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
    }
}

/// Object literals become maps from field names.
fn structs_to_maps(expression: &mut IdedExpr) {
    if let Expr::Struct(object) = &mut expression.expr {
        let entries = std::mem::take(&mut object.entries);
        let entries = entries.into_iter().map(|entry| match entry.expr {
            EntryExpr::StructField(field) => IdedEntryExpr {
                id: entry.id,
                expr: EntryExpr::MapEntry(MapEntryExpr {
                    key: IdedExpr {
                        id: entry.id,
                        expr: Expr::Literal(LiteralValue::String(field.field.into())),
                    },
                    value: field.value,
                    optional: field.optional,
                }),
            },
            EntryExpr::MapEntry(_) => entry,
        });
        expression.expr = Expr::Map(MapExpr { entries: entries.collect() });
    }
    children(&mut expression.expr).into_iter().for_each(structs_to_maps);
}

/// Names of types, which are values too.
const TYPES: [&str; 12] = [
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "uint",
];
/// Namespaces of functions (`math.greatest`, `optional.of`, …).
const NAMESPACES: [&str; 5] = ["math", "optional", "base64", "strings", "jsonpatch"];

fn undeclared(expression: &IdedExpr, scope: &mut Vec<String>) -> Result<(), String> {
    match &expression.expr {
        Expr::Ident(name) => {
            let known = scope.iter().any(|s| s == name)
                || TYPES.contains(&name.as_str())
                || NAMESPACES.contains(&name.as_str())
                || name.starts_with('@')
                || name.starts_with("__");
            if known {
                return Ok(());
            }
            Err(format!("ERROR: <input>: undeclared reference to '{name}' (in container '')"))
        }
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                undeclared(target, scope)?;
            } else if !functions::exists(&ENVIRONMENT, &call.func_name) {
                return Err(format!(
                    "ERROR: <input>: undeclared reference to '{}' (in container '')",
                    call.func_name
                ));
            }
            call.args.iter().try_for_each(|a| undeclared(a, scope))
        }
        Expr::Comprehension(c) => {
            undeclared(&c.iter_range, scope)?;
            undeclared(&c.accu_init, scope)?;
            let before = scope.len();
            scope.push(c.iter_var.clone());
            scope.extend(c.iter_var2.clone());
            scope.push(c.accu_var.clone());
            let inner = [&c.loop_cond, &c.loop_step, &c.result];
            let result = inner.into_iter().try_for_each(|e| undeclared(e, scope));
            scope.truncate(before);
            result
        }
        Expr::List(list) => list.elements.iter().try_for_each(|e| undeclared(e, scope)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                undeclared(&entry.key, scope)?;
                undeclared(&entry.value, scope)
            }
            EntryExpr::StructField(field) => undeclared(&field.value, scope),
        }),
        Expr::Select(select) => undeclared(&select.operand, scope),
        Expr::Struct(_) | Expr::Unspecified | Expr::Literal(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(source: &str) -> Result<Value, String> {
        let mut variables = Variables::default();
        let object = json!({"metadata": {"name": "x", "labels": {"a": "b"}, "gone": null},
            "spec": {"replicas": 3, "ratio": 0.5, "list": ["a", "b"]}});
        variables.set("object", &object);
        variables.set("oldObject", &Value::Null);
        let program = Program::compile(source, &["object", "oldObject"])?;
        to_json(&program.evaluate(&variables)?)
    }

    #[test]
    fn evaluates() {
        for (source, want) in [
            ("object.spec.replicas > 1", json!(true)),
            ("object.spec.replicas % 2 == 1", json!(true)),
            ("object.metadata.name != 'skip-me'", json!(true)),
            ("'wants replicas > 1, got ' + string(object.spec.replicas)", json!("wants replicas > 1, got 3")),
            ("has(object.metadata.labels) && 'a' in object.metadata.labels", json!(true)),
            ("has(object.metadata.gone)", json!(false)),
            ("object.spec.list.all(x, x.startsWith('a') || x == 'b')", json!(true)),
            ("object.spec.list.exists(x, x == 'c')", json!(false)),
            ("object.spec.list.map(x, x + '!')", json!(["a!", "b!"])),
            ("oldObject == null", json!(true)),
            ("object.metadata.?annotations.orValue({})", json!({})),
            ("object.metadata.name.matches('^[a-z]+$')", json!(true)),
            ("Object{spec: Object.spec{replicas: 1337}}", json!({"spec": {"replicas": 1337}})),
            (
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]",
                json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}]),
            ),
            ("isQuantity('1Gi') && !isQuantity('x')", json!(true)),
            ("quantity('2Gi').isGreaterThan(quantity('1Gi'))", json!(true)),
        ] {
            assert_eq!(run(source), Ok(want), "{source}");
        }
    }

    #[test]
    fn refuses() {
        for (source, want) in [
            ("... [] bad expression", "Syntax error"),
            ("objekt.spec", "undeclared reference to 'objekt'"),
            ("unknownFunction(1)", "undeclared reference to 'unknownFunction'"),
            ("object.missing.field", "no such key: missing"),
            ("object.spec.replicas > '1'", "no such overload"),
        ] {
            let error = run(source).unwrap_err();
            assert!(error.contains(want), "{source}: {error}");
        }
    }
}
