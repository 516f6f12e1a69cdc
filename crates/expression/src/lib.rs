//! The Common Expression Language as Kubernetes speaks it (cel.dev; KEP-2876): parsing, type checking, estimates of cost,
//! evaluation within a budget, Kubernetes' functions, and rules in the schemas of custom resources.
//!
//! Pure: no I/O, no clock. Data is looked into as JSON where it lies. Expressions are bounded in length and depth,
//! evaluation in cost.

mod checker;
mod cost;
mod declarations;
mod eval;
mod lexer;
mod library;
mod macros;
mod parser;
pub mod rules;
pub mod schema;
mod syntax;
mod types;
mod value;

use std::sync::Arc;

pub use cost::Range as Cost;
pub use declarations::{AUTHORIZER, DECISION, GROUP_CHECK, PATH_CHECK, RESOURCE_CHECK};
pub use eval::{Lazy, Variables};
pub use types::{Decl, DeclKind, ListType, Object, ObjectField, Type, escape, is_identifier, unescape};
pub use value::{Error, List, Map, Opaque, Text, Value, fail};

/// The most one evaluation may cost (upstream's PerCallLimit).
pub const CALL_COST_MAX: u64 = 1_000_000;
/// The most all evaluations for one object or one policy binding may cost.
pub const TOTAL_COST_MAX: u64 = 10_000_000;
/// The most that the match conditions of one webhook or policy may cost.
pub const CONDITIONS_COST_MAX: u64 = 2_500_000;

/// What an expression may refer to.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    open_messages: bool,
}

impl Environment {
    pub fn variable(mut self, name: &str, ty: Type) -> Environment {
        self.variables.retain(|(n, _)| n != name);
        self.variables.push((name.to_owned(), ty));
        self
    }

    /// Allows the messages that mutations make: `Object{…}` and `JSONPatch{…}`.
    pub fn open_messages(mut self) -> Environment {
        self.open_messages = true;
        self
    }
}

/// A checked expression.
#[derive(Debug)]
pub struct Program {
    root: syntax::Expr,
    facts: checker::Facts,
}

/// What an evaluation yielded and what it cost.
pub struct Evaluated<'a> {
    pub value: Result<Value<'a>, Error>,
    pub cost: u64,
}

impl Program {
    /// Parses and checks a source. The error is text as cel-go prints it, with the places that are wrong.
    pub fn compile(source: &str, environment: &Environment) -> Result<Program, String> {
        let parser::Parsed { mut root, ids } = parser::parse(source)?;
        let checked = checker::check(&mut root, ids, &environment.variables, environment.open_messages);
        let facts = checked.map_err(|problems| syntax::render(source, problems))?;
        Ok(Program { root, facts })
    }

    /// The type of what it yields.
    pub fn output(&self) -> &Type {
        &self.facts.types[self.root.id]
    }

    /// Whether it refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.facts.variables.iter().any(|v| v == variable)
    }

    /// Whether it asks for a field of a variable, as `variable.field` or `variable.?field`.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        self.root.selects(variable, field)
    }

    /// What it may cost where its variables are data as declared.
    pub fn estimate(&self, data: Option<&Arc<Decl>>) -> Cost {
        cost::estimate(&self.root, &self.facts, data)
    }

    /// Evaluates it, up to a cost of `limit`.
    pub fn evaluate<'a>(&'a self, variables: &Variables<'a>, limit: u64) -> Evaluated<'a> {
        let mut evaluation = eval::Evaluation::new(&self.facts, variables, None, limit);
        let value = evaluation.eval(&self.root);
        Evaluated { value, cost: evaluation.cost }
    }

    /// As [`Program::evaluate`], with a variable whose members are computed when they are asked for.
    pub fn evaluate_lazily<'a>(
        &'a self,
        variables: &Variables<'a>,
        name: &str,
        members: &dyn Lazy<'a>,
        limit: u64,
    ) -> Evaluated<'a> {
        let mut evaluation = eval::Evaluation::new(&self.facts, variables, Some((name, members)), limit);
        let value = evaluation.eval(&self.root);
        Evaluated { value, cost: evaluation.cost }
    }
}

#[cfg(test)]
mod tests;
