//! Macros: calls that are rewritten into loops and tests when they are parsed.

use crate::parser::Parser;
use crate::syntax::{ACCUMULATOR, Comprehension, Expr, Kind, Literal, Offset};

type Made = Option<Expr>;

/// A call without a receiver.
pub(crate) fn global(parser: &mut Parser, id: usize, at: Offset, name: &str, mut args: Vec<Expr>) -> Made {
    if name == "has" && args.len() == 1 {
        let arg = args.remove(0);
        return match arg.kind {
            Kind::Select { operand, field, .. } => {
                parser.made(id, at, Kind::Select { operand, field, test: true })
            }
            _ => {
                parser.problem(arg.at, "invalid argument to has() macro");
                None
            }
        };
    }
    parser.made(id, at, Kind::Call { function: name.to_owned(), target: None, args })
}

/// A call on a receiver.
pub(crate) fn member(
    parser: &mut Parser,
    id: usize,
    at: Offset,
    target: Expr,
    name: &str,
    mut args: Vec<Expr>,
) -> Made {
    let looped = matches!(
        (name, args.len()),
        ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2)
            | ("map", 2 | 3)
            | ("all" | "exists" | "exists_one" | "existsOne", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4)
    );
    if matches!((name, args.len()), ("optMap" | "optFlatMap", 2)) {
        let body = args.pop()?;
        let var = variable(parser, &args[0], &format!("{name}() variable name must be a simple identifier"))?;
        return Some(optional(parser, at, target, name == "optFlatMap", var, body));
    }
    if name == "sortBy" && args.len() == 2 {
        return sort_by(parser, at, target, args);
    }
    if !looped {
        let kind = Kind::Call { function: name.to_owned(), target: Some(Box::new(target)), args };
        return parser.made(id, at, kind);
    }
    let two = (matches!(name, "all" | "exists" | "exists_one" | "existsOne") && args.len() == 3)
        || name.starts_with("transform");
    let mut rest = args.split_off(if two { 2 } else { 1 });
    let var = simple_name(parser, &args[0])?;
    let var2 = if two { Some(simple_name(parser, &args[1])?) } else { None };
    if var2.as_ref() == Some(&var) {
        parser.problem(args[1].at, format!("duplicate variable name: {var}"));
        return None;
    }
    let body = rest.pop()?;
    let filter = rest.pop();
    let mut make = Loop { parser, at };
    let looped = match name {
        "all" => {
            let accu = make.literal(Literal::Bool(true));
            let seen = make.accumulator();
            let condition = make.call("@not_strictly_false", vec![seen]);
            let seen = make.accumulator();
            let step = make.call("_&&_", vec![seen, body]);
            (accu, condition, step, make.accumulator())
        }
        "exists" => {
            let accu = make.literal(Literal::Bool(false));
            let seen = make.accumulator();
            let not = make.call("!_", vec![seen]);
            let condition = make.call("@not_strictly_false", vec![not]);
            let seen = make.accumulator();
            let step = make.call("_||_", vec![seen, body]);
            (accu, condition, step, make.accumulator())
        }
        "exists_one" | "existsOne" => {
            let accu = make.literal(Literal::Int(0));
            let condition = make.literal(Literal::Bool(true));
            let seen = make.accumulator();
            let one = make.literal(Literal::Int(1));
            let more = make.call("_+_", vec![seen, one]);
            let same = make.accumulator();
            let step = make.call("_?_:_", vec![body, more, same]);
            let seen = make.accumulator();
            let one = make.literal(Literal::Int(1));
            (accu, condition, step, make.call("_==_", vec![seen, one]))
        }
        "transformMap" | "transformMapEntry" => {
            let accu = make.parser.node(at, Kind::Map(Vec::new()));
            let condition = make.literal(Literal::Bool(true));
            let seen = make.accumulator();
            let insert = if name == "transformMap" {
                let key = make.parser.node(at, Kind::Ident(var.clone()));
                vec![seen, key, body]
            } else {
                vec![seen, body]
            };
            let step = make.call("cel.@mapInsert", insert);
            let step = make.filtered(filter, step);
            (accu, condition, step, make.accumulator())
        }
        // map, filter and transformList gather a list.
        _ => {
            let accu = make.list(Vec::new());
            let condition = make.literal(Literal::Bool(true));
            let (filter, element) = if name == "filter" {
                (Some(body), make.parser.node(args[0].at, Kind::Ident(var.clone())))
            } else {
                (filter, body)
            };
            let seen = make.accumulator();
            let added = make.list(vec![element]);
            let step = make.call("_+_", vec![seen, added]);
            let step = make.filtered(filter, step);
            (accu, condition, step, make.accumulator())
        }
    };
    let (accu, condition, step, result) = looped;
    let kind = Kind::Comprehension(Box::new(Comprehension {
        range: target,
        var,
        var2,
        accu_var: ACCUMULATOR.to_owned(),
        accu,
        condition,
        step,
        result,
    }));
    parser.made(id, at, kind)
}

