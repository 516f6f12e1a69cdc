//! Syntax trees of CEL, with the macros expanded, and errors that point into the source.

use std::sync::Arc;

/// Where a node stands: a count of characters from the start of the source.
pub type Offset = u32;

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// A node. Ids are dense, so that facts about nodes lie in plain vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub id: usize,
    pub at: Offset,
    /// How many nodes lie on the longest way down from here.
    pub depth: u16,
    pub kind: Kind,
}

impl Expr {
    pub fn new(id: usize, at: Offset, kind: Kind) -> Expr {
        let below = kind.children().map(|e| e.depth).max().unwrap_or(0);
        Expr { id, at, depth: below.saturating_add(1), kind }
    }

    /// Whether here or below a field of a variable is asked for.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        let is_variable = |e: &Expr| matches!(&e.kind, Kind::Ident(name) if name == variable);
        let here = match &self.kind {
            Kind::Select { operand, field: asked, .. } => asked == field && is_variable(operand),
            Kind::Call { function, target: None, args } if function == "_?._" => match args.as_slice() {
                [operand, Expr { kind: Kind::Literal(Literal::String(asked)), .. }] => {
                    &**asked == field && is_variable(operand)
                }
                _ => false,
            },
            _ => false,
        };
        here || self.kind.children().any(|e| e.selects(variable, field))
    }
}

impl Kind {
    /// The nodes right below.
    pub fn children(&self) -> Box<dyn Iterator<Item = &Expr> + '_> {
        match self {
            Kind::Literal(_) | Kind::Ident(_) => Box::new(std::iter::empty()),
            Kind::Select { operand, .. } => Box::new(std::iter::once(&**operand)),
            Kind::Call { target, args, .. } => Box::new(target.iter().map(|t| &**t).chain(args)),
            Kind::List { elements, .. } => Box::new(elements.iter()),
            Kind::Map(entries) => Box::new(entries.iter().flat_map(|e| [&e.key, &e.value])),
            Kind::Struct { fields, .. } => Box::new(fields.iter().map(|f| &f.value)),
            Kind::Comprehension(c) => {
                Box::new([&c.range, &c.accu, &c.condition, &c.step, &c.result].into_iter())
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Literal(Literal),
    Ident(String),
    Select { operand: Box<Expr>, field: String, test: bool },
    Call { function: String, target: Option<Box<Expr>>, args: Vec<Expr> },
    List { elements: Vec<Expr>, optional: Vec<bool> },
    Map(Vec<Entry>),
    Struct { name: String, fields: Vec<Field> },
    Comprehension(Box<Comprehension>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub at: Offset,
    pub name: String,
    pub value: Expr,
    pub optional: bool,
}

/// What every macro that loops becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Comprehension {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu_var: String,
    pub accu: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The name of the variable that loops gather in; no source can spell it.
pub const ACCUMULATOR: &str = "@result";

/// One thing wrong with a source text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub at: Option<Offset>,
    pub message: String,
}

impl Problem {
    pub fn new(at: Offset, message: impl Into<String>) -> Problem {
        Problem { at: Some(at), message: message.into() }
    }
}

const PROBLEMS_SHOWN_MAX: usize = 100;
const SNIPPET_MAX: usize = 16384;

/// The problems as cel-go prints them, with the line they are in and a mark under the place.
pub fn render(source: &str, mut problems: Vec<Problem>) -> String {
    problems.sort_by_key(|p| p.at);
    let more = problems.len().saturating_sub(PROBLEMS_SHOWN_MAX);
    let mut out: Vec<String> =
        problems.iter().take(PROBLEMS_SHOWN_MAX).map(|p| render_one(source, p)).collect();
    if more > 0 {
        out.push(format!("{more} more errors were truncated"));
    }
    out.join("\n")
}

fn render_one(source: &str, problem: &Problem) -> String {
    let Some(at) = problem.at else {
        return format!("ERROR: <input>:-1:0: {}", problem.message);
    };
    let (mut line, mut column) = (1usize, 0usize);
    for c in source.chars().take(at as usize) {
        if c == '\n' {
            line += 1;
            column = 0;
        } else {
            column += 1;
        }
    }
    let mut out = format!("ERROR: <input>:{line}:{}: {}", column + 1, problem.message);
    let Some(text) = source.split('\n').nth(line - 1) else { return out };
    if text.len() > SNIPPET_MAX {
        return out;
    }
    let text = text.replace('\t', " ");
    out.push_str("\n | ");
    out.push_str(&text);
    out.push_str("\n | ");
    let mut chars = text.chars();
    for c in chars.by_ref().take(column) {
        out.push(if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' });
    }
    out.push(if chars.next().is_some_and(|c| c.len_utf8() > 1) { '\u{ff3e}' } else { '^' });
    out
}
