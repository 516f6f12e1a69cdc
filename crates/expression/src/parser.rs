//! Tokens to syntax trees.

use crate::lexer::{Spanned, Token, tokens};
use crate::macros;
use crate::syntax::{Entry, Expr, Field, Kind, Literal, Offset, Problem, render};
use crate::types::RESERVED;

/// Longer sources are refused.
const SOURCE_CHARS_MAX: usize = 100_000;
/// How deep expressions may nest.
const DEPTH_MAX: usize = 250;
/// How many nodes may lie on a way down: more would not fit the stack of whoever evaluates.
const NODES_DEEP_MAX: u16 = 300;

const OPERANDS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// Operators with two sides, what they call and how tightly they bind.
const BINARY: [(&str, &str, u8); 12] = [
    ("<", "_<_", 0),
    ("<=", "_<=_", 0),
    (">", "_>_", 0),
    (">=", "_>=_", 0),
    ("==", "_==_", 0),
    ("!=", "_!=_", 0),
    ("in", "@in", 0),
    ("+", "_+_", 1),
    ("-", "_-_", 1),
    ("*", "_*_", 2),
    ("/", "_/_", 2),
    ("%", "_%_", 2),
];

/// A parsed source: the tree and how many ids its nodes use.
#[derive(Debug)]
pub struct Parsed {
    pub root: Expr,
    pub ids: usize,
}

/// Parses a source and expands its macros. The error is text for people.
pub fn parse(source: &str) -> Result<Parsed, String> {
    let length = source.chars().count();
    if length > SOURCE_CHARS_MAX {
        let message =
            format!("expression code point size exceeds limit: size: {length}, limit {SOURCE_CHARS_MAX}");
        return Err(render(source, vec![Problem { at: None, message }]));
    }
    let mut problems = Vec::new();
    let tokens = tokens(source, &mut problems);
    let mut parser = Parser { tokens, at: 0, ids: 1, depth: 0, problems };
    let root = parser.whole();
    match root {
        Some(root) if parser.problems.is_empty() => Ok(Parsed { root, ids: parser.ids }),
        _ => Err(render(source, parser.problems)),
    }
}

pub(crate) struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    ids: usize,
    depth: usize,
    problems: Vec<Problem>,
}

/// `None` where a problem was reported that cannot be worked around.
type Made = Option<Expr>;

impl Parser {
    pub(crate) fn problem(&mut self, at: Offset, message: impl Into<String>) {
        self.problems.push(Problem::new(at, message));
    }

    pub(crate) fn node(&mut self, at: Offset, kind: Kind) -> Expr {
        let id = self.ids;
        self.ids += 1;
        Expr::new(id, at, kind)
    }

    /// A node with an id taken before, unless the tree is too deep.
    pub(crate) fn made(&mut self, id: usize, at: Offset, kind: Kind) -> Option<Expr> {
        let expr = Expr::new(id, at, kind);
        if expr.depth > NODES_DEEP_MAX {
            self.too_deep();
            return None;
        }
        Some(expr)
    }

    fn too_deep(&mut self) {
        if self.problems.is_empty() {
            let message = format!("expression recursion limit exceeded: {DEPTH_MAX}");
            self.problems.push(Problem { at: None, message });
        }
    }

    pub(crate) fn call(&mut self, at: Offset, function: &str, args: Vec<Expr>) -> Expr {
        self.node(at, Kind::Call { function: function.to_owned(), target: None, args })
    }

