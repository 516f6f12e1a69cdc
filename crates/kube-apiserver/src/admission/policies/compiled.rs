//! A policy's expressions, compiled when the policy is read.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use expression::{
    CALL_COST_MAX, Decl, DeclKind, Environment, Error, Lazy, Object, ObjectField, TOTAL_COST_MAX, Type,
    Variables,
};
use serde_json::Value;

use crate::admission::conditions::{self, CONDITIONS, Compiled, compile, compile_to};
use crate::admission::items;

/// An expression and what became of it.
pub struct Expression {
    pub source: String,
    pub program: Compiled,
}

impl Expression {
    fn new(source: &Value, environment: &Environment, wanted: &[Type]) -> Expression {
        let source = source.as_str().unwrap_or_default().to_owned();
        let program = if wanted.is_empty() {
            compile(&source, environment)
        } else {
            compile_to(&source, environment, wanted)
        };
        Expression { source, program }
    }
}

pub struct Validation {
    pub rule: Expression,
    pub message_rule: Option<Expression>,
    pub message: String,
    pub reason: String,
}

pub struct Mutation {
    pub json_patch: bool,
    pub rule: Expression,
}

/// All expressions of a policy.
pub struct Expressions {
    pub conditions: Vec<Expression>,
    pub variables: Vec<(String, Expression)>,
    pub validations: Vec<Validation>,
    /// Of audit annotations, by key.
    pub annotations: Vec<(String, Expression)>,
    pub mutations: Vec<Mutation>,
}

/// What `object` and `params` are, where it is known better than "anything".
#[derive(Default)]
pub struct Known {
    pub object: Option<Type>,
    pub params: Option<Type>,
}

impl Expressions {
    pub fn new(spec: &Value, known: &Known) -> Expressions {
        let mut environment = CONDITIONS.clone();
        if let Some(object) = &known.object {
            environment =
                environment.variable("object", object.clone()).variable("oldObject", object.clone());
        }
        if spec["paramKind"].is_object() {
            environment = environment.variable("params", known.params.clone().unwrap_or(Type::Dyn));
        }
        let conditions = items(spec, "matchConditions")
            .map(|c| Expression::new(&c["expression"], &environment, &[Type::Bool]))
            .collect();
        let mut variables: Vec<(String, Expression)> = Vec::new();
        let mut scope = environment.clone().variable("variables", members(&variables));
        for variable in items(spec, "variables") {
            let name = variable["name"].as_str().unwrap_or_default().to_owned();
            variables.push((name, Expression::new(&variable["expression"], &scope, &[])));
            scope = scope.variable("variables", members(&variables));
        }
        let validations = items(spec, "validations").map(|v| {
            let given = v["messageExpression"].as_str().is_some_and(|m| !m.trim().is_empty());
            Validation {
                rule: Expression::new(&v["expression"], &scope, &[Type::Bool]),
                message_rule: given
                    .then(|| Expression::new(&v["messageExpression"], &scope, &[Type::String])),
                message: v["message"].as_str().unwrap_or_default().trim().to_owned(),
                reason: v["reason"].as_str().unwrap_or_default().to_owned(),
            }
        });
        let annotations = items(spec, "auditAnnotations").map(|a| {
            let value = Expression::new(&a["valueExpression"], &scope, &[Type::String, Type::Null]);
            (a["key"].as_str().unwrap_or_default().to_owned(), value)
        });
        let open = scope.clone().open_messages();
        let mutations = items(spec, "mutations").map(|m| {
            let json_patch = m["patchType"] == "JSONPatch";
            let rule = if json_patch {
                let wanted = Type::list(Type::Open("JSONPatch".into()));
                Expression::new(&m["jsonPatch"]["expression"], &open, &[wanted])
            } else {
                Expression::new(&m["applyConfiguration"]["expression"], &open, &[Type::Open("Object".into())])
            };
            Mutation { json_patch, rule }
        });
        Expressions {
            conditions,
            validations: validations.collect(),
            annotations: annotations.collect(),
            mutations: mutations.collect(),
            variables,
        }
    }