fn variable(parser: &mut Parser, arg: &Expr, otherwise: &str) -> Option<String> {
    match &arg.kind {
        Kind::Ident(name) if !name.starts_with('.') => Some(name.clone()),
        _ => {
            parser.problem(arg.at, otherwise);
            None
        }
    }
}

fn simple_name(parser: &mut Parser, arg: &Expr) -> Option<String> {
    let name = variable(parser, arg, "argument must be a simple name")?;
    if name == "__result__" {
        parser.problem(arg.at, "iteration variable overwrites accumulator variable");
        return None;
    }
    Some(name)
}

struct Loop<'a> {
    parser: &'a mut Parser,
    at: Offset,
}

impl Loop<'_> {
    fn literal(&mut self, literal: Literal) -> Expr {
        self.parser.node(self.at, Kind::Literal(literal))
    }

    fn accumulator(&mut self) -> Expr {
        self.parser.node(self.at, Kind::Ident(ACCUMULATOR.to_owned()))
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.parser.call(self.at, function, args)
    }

    fn list(&mut self, elements: Vec<Expr>) -> Expr {
        let optional = vec![false; elements.len()];
        self.parser.node(self.at, Kind::List { elements, optional })
    }

    /// `filter ? step : accumulator`
    fn filtered(&mut self, filter: Option<Expr>, step: Expr) -> Expr {
        let Some(filter) = filter else { return step };
        let same = self.accumulator();
        self.call("_?_:_", vec![filter, step, same])
    }

    /// `result` with `value` bound to `name`: a loop over nothing.
    fn bind(&mut self, name: &str, value: Expr, result: Expr) -> Expr {
        let range = self.list(Vec::new());
        let condition = self.literal(Literal::Bool(false));
        let step = self.parser.node(self.at, Kind::Ident(name.to_owned()));
        let bound = Comprehension {
            range,
            var: "#unused".to_owned(),
            var2: None,
            accu_var: name.to_owned(),
            accu: value,
            condition,
            step,
            result,
        };
        self.parser.node(self.at, Kind::Comprehension(Box::new(bound)))
    }

    fn on(&mut self, target: Expr, function: &str, args: Vec<Expr>) -> Expr {
        let kind = Kind::Call { function: function.to_owned(), target: Some(Box::new(target)), args };
        self.parser.node(self.at, kind)
    }
}

fn optional(parser: &mut Parser, at: Offset, target: Expr, flat: bool, var: String, body: Expr) -> Expr {
    let mut make = Loop { parser, at };
    let has = make.on(target.clone(), "hasValue", Vec::new());
    let value = make.on(target, "value", Vec::new());
    let bound = make.bind(&var, value, body);
    let some = if flat { bound } else { make.call("optional.of", vec![bound]) };
    let none = make.call("optional.none", Vec::new());
    make.call("_?_:_", vec![has, some, none])
}

/// `target.sortBy(x, key)`: the keys are gathered by a loop over the bound target.
fn sort_by(parser: &mut Parser, at: Offset, target: Expr, mut args: Vec<Expr>) -> Made {
    const SORTED: &str = "@__sortBy_input__";
    let plain = matches!(
        target.kind,
        Kind::List { .. } | Kind::Select { .. } | Kind::Ident(_) | Kind::Comprehension(_) | Kind::Call { .. }
    );
    if !plain {
        parser.problem(
            target.at,
            "sortBy can only be applied to a list, identifier, comprehension, call or select expression",
        );
        return None;
    }
    let key = args.pop()?;
    let var = simple_name(parser, &args[0])?;
    let make = Loop { parser, at };
    let input = make.parser.node(at, Kind::Ident(SORTED.to_owned()));
    let var_node = make.parser.node(at, Kind::Ident(var));
    let map_id = make.parser.node(at, Kind::Literal(Literal::Null)).id;
    let keys = member(make.parser, map_id, at, input, "map", vec![var_node, key])?;
    let mut make = Loop { parser, at };
    let input = make.parser.node(at, Kind::Ident(SORTED.to_owned()));
    let sorted = make.on(input, "@sortByAssociatedKeys", vec![keys]);
    Some(make.bind(SORTED, target, sorted))
}