    fn peek(&self) -> &Spanned {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn is(&self, sign: &'static str) -> bool {
        self.peek().token == Token::Sign(sign)
    }

    fn advance(&mut self) -> Spanned {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// Takes the sign when it is next, and says where it stood.
    fn take(&mut self, sign: &'static str) -> Option<Offset> {
        if self.is(sign) { Some(self.advance().at) } else { None }
    }

    fn expect(&mut self, sign: &'static str) -> Option<Offset> {
        if let Some(at) = self.take(sign) {
            return Some(at);
        }
        let next = self.peek().clone();
        let message = if next.token == Token::End {
            format!("Syntax error: missing '{sign}' at '<EOF>'")
        } else {
            format!("Syntax error: mismatched input '{}' expecting '{sign}'", next.text)
        };
        self.problem(next.at, message);
        None
    }

    fn whole(&mut self) -> Made {
        let root = self.expr()?;
        let next = self.peek().clone();
        if next.token != Token::End {
            let last = self.at + 2 >= self.tokens.len();
            let what = if last { "extraneous" } else { "mismatched" };
            self.problem(next.at, format!("Syntax error: {what} input '{}' expecting <EOF>", next.text));
            return None;
        }
        Some(root)
    }

    /// Runs a nested part unless the nesting is too deep.
    fn nested(&mut self, part: impl FnOnce(&mut Parser) -> Made) -> Made {
        if self.depth >= DEPTH_MAX {
            self.too_deep();
            return None;
        }
        self.depth += 1;
        let made = part(self);
        self.depth -= 1;
        made
    }

    fn expr(&mut self) -> Made {
        self.nested(|p| {
            let condition = p.or()?;
            let Some(at) = p.take("?") else { return Some(condition) };
            let id = p.reserve();
            let yes = p.or()?;
            p.expect(":")?;
            let no = p.expr()?;
            let kind = Kind::Call { function: "_?_:_".into(), target: None, args: vec![condition, yes, no] };
            p.made(id, at, kind)
        })
    }

    /// An id taken before the parts of its node are parsed.
    fn reserve(&mut self) -> usize {
        self.ids += 1;
        self.ids - 1
    }

    fn or(&mut self) -> Made {
        self.chain("||", "_||_", Parser::and)
    }

    fn and(&mut self) -> Made {
        self.chain("&&", "_&&_", Parser::relation)
    }

    /// A chain of one logical operator, as a balanced tree.
    fn chain(&mut self, sign: &'static str, function: &str, part: fn(&mut Parser) -> Made) -> Made {
        let mut terms = vec![part(self)?];
        let mut at = Vec::new();
        while let Some(offset) = self.take(sign) {
            at.push(offset);
            terms.push(part(self)?);
        }
        Some(self.balanced(function, terms, &at))
    }

    fn balanced(&mut self, function: &str, mut terms: Vec<Expr>, at: &[Offset]) -> Expr {
        if terms.len() == 1
            && let Some(only) = terms.pop()
        {
            return only;
        }
        // The operator in the middle joins what is on its two sides.
        let middle = (at.len() - 1) / 2;
        let right = terms.split_off(middle + 1);
        let left = self.balanced(function, terms, &at[..middle]);
        let right = self.balanced(function, right, &at[middle + 1..]);
        self.call(at[middle], function, vec![left, right])
    }

    /// Relations, sums and products, by precedence: parts of operators that bind at least as `from`.
    fn binary(&mut self, from: u8) -> Made {
        let mut left = self.unary()?;
        loop {
            let found = BINARY.iter().find(|(sign, _, level)| *level >= from && self.is(sign));
            let Some((_, function, level)) = found else { return Some(left) };
            let at = self.advance().at;
            let id = self.reserve();
            let right = self.binary(level + 1)?;
            let kind = Kind::Call { function: (*function).into(), target: None, args: vec![left, right] };
            left = self.made(id, at, kind)?;
        }
    }

    fn relation(&mut self) -> Made {
        self.binary(0)
    }

    fn unary(&mut self) -> Made {
        let (sign, function) = match &self.peek().token {
            Token::Sign("!") => ("!", "!_"),
            Token::Sign("-") => ("-", "-_"),
            _ => return self.member(),
        };
        let at = self.peek().at;
        let mut count = 0;
        while self.take(sign).is_some() {
            count += 1;
        }
        // A negative number is one literal.
        if sign == "-"
            && count == 1
            && let Token::Literal(literal @ (Literal::Int(_) | Literal::Double(_))) = &self.peek().token
        {
            let negative = match literal {
                Literal::Int(value) => Literal::Int(value.wrapping_neg()),
                Literal::Double(value) => Literal::Double(-value),
                other => other.clone(),
            };
            self.advance();
            let literal = self.node(at, Kind::Literal(negative));
            return self.postfix(literal);
        }
        if count % 2 == 0 {
            return self.member();
        }
        let id = self.reserve();
        let operand = self.nested(Parser::member)?;
        self.made(id, at, Kind::Call { function: function.into(), target: None, args: vec![operand] })
    }

    fn member(&mut self) -> Made {
        let first = self.primary()?;
        self.postfix(first)
    }

    fn postfix(&mut self, first: Expr) -> Made {
        let mut expr = first;
        loop {
            if let Some(at) = self.take(".") {
                let optional = self.take("?").is_some();
                let (field, quoted) = self.field_name()?;
                if !optional
                    && !quoted
                    && let Some(open) = self.take("(")
                {
                    let id = self.reserve();
                    let args = self.args(")")?;
                    expr = macros::member(self, id, open, expr, &field, args)?;
                } else if optional {
                    let id = self.reserve();
                    let name = self.node(at, Kind::Literal(Literal::String(field.into())));
                    let kind = Kind::Call { function: "_?._".into(), target: None, args: vec![expr, name] };
                    expr = self.made(id, at, kind)?;
                } else {
                    let kind = Kind::Select { operand: Box::new(expr), field, test: false };
                    let id = self.reserve();
                    expr = self.made(id, at, kind)?;
                }
            } else if let Some(at) = self.take("[") {
                let function = if self.take("?").is_some() { "_[?_]" } else { "_[_]" };
                let id = self.reserve();
                let index = self.expr()?;
                self.expect("]")?;
                let kind = Kind::Call { function: function.into(), target: None, args: vec![expr, index] };
                expr = self.made(id, at, kind)?;
            } else {
                return Some(expr);
            }
        }
    }

    fn field_name(&mut self) -> Option<(String, bool)> {
        let next = self.advance();
        match next.token {
            Token::Ident(name) => Some((name, false)),
            Token::Quoted(name) => Some((name, true)),
            // Keywords are names where only a name can stand.
            Token::Sign("in") => Some(("in".into(), false)),
            _ => {
                self.problem(
                    next.at,
                    format!("Syntax error: no viable alternative at input '.{}'", next.text),
                );
                None
            }
        }
    }

    /// Expressions up to the closing sign, which is taken.
    fn args(&mut self, close: &'static str) -> Option<Vec<Expr>> {
        let mut out = Vec::new();
        if self.take(close).is_some() {
            return Some(out);
        }
        loop {
            out.push(self.expr()?);
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect(close)?;
        Some(out)
    }

    fn primary(&mut self) -> Made {
        let next = self.advance();
        match next.token {
            Token::Literal(Literal::Int(i64::MIN)) => {
                self.problem(next.at, "invalid int literal");
                None
            }
            Token::Literal(literal) => Some(self.node(next.at, Kind::Literal(literal))),
            Token::Ident(name) => self.named(name, next.at),
            Token::Sign(".") => {
                let (name, _) = self.field_name()?;
                self.named(format!(".{name}"), next.at)
            }
            Token::Sign("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Some(inner)
            }
            Token::Sign("[") => self.list(next.at),
            Token::Sign("{") => self.map(next.at),
            other => {
                self.at = if other == Token::End { self.at } else { self.at - 1 };
                let what = "mismatched";
                let message = format!("Syntax error: {what} input '{}' expecting {OPERANDS}", next.text);
                self.problem(next.at, message);
                None
            }
        }
    }

    /// An identifier, a call or a message, by what follows the name.
    fn named(&mut self, name: String, at: Offset) -> Made {
        let plain = name.trim_start_matches('.');
        if RESERVED.contains(&plain) {
            self.problem(at, format!("reserved identifier: {plain}"));
            return None;
        }
        if let Some(open) = self.take("(") {
            let id = self.reserve();
            let args = self.args(")")?;
            return macros::global(self, id, open, &name, args);
        }
        if let Some((type_name, open)) = self.message_name(&name) {
            return self.message(type_name, open);
        }
        Some(self.node(at, Kind::Ident(name)))
    }

    /// `A.b.C{`: the qualified name of a message, when a brace follows it.
    fn message_name(&mut self, first: &str) -> Option<(String, Offset)> {
        let mut name = first.to_owned();
        let mut at = self.at;
        loop {
            match (&self.tokens[at].token, self.tokens.get(at + 1).map(|t| &t.token)) {
                (Token::Sign("{"), _) => {
                    let open = self.tokens[at].at;
                    self.at = at + 1;
                    return Some((name, open));
                }
                (Token::Sign("."), Some(Token::Ident(part))) => {
                    name.push('.');
                    name.push_str(part);
                    at += 2;
                }
                _ => return None,
            }
            if at >= self.tokens.len() {
                return None;
            }
        }
    }

    fn message(&mut self, name: String, open: Offset) -> Made {
        let id = self.reserve();
        let mut fields = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let (field, _) = self.field_name()?;
            let at = self.expect(":")?;
            let value = self.expr()?;
            fields.push(Field { at, name: field, value, optional });
            if self.take(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.made(id, open, Kind::Struct { name, fields })
    }

    fn list(&mut self, at: Offset) -> Made {
        let id = self.reserve();
        let (mut elements, mut optional) = (Vec::new(), Vec::new());
        while self.take("]").is_none() {
            optional.push(self.take("?").is_some());
            elements.push(self.expr()?);
            if self.take(",").is_none() {
                self.expect("]")?;
                break;
            }
        }
        self.made(id, at, Kind::List { elements, optional })
    }

    fn map(&mut self, at: Offset) -> Made {
        let id = self.reserve();
        let mut entries = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let key = self.expr()?;
            self.expect(":")?;
            let value = self.expr()?;
            entries.push(Entry { key, value, optional });
            if self.take(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.made(id, at, Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_and_where() {
        for (source, want) in [
            (
                "1 +",
                "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
            ),
            ("a b", "ERROR: <input>:1:3: Syntax error: extraneous input 'b' expecting <EOF>\n | a b\n | ..^"),
            ("while", "ERROR: <input>:1:1: reserved identifier: while\n | while\n | ^"),
            (
                "[1].all(2, true)",
                "ERROR: <input>:1:9: argument must be a simple name\n | [1].all(2, true)\n | ........^",
            ),
            ("has(x)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(x)\n | ....^"),
        ] {
            assert_eq!(parse(source).unwrap_err(), want, "{source}");
        }
    }

    #[test]
    fn is_bounded() {
        for source in ["(".repeat(5000), "-1+".repeat(5000) + "1", "[".repeat(5000), "a.".repeat(5000) + "b"]
        {
            assert!(parse(&source).is_err());
        }
        assert!(parse(&(vec!["a == 1"; 2000].join(" && "))).is_ok());
    }
}