    /// What does not compile, with its place below `spec`.
    pub fn errors(&self) -> Vec<FieldError> {
        let at = |list: &str, i: usize, field: &str| Path::new("spec").child(list).index(i).child(field);
        let mut all: Vec<(Path, &Expression)> = Vec::new();
        for (i, condition) in self.conditions.iter().enumerate() {
            all.push((at("matchConditions", i, "expression"), condition));
        }
        for (i, (_, variable)) in self.variables.iter().enumerate() {
            all.push((at("variables", i, "expression"), variable));
        }
        for (i, validation) in self.validations.iter().enumerate() {
            all.push((at("validations", i, "expression"), &validation.rule));
            if let Some(message) = &validation.message_rule {
                all.push((at("validations", i, "messageExpression"), message));
            }
        }
        for (i, (_, annotation)) in self.annotations.iter().enumerate() {
            all.push((at("auditAnnotations", i, "valueExpression"), annotation));
        }
        for (i, mutation) in self.mutations.iter().enumerate() {
            let field = if mutation.json_patch { "jsonPatch" } else { "applyConfiguration" };
            all.push((at("mutations", i, field).child("expression"), &mutation.rule));
        }
        let errors = all.into_iter().filter_map(|(path, expression)| {
            let why = expression.program.as_ref().err()?;
            Some(FieldError::invalid(&path, expression.source.as_str(), why.as_str()))
        });
        errors.collect()
    }
}

/// The type of `variables`: an object with a field for each.
fn members(variables: &[(String, Expression)]) -> Type {
    let fields: BTreeMap<String, ObjectField> = variables
        .iter()
        .map(|(name, expression)| {
            let ty = expression.program.as_ref().map_or(Type::Dyn, |p| p.output().clone());
            let decl = Decl { kind: DeclKind::Other(ty), nullable: true, max_elements: 0, min_size: 0 };
            (name.clone(), ObjectField { name: name.clone(), decl: Arc::new(decl) })
        })
        .collect();
    Type::Object(Arc::new(Object { name: "kubernetes.variables".into(), fields }))
}

/// One use of a policy: what its expressions see, with the variables computed when they are asked for, and how much
/// evaluation may still cost.
pub struct Evaluation<'a> {
    expressions: &'a Expressions,
    seen: Variables<'a>,
    computed: RefCell<HashMap<&'a str, Result<expression::Value<'a>, Error>>>,
    budget: Cell<u64>,
}

impl<'a> Lazy<'a> for Evaluation<'a> {
    fn member(&self, name: &str) -> Option<Result<expression::Value<'a>, Error>> {
        let (name, expression) = self.expressions.variables.iter().find(|(n, _)| n == name)?;
        if let Some(known) = self.computed.borrow().get(name.as_str()) {
            return Some(known.clone());
        }
        let value = match &expression.program {
            Ok(_) => self.run(expression).map_err(|why| match why {
                Error::Failed(why) => {
                    Error::Failed(format!("composited variable \"{name}\" fails to evaluate: {why}").into())
                }
                other => other,
            }),
            Err(why) => {
                Err(Error::Failed(format!("composited variable \"{name}\" fails to compile: {why}").into()))
            }
        };
        self.computed.borrow_mut().insert(name, value.clone());
        Some(value)
    }
}

impl<'a> Evaluation<'a> {
    pub fn new(expressions: &'a Expressions, seen: Variables<'a>) -> Evaluation<'a> {
        Evaluation { expressions, seen, computed: RefCell::default(), budget: Cell::new(TOTAL_COST_MAX) }
    }

    /// The value of an expression that compiles.
    pub fn run(&self, expression: &'a Expression) -> Result<expression::Value<'a>, Error> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(why) => return Err(Error::Failed(why.clone().into())),
        };
        let limit = self.budget.get().min(CALL_COST_MAX);
        let evaluated = program.evaluate_lazily(&self.seen, "variables", self, limit);
        self.budget.set(self.budget.get().saturating_sub(evaluated.cost));
        evaluated.value
    }

    /// As [`Evaluation::run`]; the error is as users see it.
    pub fn value(&self, expression: &'a Expression) -> Result<expression::Value<'a>, String> {
        if let Err(why) = &expression.program {
            return Err(format!("compile error: {why}"));
        }
        self.run(expression).map_err(|why| conditions::failure(&expression.source, &why))
    }
}
