//! What evaluation costs: estimated before it runs, from how large data may be, and counted while it does.
//!
//! The unit is a simple operation. Both ways must agree with cel-go's and Kubernetes' figures, since limits on them decide
//! which expressions are accepted and when evaluation is cut off.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checker::Facts;
use crate::declarations::{CIDR, FORMAT, FORMATS, IP, Overload, QUANTITY, SEMVER, URL};
use crate::syntax::{ACCUMULATOR, Comprehension, Expr, Kind, Literal};
use crate::types::{Decl, Type};
use crate::value::{List, Value};

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const MESSAGE: u64 = 40;
const TRAVERSE: f64 = 0.1;
const PATTERN: f64 = 0.25;
/// An authorization check: two of them exhaust an expression.
const CHECK: u64 = 350_000;
const FORMAT_PATTERN_MAX: f64 = 128.0;

/// A cost, or a size, from least to most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
    const ONE: Range = Range { min: 1, max: 1 };

    pub const fn fixed(n: u64) -> Range {
        Range { min: n, max: n }
    }

    fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Range) -> Range {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Range {
        // Casting saturates, as it must here.
        let scale = |n: u64| (n as f64 * factor).ceil() as u64;
        Range { min: scale(self.min), max: scale(self.max) }
    }

    fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// The sizes of what a container holds.
#[derive(Clone, Copy)]
struct EntrySize {
    list: bool,
    key: Range,
    value: Range,
}

impl EntrySize {
    fn union(self, other: EntrySize) -> EntrySize {
        EntrySize { list: self.list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

/// Where in declared data a node leads; `At(None)` is a way that the declaration does not know.
#[derive(Clone)]
enum Place {
    Nowhere,
    At(Option<Arc<Decl>>),
}

struct Local {
    name: String,
    place: Place,
    size: Option<Range>,
    entry: Option<EntrySize>,
}

/// The least and most an expression may cost when every variable is data that `root` describes.
pub fn estimate(root: &Expr, facts: &Facts, data: Option<&Arc<Decl>>) -> Range {
    let mut estimator = Estimator {
        facts,
        data,
        places: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: vec![],
    };
    estimator.cost(root)
}

struct Estimator<'a> {
    facts: &'a Facts,
    data: Option<&'a Arc<Decl>>,
    places: HashMap<usize, Place>,
    sizes: HashMap<usize, Range>,
    entries: HashMap<usize, EntrySize>,
    locals: Vec<Local>,
}

impl Estimator<'_> {
    fn ty(&self, expr: &Expr) -> &Type {
        &self.facts.types[expr.id]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn place(&self, expr: &Expr) -> Place {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.place.clone();
        }
        self.places.get(&expr.id).cloned().unwrap_or(Place::Nowhere)
    }

    fn below(&self, expr: &Expr, step: impl FnOnce(&Decl) -> Option<Arc<Decl>>) -> Place {
        match self.place(expr) {
            // A way that begins nowhere begins with this step.
            Place::Nowhere => Place::At(None),
            Place::At(None) => Place::At(None),
            Place::At(Some(decl)) => Place::At(step(&decl)),
        }
    }

    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) => Range::default(),
            Kind::Ident(name) => {
                let place = match self.local(name) {
                    Some(local) => local.place.clone(),
                    None => Place::At(self.data.cloned()),
                };
                self.places.insert(expr.id, place);
                Range::ONE
            }
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let mut sum = self.cost(operand);
                if matches!(
                    self.ty(operand),
                    Type::Map(..) | Type::Object(_) | Type::Open(_) | Type::Var(_) | Type::Param(_)
                ) {
                    sum = sum.plus(Range::ONE);
                }
                let place = self.below(operand, |d| d.field(field).map(|f| f.decl.clone()));
                self.places.insert(expr.id, place);
                sum
            }
            Kind::Call { .. } => self.cost_call(expr),
            Kind::List { elements, .. } => {
                let mut sum = Range::default();
                let mut item = Range { min: if elements.is_empty() { 0 } else { u64::MAX }, max: 0 };
                for element in elements {
                    sum = sum.plus(self.cost(element));
                    item = item.union(self.size_or_unknown(element));
                }
                self.entries.insert(expr.id, EntrySize { list: true, key: Range::ONE, value: item });
                sum.plus(Range::fixed(LIST))
            }
            Kind::Map(entries) => {
                let mut sum = Range::default();
                let start = Range { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut keys, mut values) = (start, start);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    keys = keys.union(self.size_or_unknown(&entry.key));
                    values = values.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(expr.id, EntrySize { list: false, key: keys, value: values });
                sum.plus(Range::fixed(MAP))
            }
            Kind::Struct { fields, .. } => {
                let sum = fields.iter().fold(Range::default(), |sum, f| sum.plus(self.cost(&f.value)));
                sum.plus(Range::fixed(MESSAGE))
            }
            Kind::Comprehension(c) if is_bind(c) => {
                let mut sum = self.cost(&c.range).plus(self.cost(&c.accu));
                self.push(&c.accu_var, self.place(&c.accu), self.size(&c.accu), self.entry(&c.accu));
                sum = sum.plus(self.cost(&c.result));
                self.locals.pop();
                if let Some(size) = self.size(&c.result) {
                    self.sizes.insert(expr.id, size);
                }
                if let Some(entry) = self.entry(&c.result) {
                    self.entries.insert(expr.id, entry);
                }
                sum
            }
            Kind::Comprehension(c) => self.cost_loop(expr, c),
        }
    }

    fn push(&mut self, name: &str, place: Place, size: Option<Range>, entry: Option<EntrySize>) {
        self.locals.push(Local { name: name.to_owned(), place, size, entry });
    }

    fn cost_loop(&mut self, expr: &Expr, c: &Comprehension) -> Range {
        let mut sum = self.cost(&c.range).plus(self.cost(&c.accu));
        let (place, size, entry) = (self.place(&c.accu), self.size(&c.accu), self.entry(&c.accu));
        self.push(&c.accu_var, place, size, entry);
        let entry = self.entry(&c.range);
        let is_list = entry.map_or_else(|| matches!(self.ty(&c.range), Type::List(_)), |e| e.list);
        let keys = Place::At(match self.place(&c.range) {
            Place::At(Some(decl)) if !is_list && decl.element().is_some() => key_decl(),
            _ => None,
        });
        let values = self.below(&c.range, |d| d.element().cloned());
        match &c.var2 {
            Some(var2) => {
                let first = if is_list { Place::At(None) } else { keys };
                self.push(&c.var, first, entry.map(|e| e.key), None);
                self.push(var2, values, entry.map(|e| e.value), None);
            }
            None if is_list => self.push(&c.var, values, entry.map(|e| e.value), None),
            None => self.push(&c.var, keys, entry.map(|e| e.key), None),
        }
        let each = self.cost(&c.condition).plus(self.cost(&c.step));
        self.locals.pop();
        if c.var2.is_some() {
            self.locals.pop();
        }
        sum = sum.plus(self.cost(&c.result));
        self.locals.pop();
        let count = self.size_or_unknown(&c.range);
        sum = sum.plus(count.times(each));
        match &c.accu.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&c.accu) {
                    self.sizes.insert(expr.id, size);
                }
            }
            Kind::List { .. } | Kind::Map(_) => {
                self.sizes.insert(expr.id, count);
                if let Some(entry) = self.entry(&c.step) {
                    self.entries.insert(expr.id, entry);
                }
            }
            _ => {}
        }
        sum
    }

    fn cost_call(&mut self, expr: &Expr) -> Range {
        let Kind::Call { function, target, args } = &expr.kind else { return Range::default() };
        if function == "dyn" && args.len() == 1 {
            let cost = self.cost(&args[0]);
            if let Some(size) = self.size(&args[0]) {
                self.sizes.insert(expr.id, size);
            }
            if let Some(entry) = self.entry(&args[0]) {
                self.entries.insert(expr.id, entry);
            }
            return cost.plus(Range::ONE);
        }
        let costs: Vec<Range> = args.iter().map(|a| self.cost(a)).collect();
        let Some(overloads) = self.facts.overloads.get(&expr.id) else { return Range::default() };
        let overloads = overloads.clone();
        let sum = target.as_ref().map_or(Range::default(), |t| self.cost(t));
        let mut cost = Range { min: u64::MAX, max: 0 };
        let mut result: Option<Range> = None;
        for overload in overloads {
            let (this, size) = self.cost_overload(expr, function, overload, target.as_deref(), args, &costs);
            cost = cost.union(this);
            if let Some(size) = size {
                result = Some(result.map_or(size, |r| r.union(size)));
            }
            match overload.id {
                "index_list" | "index_map" => {
                    result = self.entry(&args[0]).map(|e| e.value);
                    let place = self.below(&args[0], |d| d.element().cloned());
                    self.places.insert(expr.id, place);
                }
                _ => {}
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        if let Some(result) = result {
            self.sizes.insert(expr.id, result);
        }
        sum.plus(cost)
    }

    /// The cost of one overload, arguments included, and the size of what it yields.
    fn cost_overload(
        &mut self,
        expr: &Expr,
        function: &str,
        overload: &Overload,
        target: Option<&Expr>,
        args: &[Expr],
        costs: &[Range],
    ) -> (Range, Option<Range>) {
        let of_args = costs.iter().fold(Range::default(), |sum, c| sum.plus(*c));
        if let Some((cost, size)) = self.cost_of_lists(overload.id, target, args) {
            return (cost.plus(of_args), size);
        }
        if let Some((cost, size)) = self.cost_of_kubernetes(function, overload.id, target, args) {
            return (cost.plus(of_args), size);
        }
        let (cost, size) = match (overload.id, target, args) {
            ("string_format", Some(target), _) => (self.size_or_unknown(target).scaled(TRAVERSE), None),
            ("string_to_bytes", _, [arg]) => {
                let size = self.size_or_unknown(arg);
                (size.scaled(TRAVERSE), Some(Range { min: size.min, max: size.max.saturating_mul(4) }))
            }
            ("bytes_to_string", _, [arg]) => {
                let size = self.size_or_unknown(arg);
                (size.scaled(TRAVERSE), Some(Range { min: size.min / 4, max: size.max }))
            }
            ("strings_quote", _, [arg]) => {
                let size = self.size_or_unknown(arg);
                let quoted = Range {
                    min: size.min.saturating_add(2),
                    max: size.max.saturating_mul(2).saturating_add(2),
                };
                (size.scaled(TRAVERSE), Some(quoted))
            }
            ("starts_with_string" | "ends_with_string", _, [arg]) => {
                (self.size_or_unknown(arg).scaled(TRAVERSE), None)
            }
            ("in_list", _, [_, list]) => (self.size_or_unknown(list).scaled(1.0), None),
            ("matches_string", Some(target), [pattern]) => (self.cost_of_pattern(target, pattern), None),
            ("contains_string", Some(target), [part]) => {
                let text = self.size_or_unknown(target).scaled(TRAVERSE);
                (text.times(self.size_or_unknown(part).scaled(TRAVERSE)), None)
            }
            ("logical_or" | "logical_and", _, [_, _]) => {
                return (Range { min: costs[0].min, max: costs[0].plus(costs[1]).max }, None);
            }
            ("conditional", _, [_, yes, no]) => {
                let size = self.size_or_unknown(yes).union(self.size_or_unknown(no));
                if let (Some(a), Some(b)) = (self.entry(yes), self.entry(no)) {
                    self.entries.insert(expr.id, a.union(b));
                }
                return (costs[0].plus(costs[1].union(costs[2])), Some(size));
            }
            ("add_string" | "add_bytes" | "add_list", _, [left, right]) => {
                let size = self.size_or_unknown(left).plus(self.size_or_unknown(right));
                if let (Some(a), Some(b)) = (self.entry(left), self.entry(right)) {
                    self.entries.insert(expr.id, a.union(b));
                }
                let cost = if overload.id == "add_list" { Range::ONE } else { size.scaled(TRAVERSE) };
                (cost, Some(size))
            }
            (id, _, [left, right])
                if matches!(id, "equals" | "not_equals")
                    || (is_order(id) && (id.ends_with("_string") || id.ends_with("_bytes"))) =>
            {
                let most = self.size_or_unknown(left).max.min(self.size_or_unknown(right).max);
                (Range { min: u64::from(most > 0), max: most }.scaled(TRAVERSE), None)
            }
            _ => (Range::ONE, None),
        };
        (cost.plus(of_args), size)
    }

    fn cost_of_pattern(&mut self, text: &Expr, pattern: &Expr) -> Range {
        let text = self.size_or_unknown(text).plus(Range::ONE).scaled(TRAVERSE);
        text.times(self.size_or_unknown(pattern).scaled(PATTERN))
    }

    fn cost_of_lists(
        &mut self,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<(Range, Option<Range>)> {
        let int = |arg: &Expr, otherwise: u64| match &arg.kind {
            Kind::Literal(Literal::Int(n)) => u64::try_from(*n).unwrap_or(0),
            _ => otherwise,
        };
        let (factor, size) = match (id, target, args) {
            ("list_slice", Some(list), [from, to]) => {
                let most = self.size_or_unknown(list).max;
                (1.0, Range::fixed(int(to, most).saturating_sub(int(from, 0))))
            }
            ("lists_range", None, [n]) => (1.0, Range::fixed(int(n, u64::MAX))),
            ("list_reverse", Some(list), []) => (1.0, self.size_or_unknown(list)),
            ("list_flatten", Some(list), []) => (1.0, self.size_or_unknown(list)),
            ("list_flatten_int", Some(list), [depth]) => {
                (int(depth, u64::MAX) as f64, self.size_or_unknown(list))
            }
            ("list_distinct", Some(list), []) => {
                let size = self.size_or_unknown(list);
                (2.0, size.times(size))
            }
            (id, Some(list), _) if id.ends_with("_sort") || id.ends_with("_sortByAssociatedKeys") => {
                let sorted = args.first().unwrap_or(list);
                let size = self.size_or_unknown(sorted);
                let texts = id.starts_with("list_string_") || id.starts_with("list_bytes_");
                (if texts { 2.0 + TRAVERSE } else { 2.0 }, size.times(size))
            }
            _ => return None,
        };
        Some((size.scaled(factor).plus(Range::fixed(1 + LIST)), Some(size)))
    }

    fn cost_of_kubernetes(
        &mut self,
        function: &str,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<(Range, Option<Range>)> {
        let no_size = |cost: Range| Some((cost, None));
        match function {
            "check" => no_size(Range::fixed(CHECK)),
            "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
            | "allowed" | "reason" | "error" | "errored" => no_size(Range::ONE),
            "fieldSelector" | "labelSelector" if args.len() == 1 => {
                no_size(cost_of_selector(self.size_or_unknown(&args[0])))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let target = target?;
                let size = self.size_or_unknown(target);
                let Type::List(element) = self.ty(target) else {
                    return no_size(size.scaled(TRAVERSE));
                };
                let mut each = Range::ONE;
                if matches!(**element, Type::String | Type::Bytes) {
                    let known = self.element_size(target).unwrap_or(Range::UNKNOWN);
                    each = each.plus(known.scaled(TRAVERSE));
                }
                no_size(size.times(each))
            }
            "url" | "jsonpatch.escapeKey" if args.len() == 1 => {
                let size = self.size_or_unknown(&args[0]);
                Some((size.scaled(TRAVERSE), Some(size)))
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                let size = self.size_or_unknown(target?);
                Some((size.scaled(TRAVERSE), Some(size)))
            }
            "replace" if args.len() >= 2 => {
                let size = self.size_or_unknown(target?);
                let (old, new) = (self.size_or_unknown(&args[0]), self.size_or_unknown(&args[1]));
                let (mut count, mut kept) = (Range::default(), Range::default());
                if old.min == 0 {
                    count.max = size.max.saturating_add(1);
                    kept.max = size.max;
                } else if new.max <= old.min {
                    kept.max = size.max;
                } else {
                    count.max = (size.max as f64 / old.min as f64).ceil() as u64;
                }
                if old.max == 0 {
                    count.min = size.min.saturating_add(1);
                    kept.min = size.min;
                } else if old.max <= new.min {
                    kept.min = size.min;
                } else {
                    count.min = (size.min as f64 / old.max as f64).ceil() as u64;
                }
                Some((size.scaled(2.0 * TRAVERSE), Some(count.times(new).plus(kept))))
            }
            "split" => {
                let size = self.size_or_unknown(target?);
                let most = match args.get(1).map(|a| &a.kind) {
                    Some(Kind::Literal(Literal::Int(n))) => *n as u64,
                    _ => size.max,
                };
                Some((size.scaled(2.0 * TRAVERSE), Some(Range { min: 0, max: most })))
            }
            "join" => {
                let target = target?;
                let list = self.size_or_unknown(target);
                let mut size = Range::default();
                if matches!(self.ty(target), Type::List(_)) {
                    size = list.times(self.element_size(target).unwrap_or(Range::UNKNOWN));
                }
                if let Some(separator) = args.first() {
                    let gaps = Range { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                    size = size.plus(self.size_or_unknown(separator).times(gaps));
                }
                Some((size.scaled(TRAVERSE), Some(size)))
            }
            "find" | "findAll" if !args.is_empty() => {
                let target = target?;
                let most = self.size_or_unknown(target).max;
                Some((self.cost_of_pattern(target, &args[0]), Some(Range { min: 0, max: most })))
            }
            "ip" if id == "cidr_ip" => no_size(Range::ONE),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver"
                if !args.is_empty() =>
            {
                no_size(self.size_or_unknown(&args[0]).scaled(TRAVERSE))
            }
            "ip.isCanonical" if !args.is_empty() => {
                no_size(self.size_or_unknown(&args[0]).scaled(2.0 * TRAVERSE))
            }
            "containsIP" | "containsCIDR" if !args.is_empty() => {
                let size = Range { min: 4, max: 16 };
                let mut cost = size.plus(size).scaled(TRAVERSE);
                if function == "containsCIDR" {
                    cost = cost.plus(size.scaled(TRAVERSE)).plus(Range::ONE);
                }
                if id.ends_with("_string") {
                    cost = cost.plus(self.size_or_unknown(&args[0]).scaled(TRAVERSE));
                }
                no_size(cost)
            }
            "validate" if !args.is_empty() => {
                no_size(self.size_or_unknown(&args[0]).scaled(TRAVERSE).scaled(FORMAT_PATTERN_MAX * PATTERN))
            }
            "_==_" if args.len() == 2 => {
                let (left, right) = (self.ty(&args[0]), self.ty(&args[1]));
                match left {
                    Type::Opaque(name) if left.same(right) => match *name {
                        FORMAT => no_size(Range { min: 1, max: 64 }.scaled(TRAVERSE)),
                        URL => {
                            let most = self.size(&args[1]).map_or(1, |s| s.max);
                            no_size(Range { min: 1, max: most }.scaled(TRAVERSE))
                        }
                        _ => no_size(Range::ONE),
                    },
                    _ => None,
                }
            }
            _ if is_accessor(function) => no_size(Range::ONE),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    fn size(&self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        match &expr.kind {
            Kind::Literal(Literal::String(s)) => return Some(Range::fixed(s.chars().count() as u64)),
            Kind::Literal(Literal::Bytes(b)) => return Some(Range::fixed(b.len() as u64)),
            Kind::Literal(_) => return Some(Range::ONE),
            Kind::List { elements, .. } => return Some(Range::fixed(elements.len() as u64)),
            Kind::Map(entries) => return Some(Range::fixed(entries.len() as u64)),
            _ => {}
        }
        if let Place::At(Some(decl)) = self.place(expr) {
            return Some(Range { min: 0, max: decl.max_elements });
        }
        if self.ty(expr).is_scalar() {
            return Some(Range::ONE);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(entry) = self.entries.get(&expr.id) {
            return Some(*entry);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.entry),
            _ => None,
        }
    }

    /// The size of a list's elements, from the declaration only.
    fn element_size(&self, list: &Expr) -> Option<Range> {
        if matches!(&list.kind, Kind::Ident(name) if name == ACCUMULATOR) {
            return None;
        }
        match self.place(list) {
            Place::At(Some(decl)) => decl.element().map(|d| Range { min: 0, max: d.max_elements }),
            _ => None,
        }
    }
}

/// The declaration of a map's keys, which upstream takes for empty texts.
fn key_decl() -> Option<Arc<Decl>> {
    static KEY: std::sync::LazyLock<Arc<Decl>> = std::sync::LazyLock::new(|| {
        Arc::new(Decl { kind: crate::types::DeclKind::String, nullable: false, max_elements: 0, min_size: 2 })
    });
    Some(KEY.clone())
}

fn is_bind(c: &Comprehension) -> bool {
    c.accu_var != ACCUMULATOR
        && matches!(&c.range.kind, Kind::List { elements, .. } if elements.is_empty())
        && matches!(c.condition.kind, Kind::Literal(Literal::Bool(false)))
}

fn is_order(id: &str) -> bool {
    id.starts_with("less_") || id.starts_with("greater_")
}

fn is_accessor(function: &str) -> bool {
    matches!(
        function,
        "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery"
    )
}

fn cost_of_selector(length: Range) -> Range {
    Range::fixed(LIST).plus(length.scaled(TRAVERSE)).plus(length.scaled(0.5).scaled((LIST + MESSAGE) as f64))
}

fn size(value: &Value<'_>) -> u64 {
    match value {
        Value::Optional(Some(inner)) => size(inner),
        other => other.size().map_or(1, |n| n as u64),
    }
}

fn scaled(n: u64, factor: f64) -> u64 {
    (n as f64 * factor).ceil() as u64
}

/// What a call cost; `overload` is empty where the types did not decide it.
pub fn of_call(function: &str, overload: &str, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    if let Some(cost) = of_list_call(overload, args, result) {
        return cost;
    }
    let of = |i: usize| args.get(i).map_or(1, size);
    match function {
        "check" => return CHECK,
        "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
        | "allowed" | "reason" | "error" | "errored" => return 1,
        "fieldSelector" | "labelSelector" if args.len() >= 2 => {
            return cost_of_selector(Range::fixed(of(1))).max;
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            return args.first().map_or(0, traversal);
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => return scaled(of(0), TRAVERSE),
        "replace" | "split" | "ip.isCanonical" => return scaled(of(0), 2.0 * TRAVERSE),
        "join" => return scaled(size(result), 2.0 * TRAVERSE),
        "find" | "findAll" => return scaled(of(0) + 1, TRAVERSE) * scaled(of(1), PATTERN),
        "ip" => return if overload == "cidr_ip" { 1 } else { scaled(of(0), TRAVERSE) },
        "containsIP" | "containsCIDR" => {
            let mut cost = scaled(2 * of(0), TRAVERSE);
            if function == "containsCIDR" {
                cost += scaled(of(0), TRAVERSE) + 1;
            }
            if overload.ends_with("_string") {
                cost += scaled(of(1), TRAVERSE);
            }
            return cost;
        }
        "validate" => {
            if let Some(Value::Format(i)) = args.first() {
                let pattern = FORMATS.get(*i).map_or(0, |f| f.1);
                return scaled(of(1) + 1, TRAVERSE) * scaled(pattern, PATTERN);
            }
        }
        "_==_" => {
            if let Some(Type::Opaque(name)) = args.first().map(Value::ty)
                && [QUANTITY, IP, CIDR, FORMAT, URL, SEMVER].contains(&name)
            {
                return 1;
            }
        }
        _ if is_accessor(function) => return 1,
        _ => {}
    }
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scaled(of(0), TRAVERSE),
        "in_list" => of(1),
        "equals" | "not_equals" => scaled(of(0).min(of(1)), TRAVERSE),
        id if is_order(id) && (id.ends_with("_string") || id.ends_with("_bytes")) => {
            scaled(of(0).min(of(1)), TRAVERSE)
        }
        "add_string" | "add_bytes" => scaled(of(0) + of(1), TRAVERSE),
        "matches_string" => scaled(of(0) + 1, TRAVERSE) * scaled(of(1), PATTERN),
        "contains_string" => scaled(of(0), TRAVERSE) * scaled(of(1), TRAVERSE),
        _ => 1,
    }
}

fn of_list_call(overload: &str, args: &[Value<'_>], result: &Value<'_>) -> Option<u64> {
    let allocating = |factor: f64, n: u64| Some((n as f64 * factor) as u64 + 1 + LIST);
    match overload {
        "list_slice" | "lists_range" | "list_reverse" => allocating(1.0, size(result)),
        "list_flatten" => allocating(1.0, size(args.first()?)),
        "list_flatten_int" => match args {
            [list, Value::Int(depth)] => allocating(*depth as f64, size(list)),
            _ => None,
        },
        id if id == "list_distinct" || id.ends_with("_sort") || id.ends_with("_sortByAssociatedKeys") => {
            let list = if id.ends_with("Keys") { args.get(1)? } else { args.first()? };
            let n = size(list);
            let texts = match list {
                Value::List(list) => matches!(list.get(0), Some(Value::String(_) | Value::Bytes(_))),
                _ => false,
            };
            allocating(if texts { 2.0 + TRAVERSE } else { 2.0 }, n.saturating_mul(n))
        }
        _ => None,
    }
}

/// The cost of looking at every part of a value.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => (s.len() as f64 * TRAVERSE) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSE) as u64,
        Value::List(list) => traverse_list(list),
        Value::Map(map) => map.entries().iter().map(|(k, v)| traversal(k) + traversal(v)).sum(),
        _ => 1,
    }
}

fn traverse_list(list: &List<'_>) -> u64 {
    list.iter().map(|v| traversal(&v)).sum()
}
