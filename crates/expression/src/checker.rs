//! Type checking: what every node yields and which overloads a call may mean, with cel-go's messages.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use smallvec::SmallVec;

use crate::declarations::{self, Function, Overload};
use crate::syntax::{Entry, Expr, Field, Kind, Literal, Problem};
use crate::types::Type;

/// The overloads a call may mean.
pub type Overloads = SmallVec<[&'static Overload; 2]>;

/// Facts about the nodes of a tree, by id.
#[derive(Debug, Default)]
pub struct Facts {
    pub types: Vec<Type>,
    pub overloads: HashMap<usize, Overloads>,
    /// Types that identifiers name.
    pub type_values: HashMap<usize, Type>,
    /// Patterns that are literals, compiled.
    pub patterns: HashMap<usize, Regex>,
    /// Variables the tree refers to.
    pub variables: Vec<String>,
}

/// Checks a tree, which it rewrites where a dotted name turns out to be one name.
pub fn check(
    root: &mut Expr,
    ids: usize,
    variables: &[(String, Type)],
    open: bool,
) -> Result<Facts, Vec<Problem>> {
    let mut checker = Checker {
        variables,
        open,
        scopes: Vec::new(),
        solved: Vec::new(),
        facts: Facts { types: vec![Type::Error; ids + 1], ..Facts::default() },
        problems: Vec::new(),
    };
    checker.check(root);
    if checker.problems.is_empty() {
        checker.literals(root);
    }
    if !checker.problems.is_empty() {
        return Err(checker.problems);
    }
    let types = std::mem::take(&mut checker.facts.types);
    checker.facts.types = types.iter().map(|t| checker.substitute(t, true)).collect();
    Ok(checker.facts)
}

struct Checker<'a> {
    variables: &'a [(String, Type)],
    open: bool,
    scopes: Vec<(String, Type)>,
    /// What type variables stand for, by number.
    solved: Vec<Option<Type>>,
    facts: Facts,
    problems: Vec<Problem>,
}

/// A name spelled by an identifier and selections.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", qualified(operand)?)),
        _ => None,
    }
}

