//! Evaluation: a walk over the checked tree that counts what it costs.

use smallvec::SmallVec;

use crate::checker::Facts;
use crate::cost;
use crate::library;
use crate::syntax::{Comprehension, Expr, Field, Kind, Literal};
use crate::types::unescape;
use crate::value::{Error, List, Map, Text, Value, fail, no_overload};

/// Members that are computed when an expression asks for them, such as the variables of a policy.
pub trait Lazy<'a> {
    /// The member; `None` where there is none of that name.
    fn member(&self, name: &str) -> Option<Result<Value<'a>, Error>>;
}

/// What the names in an expression stand for.
#[derive(Clone, Default)]
pub struct Variables<'a> {
    values: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Variables<'a> {
    pub fn set(&mut self, name: &'a str, value: Value<'a>) {
        match self.values.iter_mut().find(|(n, _)| *n == name) {
            Some((_, there)) => *there = value,
            None => self.values.push((name, value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

pub(crate) struct Evaluation<'a, 'v> {
    facts: &'a Facts,
    variables: &'v Variables<'a>,
    /// A variable whose members are computed, by name.
    lazy: Option<(&'v str, &'v dyn Lazy<'a>)>,
    /// A local may be an error, which a later step of its loop can outvote.
    locals: Vec<(&'a str, Result<Value<'a>, Error>)>,
    pub cost: u64,
    limit: u64,
}

impl<'a, 'v> Evaluation<'a, 'v> {
    pub fn new(
        facts: &'a Facts,
        variables: &'v Variables<'a>,
        lazy: Option<(&'v str, &'v dyn Lazy<'a>)>,
        limit: u64,
    ) -> Self {
        Evaluation { facts, variables, lazy, locals: Vec::new(), cost: 0, limit }
    }

    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub fn eval(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal_value(literal)),
            Kind::Ident(name) => self.eval_ident(expr, name),
            Kind::Select { operand, field, test } => self.eval_select(operand, field, *test),
            Kind::Call { function, target, args } => self.eval_call(expr, function, target.as_deref(), args),
            Kind::List { elements, optional } => self.eval_list(elements, optional),
            Kind::Map(entries) => {
                let mut out: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(entries.len());
                for entry in entries {
                    let key = self.eval(&entry.key)?;
                    if !matches!(
                        key,
                        Value::String(_) | Value::Int(_) | Value::Uint(_) | Value::Bool(_) | Value::Double(_)
                    ) {
                        return fail(format!("unsupported key type: {}", key.ty()));
                    }
                    let value = self.eval(&entry.value)?;
                    let value = if entry.optional {
                        match value {
                            Value::Optional(Some(inner)) => (*inner).clone(),
                            Value::Optional(None) => continue,
                            _ => return no_overload(),
                        }
                    } else {
                        value
                    };
                    if out.iter().any(|(k, _)| k.equals(&key)) {
                        return fail(format!("Failed with repeated key {}", library::shown(&key)));
                    }
                    out.push((key, value));
                }
                let constant = entries.iter().all(|e| is_literal(&e.key) && is_literal(&e.value));
                self.charge(if constant { 0 } else { cost::MAP })?;
                Ok(Value::map(out))
            }
            Kind::Struct { name, fields } => self.eval_struct(name, fields),
            Kind::Comprehension(c) => self.eval_comprehension(c),
        }
    }

    fn eval_ident(&mut self, expr: &'a Expr, name: &'a str) -> Result<Value<'a>, Error> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(n, _)| *n == name) {
            let value = value.clone();
            self.charge(1)?;
            return value;
        }
        if let Some(ty) = self.facts.type_values.get(&expr.id) {
            self.charge(1)?;
            return Ok(Value::Type(ty.clone()));
        }
        self.charge(1)?;
        match self.variables.get(name) {
            Some(value) => Ok(value.clone()),
            None => fail(format!("no such attribute(s): {name}")),
        }
    }

    fn eval_select(&mut self, operand: &'a Expr, field: &'a str, test: bool) -> Result<Value<'a>, Error> {
        if let (Kind::Ident(name), Some((lazy, members))) = (&operand.kind, self.lazy)
            && name == lazy
        {
            self.charge(if test { 1 } else { 2 })?;
            let Some(value) = members.member(field) else {
                return if test { Ok(Value::Bool(false)) } else { fail(format!("no such key: {field}")) };
            };
            return if test { Ok(Value::Bool(true)) } else { value };
        }
        let of = self.eval(operand)?;
        if test {
            return match &of {
                Value::Map(map) => Ok(Value::Bool(map.member(field).is_some())),
                Value::Optional(inner) => match inner.as_deref() {
                    Some(Value::Map(map)) => Ok(Value::Bool(map.member(field).is_some())),
                    _ => Ok(Value::Bool(false)),
                },
                _ => no_overload(),
            };
        }
        self.charge(1)?;
        select(&of, field)
    }

    fn eval_call(
        &mut self,
        expr: &'a Expr,
        function: &'a str,
        target: Option<&'a Expr>,
        args: &'a [Expr],
    ) -> Result<Value<'a>, Error> {
        match (function, args) {
            ("_&&_", [a, b]) => return self.logical(a, b, false),
            ("_||_", [a, b]) => return self.logical(a, b, true),
            ("_?_:_", [condition, yes, no]) => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => no_overload(),
                };
            }
            // An optional has an alternative that is evaluated only when it is needed.
            ("or" | "orValue", [other]) => {
                if let Some(target) = target {
                    let value = self.eval(target)?;
                    self.charge(1)?;
                    return match (value, function) {
                        (Value::Optional(Some(inner)), "orValue") => Ok((*inner).clone()),
                        (value @ Value::Optional(Some(_)), _) => Ok(value),
                        (Value::Optional(None), _) => self.eval(other),
                        _ => no_overload(),
                    };
                }
            }
            ("_?._", [operand, field]) => {
                let of = self.eval(operand)?;
                self.charge(1)?;
                let Kind::Literal(Literal::String(field)) = &field.kind else { return no_overload() };
                return Ok(optional_select(&of, field));
            }
            ("@not_strictly_false", [arg]) => {
                let value = match self.eval(arg) {
                    Ok(value) => !matches!(value, Value::Bool(false)),
                    Err(Error::Cancelled) => return Err(Error::Cancelled),
                    Err(_) => true,
                };
                self.charge(1)?;
                return Ok(Value::Bool(value));
            }
            _ => {}
        }
        let mut values: SmallVec<[Value<'a>; 3]> = SmallVec::new();
        if let Some(target) = target {
            values.push(self.eval(target)?);
        }
        for arg in args {
            values.push(self.eval(arg)?);
        }
        if function == "_[_]" || function == "_[?_]" {
            self.charge(1)?;
            return library::call(function, &values, None);
        }
        let result = library::call(function, &values, self.facts.patterns.get(&expr.id));
        let overload = match self.facts.overloads.get(&expr.id).map(|o| &o[..]) {
            Some([only]) => only.id,
            _ => "",
        };
        // A call that fails costs as well; what it would have yielded is unknown.
        let cost = cost::of_call(function, overload, &values, result.as_ref().unwrap_or(&Value::Null));
        self.charge(cost)?;
        result
    }

    /// `&&` (`decides` is false) and `||`: one side that decides makes an error of the other not matter.
    fn logical(&mut self, a: &'a Expr, b: &'a Expr, decides: bool) -> Result<Value<'a>, Error> {
        let left = self.eval(a);
        match &left {
            Ok(Value::Bool(v)) if *v == decides => return left,
            Err(Error::Cancelled) => return left,
            _ => {}
        }
        let right = self.eval(b);
        match (&left, &right) {
            (_, Ok(Value::Bool(v))) if *v == decides => right,
            (_, Err(Error::Cancelled)) => right,
            (Err(_), _) => left,
            (_, Err(_)) => right,
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => right,
            _ => no_overload(),
        }
    }

    fn eval_list(&mut self, elements: &'a [Expr], optional: &'a [bool]) -> Result<Value<'a>, Error> {
        let mut out = Vec::with_capacity(elements.len());
        for (element, optional) in elements.iter().zip(optional) {
            let value = self.eval(element)?;
            match (optional, value) {
                (false, value) => out.push(value),
                (true, Value::Optional(Some(inner))) => out.push((*inner).clone()),
                (true, Value::Optional(None)) => {}
                (true, _) => return no_overload(),
            }
        }
        let constant = !elements.is_empty() && elements.iter().all(is_literal);
        self.charge(if constant { 0 } else { cost::LIST })?;
        Ok(Value::list(out))
    }

    fn eval_struct(&mut self, name: &'a str, fields: &'a [Field]) -> Result<Value<'a>, Error> {
        let mut out: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(fields.len());
        for field in fields {
            let value = match (field.optional, self.eval(&field.value)?) {
                (false, value) => value,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (true, Value::Optional(None)) => continue,
                (true, _) => return no_overload(),
            };
            // Names in messages are escaped as in selections.
            out.push((Value::from(unescape(&field.name)), value));
        }
        self.charge(cost::MESSAGE)?;
        Ok(Value::Map(Map::Message(name.into(), out.into())))
    }

    fn eval_comprehension(&mut self, c: &'a Comprehension) -> Result<Value<'a>, Error> {
        let range = self.eval(&c.range)?;
        let accu = self.eval(&c.accu)?;
        let depth = self.locals.len();
        self.locals.push((&c.accu_var, Ok(accu)));
        let outcome = self.run_loop(c, &range, depth);
        self.locals.truncate(depth + 1);
        let result = outcome.and_then(|()| self.eval(&c.result));
        self.locals.truncate(depth);
        result
    }

    fn run_loop(&mut self, c: &'a Comprehension, range: &Value<'a>, depth: usize) -> Result<(), Error> {
        let step = |this: &mut Self, first: Value<'a>, second: Option<Value<'a>>| -> Result<bool, Error> {
            this.locals.truncate(depth + 1);
            this.locals.push((&c.var, Ok(first)));
            if let (Some(name), Some(value)) = (&c.var2, second) {
                this.locals.push((name, Ok(value)));
            }
            if !matches!(this.eval(&c.condition)?, Value::Bool(true)) {
                return Ok(false);
            }
            this.step(&c.step, &c.accu_var, depth)?;
            Ok(true)
        };
        match range {
            Value::List(list) => {
                for (i, value) in list.iter().enumerate() {
                    let go_on = if c.var2.is_some() {
                        step(self, Value::Int(i as i64), Some(value))?
                    } else {
                        step(self, value, None)?
                    };
                    if !go_on {
                        break;
                    }
                }
                Ok(())
            }
            Value::Map(map) if c.var2.is_some() => {
                for (key, value) in map.entries() {
                    if !step(self, key, Some(value))? {
                        break;
                    }
                }
                Ok(())
            }
            Value::Map(map) => {
                for key in map.keys() {
                    if !step(self, key, None)? {
                        break;
                    }
                }
                Ok(())
            }
            _ => no_overload(),
        }
    }

    /// One step of a loop: the accumulator becomes what the step yields. A step that adds to the accumulator does so in
    /// place, or a loop over n elements would copy n² of them.
    fn step(&mut self, expr: &'a Expr, accu: &'a str, at: usize) -> Result<(), Error> {
        let is_accu = |e: &Expr| matches!(&e.kind, Kind::Ident(name) if name == accu);
        if let Kind::Call { function, target: None, args } = &expr.kind {
            match (function.as_str(), &args[..]) {
                ("_?_:_", [condition, yes, no]) if is_accu(no) => {
                    return match self.eval(condition)? {
                        Value::Bool(true) => self.step(yes, accu, at),
                        Value::Bool(false) => self.charge(1),
                        _ => no_overload(),
                    };
                }
                ("_+_", [left, right]) if is_accu(left) => {
                    if let Kind::List { elements, optional } = &right.kind
                        && matches!(self.locals[at].1, Ok(Value::List(List::Owned(_))))
                    {
                        let Value::List(added) = self.eval_list(elements, optional)? else {
                            return no_overload();
                        };
                        self.charge(2)?;
                        if let Ok(Value::List(List::Owned(list))) = &mut self.locals[at].1 {
                            std::sync::Arc::make_mut(list).extend(added.iter());
                        }
                        return Ok(());
                    }
                }
                ("cel.@mapInsert", [first, rest @ ..]) if is_accu(first) => {
                    let mut added: SmallVec<[Value<'a>; 2]> = SmallVec::new();
                    for arg in rest {
                        added.push(self.eval(arg)?);
                    }
                    self.charge(2)?;
                    if let Ok(Value::Map(Map::Owned(entries))) = &mut self.locals[at].1 {
                        return library::insert_into(std::sync::Arc::make_mut(entries), &added);
                    }
                    return no_overload();
                }
                _ => {}
            }
        }
        // An error stands in the accumulator's place until a later step decides: `all` and `exists` go on.
        self.locals[at].1 = match self.eval(expr) {
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            value => value,
        };
        Ok(())
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr.kind, Kind::Literal(_))
}

fn literal_value(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(i) => Value::Int(*i),
        Literal::Uint(u) => Value::Uint(*u),
        Literal::Double(d) => Value::Double(*d),
        Literal::String(s) => Value::String(Text::Borrowed(s)),
        Literal::Bytes(b) => Value::Bytes(b.clone()),
    }
}

fn select<'a>(of: &Value<'a>, field: &str) -> Result<Value<'a>, Error> {
    match of {
        Value::Map(map) => map.member(field).map_or_else(|| fail(format!("no such key: {field}")), Ok),
        Value::Optional(_) => Ok(optional_select(of, field)),
        _ => no_overload(),
    }
}

fn optional_select<'a>(of: &Value<'a>, field: &str) -> Value<'a> {
    match of {
        Value::Optional(Some(inner)) => optional_select(inner, field),
        Value::Map(map) => Value::Optional(map.member(field).map(Into::into)),
        _ => Value::Optional(None),
    }
}