impl Checker<'_> {
    fn problem(&mut self, at: u32, message: String) {
        self.problems.push(Problem::new(at, message));
    }

    fn set(&mut self, expr: &Expr, ty: Type) {
        self.facts.types[expr.id] = ty;
    }

    fn of(&self, expr: &Expr) -> Type {
        self.facts.types[expr.id].clone()
    }

    fn fresh(&mut self) -> Type {
        self.solved.push(None);
        Type::Var(self.solved.len() - 1)
    }

    fn lookup(&self, name: &str) -> Option<(Type, Option<Type>)> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| n == name) {
            return Some((ty.clone(), None));
        }
        if let Some((_, ty)) = self.variables.iter().find(|(n, _)| n == name) {
            return Some((ty.clone(), None));
        }
        let ty = declarations::type_name(name).or_else(|| self.open_type(name))?;
        let value = match &ty {
            Type::Type(Some(inner)) => (**inner).clone(),
            other => other.clone(),
        };
        Some((ty, Some(value)))
    }

    fn open_type(&self, name: &str) -> Option<Type> {
        let open = self.open && (name == "Object" || name.starts_with("Object.") || name == "JSONPatch");
        open.then(|| Type::Type(Some(Arc::new(Type::Open(name.into())))))
    }

    fn note_ident(&mut self, expr: &Expr, name: &str, ty: Type, value: Option<Type>) {
        if let Some(value) = value {
            self.facts.type_values.insert(expr.id, value);
        } else if !self.scopes.iter().any(|(n, _)| n == name)
            && !self.facts.variables.iter().any(|v| v == name)
        {
            self.facts.variables.push(name.to_owned());
        }
        self.set(expr, ty);
    }

    fn check(&mut self, expr: &mut Expr) {
        match &mut expr.kind {
            Kind::Literal(literal) => {
                let ty = literal_type(literal);
                self.set(expr, ty);
            }
            Kind::Ident(name) => {
                let name = name.clone();
                match self.lookup(&name) {
                    Some((ty, value)) => {
                        let plain = name.trim_start_matches('.').to_owned();
                        expr.kind = Kind::Ident(plain.clone());
                        self.note_ident(expr, &plain, ty, value);
                    }
                    None => {
                        self.problem(expr.at, format!("undeclared reference to '{name}' (in container '')"));
                        self.set(expr, Type::Error);
                    }
                }
            }
            Kind::Select { .. } => self.check_select(expr),
            Kind::Call { .. } => self.check_call(expr),
            Kind::List { elements, optional } => {
                let mut element_type: Option<Type> = None;
                for (element, optional) in elements.iter_mut().zip(optional) {
                    self.check(element);
                    let ty = self.unwrapped(element, *optional);
                    element_type = Some(self.join(element, element_type, ty));
                }
                let element_type = element_type.unwrap_or_else(|| self.fresh());
                self.set(expr, Type::list(element_type));
            }
            Kind::Map(entries) => {
                let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
                for Entry { key, value, optional } in entries {
                    self.check(key);
                    let ty = self.of(key);
                    keys = Some(self.join(key, keys, ty));
                    self.check(value);
                    let ty = self.unwrapped(value, *optional);
                    values = Some(self.join(value, values, ty));
                }
                let keys = keys.unwrap_or_else(|| self.fresh());
                let values = values.unwrap_or_else(|| self.fresh());
                self.set(expr, Type::map(keys, values));
            }
            Kind::Struct { .. } => self.check_struct(expr),
            Kind::Comprehension(_) => self.check_comprehension(expr),
        }
    }

    /// The type of an element or value; of one marked optional, what is inside.
    fn unwrapped(&mut self, expr: &Expr, optional: bool) -> Type {
        let ty = self.of(expr);
        if !optional {
            return ty;
        }
        match ty {
            Type::Optional(inner) => (*inner).clone(),
            ty => {
                if !ty.is_dyn() {
                    self.problem(
                        expr.at,
                        format!("expected type '{}' but found '{ty}'", Type::optional(ty.clone())),
                    );
                }
                ty
            }
        }
    }

    fn join(&mut self, expr: &Expr, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.assignable(&previous, &current) {
            return most_general(&previous, &current);
        }
        self.mismatch(expr, &previous, &current);
        Type::Error
    }

    fn mismatch(&mut self, expr: &Expr, expected: &Type, actual: &Type) {
        self.problem(expr.at, format!("expected type '{expected}' but found '{actual}'"));
    }

    fn check_select(&mut self, expr: &mut Expr) {
        if let Some(name) = qualified(expr)
            && let Some((ty, value)) = self.lookup(&name)
        {
            let plain = name.trim_start_matches('.').to_owned();
            expr.kind = Kind::Ident(plain.clone());
            self.note_ident(expr, &plain, ty, value);
            return;
        }
        let (id, at) = (expr.id, expr.at);
        let Kind::Select { operand, field, test } = &mut expr.kind else { return };
        let ty = self.check_field(id, at, operand, field, false);
        let ty = if *test { Type::Bool } else { self.substitute(&ty, false) };
        self.set(expr, ty);
    }

    fn check_field(&mut self, _id: usize, at: u32, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.substitute(&self.of(operand), false);
        let (target, is_optional) = match &operand_type {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let result = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(found) => found.decl.ty(),
                None => {
                    self.problem(at, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Open(_) => Type::Dyn,
            Type::Var(_) => {
                self.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn() {
                    self.problem(at, format!("type '{other}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if is_optional || optional { Type::optional(result) } else { result }
    }

    fn check_call(&mut self, expr: &mut Expr) {
        let (id, at) = (expr.id, expr.at);
        let Kind::Call { function, target, args } = &mut expr.kind else { return };
        if function == "_?._" {
            let [operand, field] = &mut args[..] else { return };
            let Kind::Literal(Literal::String(name)) = &field.kind else { return };
            let name = name.to_string();
            let ty = self.check_field(id, at, operand, &name, true);
            let ty = self.substitute(&ty, false);
            if let Some(found) = declarations::function("_?._") {
                self.facts.overloads.insert(id, found.overloads.iter().collect());
            }
            self.facts.types[id] = ty;
            return;
        }
        args.iter_mut().for_each(|a| self.check(a));
        let Some(receiver) = target else {
            let name = function.trim_start_matches('.').to_owned();
            let found = declarations::function(&name);
            *function = name;
            self.resolve(expr, found);
            return;
        };
        // The receiver may be a namespace: `math.greatest(…)` names one function.
        if let Some(prefix) = qualified(receiver) {
            let name = format!("{}.{function}", prefix.trim_start_matches('.'));
            if let Some(found) = declarations::function(&name) {
                *function = name;
                *target = None;
                self.resolve(expr, Some(found));
                return;
            }
        }
        self.check(receiver);
        let found = declarations::function(function);
        self.resolve(expr, found);
    }

    fn resolve(&mut self, expr: &Expr, found: Option<&'static Function>) {
        let Kind::Call { function, target, args } = &expr.kind else { return };
        let Some(found) = found else {
            self.problem(expr.at, format!("undeclared reference to '{function}' (in container '')"));
            self.set(expr, Type::Error);
            return;
        };
        if function == "_&&_" || function == "_||_" {
            let mut fits = true;
            for arg in args {
                let ty = self.of(arg);
                if !self.assignable(&ty, &Type::Bool) {
                    self.mismatch(arg, &Type::Bool, &ty);
                    fits = false;
                }
            }
            self.facts.overloads.insert(expr.id, found.overloads.iter().collect());
            self.set(expr, if fits { Type::Bool } else { Type::Error });
            return;
        }
        let arg_types: Vec<Type> = target.iter().map(|t| &**t).chain(args).map(|a| self.of(a)).collect();
        let mut result: Option<Type> = None;
        let mut chosen = Overloads::new();
        for overload in &found.overloads {
            if overload.member != target.is_some() || overload.args.len() != arg_types.len() {
                continue;
            }
            let mut bound: SmallVec<[(char, Type); 2]> = SmallVec::new();
            let (wanted, yields): (Vec<Type>, Type) = if overload.generic {
                (
                    overload.args.iter().map(|a| self.instantiate(a, &mut bound)).collect(),
                    self.instantiate(&overload.result, &mut bound),
                )
            } else {
                (overload.args.clone(), overload.result.clone())
            };
            let before = self.solved.clone();
            if !arg_types.iter().zip(&wanted).all(|(have, want)| self.fits(have, want)) {
                self.solved = before;
                continue;
            }
            chosen.push(overload);
            let yields = self.substitute(&yields, false);
            result = Some(match result {
                None => yields,
                Some(known) if known.is_dyn() || yields.same(&known) => known,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            let shown: Vec<String> = arg_types.iter().map(|t| self.substitute(t, true).to_string()).collect();
            let signature = match &target {
                Some(_) => format!("{}.({})", shown[0], shown[1..].join(", ")),
                None => format!("({})", shown.join(", ")),
            };
            let message = format!("found no matching overload for '{function}' applied to '{signature}'");
            self.problem(expr.at, message);
            self.set(expr, Type::Error);
            return;
        };
        self.facts.overloads.insert(expr.id, chosen);
        self.set(expr, result);
    }

    fn instantiate(&mut self, ty: &Type, bound: &mut SmallVec<[(char, Type); 2]>) -> Type {
        match ty {
            Type::Param(name) => {
                if let Some((_, known)) = bound.iter().find(|(n, _)| n == name) {
                    return known.clone();
                }
                let fresh = self.fresh();
                bound.push((*name, fresh.clone()));
                fresh
            }
            Type::List(a) => Type::list(self.instantiate(a, bound)),
            Type::Map(a, b) => {
                let key = self.instantiate(a, bound);
                Type::map(key, self.instantiate(b, bound))
            }
            Type::Optional(a) => Type::optional(self.instantiate(a, bound)),
            Type::Type(Some(a)) => Type::Type(Some(Arc::new(self.instantiate(a, bound)))),
            other => other.clone(),
        }
    }

    fn check_struct(&mut self, expr: &mut Expr) {
        let (id, at) = (expr.id, expr.at);
        let Kind::Struct { name, fields } = &mut expr.kind else { return };
        let plain = name.trim_start_matches('.').to_owned();
        let Some((ty, value)) = self.lookup(&plain) else {
            self.problem(at, format!("undeclared reference to '{plain}' (in container '')"));
            self.facts.types[id] = Type::Error;
            return;
        };
        let result = match (value, ty) {
            (Some(made @ (Type::Object(_) | Type::Open(_))), _) => made,
            (Some(other), _) => {
                self.problem(at, format!("'{other}' is not a message type"));
                Type::Error
            }
            (None, ty) => {
                self.problem(at, format!("'{ty}' is not a type"));
                Type::Error
            }
        };
        for Field { at, name, value, optional } in fields {
            self.check(value);
            let ty = self.unwrapped(value, *optional);
            let wanted = match &result {
                Type::Object(object) => match object.fields.get(name.as_str()) {
                    Some(field) => field.decl.ty(),
                    None => {
                        self.problem(*at, format!("undefined field '{name}'"));
                        Type::Error
                    }
                },
                Type::Open(made) if &**made == "JSONPatch" => match name.as_str() {
                    "op" | "path" | "from" => Type::String,
                    "value" => Type::Dyn,
                    _ => {
                        self.problem(*at, format!("undefined field '{name}'"));
                        Type::Error
                    }
                },
                Type::Open(_) => Type::Dyn,
                _ => Type::Error,
            };
            // A message inside an open message is of the type that the place has.
            if let (Type::Open(outer), Type::Open(inner)) = (&result, &ty)
                && &**outer != "JSONPatch"
                && **inner != format!("{outer}.{name}")
            {
                let message = format!(
                    "expected type of field '{name}' is '{outer}.{name}' but provided type is '{inner}'"
                );
                self.problem(*at, message);
                continue;
            }
            if !self.assignable(&wanted, &ty) {
                let message =
                    format!("expected type of field '{name}' is '{wanted}' but provided type is '{ty}'");
                self.problem(*at, message);
            }
        }
        self.facts.types[id] = result;
    }

    fn check_comprehension(&mut self, expr: &mut Expr) {
        let id = expr.id;
        let Kind::Comprehension(c) = &mut expr.kind else { return };
        self.check(&mut c.range);
        self.check(&mut c.accu);
        let range_type = self.substitute(&self.of(&c.range), false);
        let accu_type = self.of(&c.accu);
        let depth = self.scopes.len();
        self.scopes.push((c.accu_var.clone(), accu_type.clone()));
        let two = c.var2.is_some();
        let (first, second) = match &range_type {
            Type::List(element) if two => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Var(_) => {
                self.assignable(&Type::Dyn, &range_type);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.problem(c.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        self.scopes.push((c.var.clone(), first));
        if let Some(var2) = &c.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&mut c.condition);
        self.assert_type(&c.condition, &Type::Bool);
        self.check(&mut c.step);
        self.assert_type(&c.step, &accu_type);
        self.scopes.truncate(depth + 1);
        self.check(&mut c.result);
        self.scopes.truncate(depth);
        let ty = self.substitute(&self.of(&c.result), false);
        self.facts.types[id] = ty;
    }

    fn assert_type(&mut self, expr: &Expr, wanted: &Type) {
        let ty = self.of(expr);
        if !self.assignable(wanted, &ty) {
            self.mismatch(expr, wanted, &ty);
        }
    }

    /// Whether one type may stand for the other; solves variables where it may.
    fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        let before = self.solved.clone();
        let fits = self.fits(a, b);
        if !fits {
            self.solved = before;
        }
        fits
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Var(n) = b {
            match self.stands_for(a, *n) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Var(n) = a {
            return self.stands_for(b, *n).0;
        }
        if a.is_dyn() || b.is_dyn() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null
                    | Type::Opaque(_)
                    | Type::Optional(_)
                    | Type::Object(_)
                    | Type::Open(_)
                    | Type::Duration
                    | Type::Timestamp
            ),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(a, b), Type::Map(c, d)) => self.fits(a, c) && self.fits(b, d),
            _ => a.same(b),
        }
    }

    /// Whether variable `n` may stand for `ty`, and whether it stood for something before.
    fn stands_for(&mut self, ty: &Type, n: usize) -> (bool, bool) {
        if matches!(ty, Type::Var(m) if *m == n) {
            return (true, true);
        }
        if let Some(known) = self.solved[n].clone() {
            if ty.same(&known) {
                return (true, true);
            }
            if self.fits(ty, &known) {
                let general = most_general(ty, &known);
                if !self.mentions(&general, n) {
                    self.solved[n] = Some(general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.mentions(ty, n) {
            return (false, false);
        }
        self.solved[n] = Some(ty.clone());
        (true, false)
    }

    fn mentions(&self, ty: &Type, n: usize) -> bool {
        match ty {
            Type::Var(m) if *m == n => true,
            Type::Var(m) => self.solved[*m].as_ref().is_some_and(|t| self.mentions(t, n)),
            other => other.params().iter().any(|t| self.mentions(t, n)),
        }
    }

    /// The type with solved variables put in; the unsolved become dyn where `close` says so.
    fn substitute(&self, ty: &Type, close: bool) -> Type {
        match ty {
            Type::Var(n) => match &self.solved[*n] {
                Some(known) => self.substitute(known, close),
                None if close => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(a) => Type::list(self.substitute(a, close)),
            Type::Map(a, b) => Type::map(self.substitute(a, close), self.substitute(b, close)),
            Type::Optional(a) => Type::optional(self.substitute(a, close)),
            Type::Type(Some(a)) => Type::Type(Some(Arc::new(self.substitute(a, close)))),
            other => other.clone(),
        }
    }

    /// Checks literals that are parsed when they are used: durations, times and patterns.
    fn literals(&mut self, expr: &Expr) {
        each(expr, &mut |expr| {
            let Kind::Call { function, target, args } = &expr.kind else { return };
            let arg = match (function.as_str(), args.len()) {
                ("duration" | "timestamp", 1) => &args[0],
                ("matches" | "find" | "findAll", 1 | 2) if target.is_some() => &args[0],
                ("matches", 2) => &args[1],
                _ => return,
            };
            let Kind::Literal(Literal::String(text)) = &arg.kind else { return };
            let fits = match function.as_str() {
                "duration" => crate::library::parse_duration(text).is_ok(),
                "timestamp" => crate::library::parse_timestamp(text).is_ok(),
                _ => match Regex::new(text) {
                    Ok(pattern) => {
                        self.facts.patterns.insert(expr.id, pattern);
                        true
                    }
                    // Only `matches` is checked before it runs.
                    Err(_) => function != "matches",
                },
            };
            if !fits {
                self.problems.push(Problem::new(arg.at, format!("invalid {function} argument")));
            }
        });
    }
}

/// Visits every node.
pub fn each<'a>(expr: &'a Expr, visit: &mut dyn FnMut(&'a Expr)) {
    visit(expr);
    expr.kind.children().for_each(|e| each(e, visit));
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

fn most_general(a: &Type, b: &Type) -> Type {
    if less_specific(a, b) { a.clone() } else { b.clone() }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    if matches!(a, Type::Dyn | Type::Var(_)) {
        return true;
    }
    if matches!(b, Type::Dyn | Type::Var(_)) {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(a, b), Type::Map(c, d)) => less_specific(a, c) && less_specific(b, d),
        (Type::Type(_), Type::Type(_)) => true,
        _ => a.same(b),
    }
}
