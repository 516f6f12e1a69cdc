//! The functions expressions may call: names, overloads and their types, as a table.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::types::Type;

#[derive(Debug)]
pub struct Overload {
    pub id: &'static str,
    /// Called on a receiver, which is the first argument.
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    pub generic: bool,
}

#[derive(Debug, Default)]
pub struct Function {
    pub overloads: Vec<Overload>,
}

pub const IP: &str = "net.IP";
pub const CIDR: &str = "net.CIDR";
pub const URL: &str = "kubernetes.URL";
pub const QUANTITY: &str = "kubernetes.Quantity";
pub const SEMVER: &str = "kubernetes.Semver";
pub const FORMAT: &str = "kubernetes.NamedFormat";
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
pub const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
pub const DECISION: &str = "kubernetes.authorization.Decision";

/// `overload function(argument, …) result`; a leading dot makes it a member. Capital letters are type parameters,
/// `[A]` is a list, `{A:B}` a map, `?A` an optional.
const TABLE: &str = "
conditional _?_:_(bool,A,A) A
logical_and _&&_(bool,bool) bool
logical_or _||_(bool,bool) bool
logical_not !_(bool) bool
not_strictly_false @not_strictly_false(bool) bool
equals _==_(A,A) bool
not_equals _!=_(A,A) bool
add_bytes _+_(bytes,bytes) bytes
add_double _+_(double,double) double
add_duration_duration _+_(duration,duration) duration
add_duration_timestamp _+_(duration,timestamp) timestamp
add_timestamp_duration _+_(timestamp,duration) timestamp
add_int64 _+_(int,int) int
add_list _+_([A],[A]) [A]
add_string _+_(string,string) string
add_uint64 _+_(uint,uint) uint
divide_double _/_(double,double) double
divide_int64 _/_(int,int) int
divide_uint64 _/_(uint,uint) uint
modulo_int64 _%_(int,int) int
modulo_uint64 _%_(uint,uint) uint
multiply_double _*_(double,double) double
multiply_int64 _*_(int,int) int
multiply_uint64 _*_(uint,uint) uint
negate_double -_(double) double
negate_int64 -_(int) int
subtract_double _-_(double,double) double
subtract_duration_duration _-_(duration,duration) duration
subtract_int64 _-_(int,int) int
subtract_timestamp_duration _-_(timestamp,duration) timestamp
subtract_timestamp_timestamp _-_(timestamp,timestamp) duration
subtract_uint64 _-_(uint,uint) uint
index_list _[_]([A],int) A
index_map _[_]({A:B},A) B
optional_list_index_int _[_](?[A],int) ?A
optional_map_index_value _[_](?{A:B},A) ?B
list_optindex_optional_int _[?_]([A],int) ?A
optional_list_optindex_optional_int _[?_](?[A],int) ?A
map_optindex_optional_value _[?_]({A:B},A) ?B
optional_map_optindex_optional_value _[?_](?{A:B},A) ?B
select_optional_field _?._(dyn,string) ?A
in_list @in(A,[A]) bool
in_map @in(A,{A:B}) bool
size_bytes size(bytes) int
bytes_size .size(bytes) int
size_list size([A]) int
list_size .size([A]) int
size_map size({A:B}) int
map_size .size({A:B}) int
size_string size(string) int
string_size .size(string) int
type type(A) type
bool_to_bool bool(bool) bool
string_to_bool bool(string) bool
bytes_to_bytes bytes(bytes) bytes
string_to_bytes bytes(string) bytes
double_to_double double(double) double
int64_to_double double(int) double
string_to_double double(string) double
uint64_to_double double(uint) double
duration_to_duration duration(duration) duration
int64_to_duration duration(int) duration
string_to_duration duration(string) duration
to_dyn dyn(A) dyn
int64_to_int64 int(int) int
double_to_int64 int(double) int
duration_to_int64 int(duration) int
string_to_int64 int(string) int
timestamp_to_int64 int(timestamp) int
uint64_to_int64 int(uint) int
string_to_string string(string) string
bool_to_string string(bool) string
bytes_to_string string(bytes) string
double_to_string string(double) string
duration_to_string string(duration) string
int64_to_string string(int) string
timestamp_to_string string(timestamp) string
uint64_to_string string(uint) string
ip_to_string string(IP) string
cidr_to_string string(CIDR) string
timestamp_to_timestamp timestamp(timestamp) timestamp
int64_to_timestamp timestamp(int) timestamp
string_to_timestamp timestamp(string) timestamp
uint64_to_uint64 uint(uint) uint
double_to_uint64 uint(double) uint
int64_to_uint64 uint(int) uint
string_to_uint64 uint(string) uint
contains_string .contains(string,string) bool
ends_with_string .endsWith(string,string) bool
starts_with_string .startsWith(string,string) bool
matches matches(string,string) bool
matches_string .matches(string,string) bool
timestamp_to_year .getFullYear(timestamp) int
timestamp_to_year_with_tz .getFullYear(timestamp,string) int
timestamp_to_month .getMonth(timestamp) int
timestamp_to_month_with_tz .getMonth(timestamp,string) int
timestamp_to_day_of_year .getDayOfYear(timestamp) int
timestamp_to_day_of_year_with_tz .getDayOfYear(timestamp,string) int
timestamp_to_day_of_month .getDayOfMonth(timestamp) int
timestamp_to_day_of_month_with_tz .getDayOfMonth(timestamp,string) int
timestamp_to_day_of_month_1_based .getDate(timestamp) int
timestamp_to_day_of_month_1_based_with_tz .getDate(timestamp,string) int
timestamp_to_day_of_week .getDayOfWeek(timestamp) int
timestamp_to_day_of_week_with_tz .getDayOfWeek(timestamp,string) int
timestamp_to_hours .getHours(timestamp) int
timestamp_to_hours_with_tz .getHours(timestamp,string) int
duration_to_hours .getHours(duration) int
timestamp_to_minutes .getMinutes(timestamp) int
timestamp_to_minutes_with_tz .getMinutes(timestamp,string) int
duration_to_minutes .getMinutes(duration) int
timestamp_to_seconds .getSeconds(timestamp) int
timestamp_to_seconds_tz .getSeconds(timestamp,string) int
duration_to_seconds .getSeconds(duration) int
timestamp_to_milliseconds .getMilliseconds(timestamp) int
timestamp_to_milliseconds_with_tz .getMilliseconds(timestamp,string) int
duration_to_milliseconds .getMilliseconds(duration) int
optional_of optional.of(A) ?A
optional_ofNonZeroValue optional.ofNonZeroValue(A) ?A
optional_none optional.none() ?A
optional_value .value(?A) A
optional_hasValue .hasValue(?A) bool
optional_or_optional .or(?A,?A) ?A
optional_orValue_value .orValue(?A,A) A
list_last .last([A]) ?A
list_first .first([A]) ?A
optional_unwrap optional.unwrap([?A]) [A]
optional_unwrapOpt .unwrapOpt([?A]) [A]
string_char_at_int .charAt(string,int) string
string_index_of_string .indexOf(string,string) int
string_index_of_string_int .indexOf(string,string,int) int
list_a_index_of_int .indexOf([A],A) int
string_last_index_of_string .lastIndexOf(string,string) int
string_last_index_of_string_int .lastIndexOf(string,string,int) int
list_a_last_index_of_int .lastIndexOf([A],A) int
string_lower_ascii .lowerAscii(string) string
string_replace_string_string .replace(string,string,string) string
string_replace_string_string_int .replace(string,string,string,int) string
string_split_string .split(string,string) [string]
string_split_string_int .split(string,string,int) [string]
string_substring_int .substring(string,int) string
string_substring_int_int .substring(string,int,int) string
string_trim .trim(string) string
string_upper_ascii .upperAscii(string) string
string_format .format(string,[dyn]) string
strings_quote strings.quote(string) string
list_join .join([string]) string
list_join_string .join([string],string) string
list_slice .slice([A],int,int) [A]
list_flatten .flatten([[A]]) [A]
list_flatten_int .flatten([dyn],int) [dyn]
lists_range lists.range(int) [int]
list_reverse .reverse([A]) [A]
list_distinct .distinct([A]) [A]
list_sets_contains_list sets.contains([A],[A]) bool
list_sets_equivalent_list sets.equivalent([A],[A]) bool
list_sets_intersects_list sets.intersects([A],[A]) bool
@mapInsert_map_key_value cel.@mapInsert({A:B},A,B) {A:B}
@mapInsert_map_map cel.@mapInsert({A:B},{A:B}) {A:B}
string_find_string .find(string,string) string
string_find_all_string .findAll(string,string) [string]
string_find_all_string_int .findAll(string,string,int) [string]
string_to_url url(string) URL
is_url_string isURL(string) bool
url_get_scheme .getScheme(URL) string
url_get_host .getHost(URL) string
url_get_hostname .getHostname(URL) string
url_get_port .getPort(URL) string
url_get_escaped_path .getEscapedPath(URL) string
url_get_query .getQuery(URL) {string:[string]}
string_to_ip ip(string) IP
cidr_ip .ip(CIDR) IP
ip_family .family(IP) int
ip_is_canonical ip.isCanonical(string) bool
ip_is_unspecified .isUnspecified(IP) bool
ip_is_loopback .isLoopback(IP) bool
ip_is_link_local_multicast .isLinkLocalMulticast(IP) bool
ip_is_link_local_unicast .isLinkLocalUnicast(IP) bool
ip_is_global_unicast .isGlobalUnicast(IP) bool
is_ip isIP(string) bool
string_to_cidr cidr(string) CIDR
is_cidr isCIDR(string) bool
cidr_contains_ip_string .containsIP(CIDR,string) bool
cidr_contains_ip_ip .containsIP(CIDR,IP) bool
cidr_contains_cidr_string .containsCIDR(CIDR,string) bool
cidr_contains_cidr .containsCIDR(CIDR,CIDR) bool
cidr_prefix_length .prefixLength(CIDR) int
cidr_masked .masked(CIDR) CIDR
string_to_quantity quantity(string) QUANTITY
is_quantity_string isQuantity(string) bool
quantity_sign sign(QUANTITY) int
quantity_is_greater_than .isGreaterThan(QUANTITY,QUANTITY) bool
quantity_is_less_than .isLessThan(QUANTITY,QUANTITY) bool
quantity_compare_to .compareTo(QUANTITY,QUANTITY) int
quantity_get_float .asApproximateFloat(QUANTITY) double
quantity_get_int .asInteger(QUANTITY) int
quantity_is_integer .isInteger(QUANTITY) bool
quantity_add .add(QUANTITY,QUANTITY) QUANTITY
quantity_add_int .add(QUANTITY,int) QUANTITY
quantity_sub .sub(QUANTITY,QUANTITY) QUANTITY
quantity_sub_int .sub(QUANTITY,int) QUANTITY
string_to_semver semver(string) SEMVER
string_bool_to_semver semver(string,bool) SEMVER
is_semver_string isSemver(string) bool
is_semver_string_bool isSemver(string,bool) bool
semver_is_greater_than .isGreaterThan(SEMVER,SEMVER) bool
semver_is_less_than .isLessThan(SEMVER,SEMVER) bool
semver_compare_to .compareTo(SEMVER,SEMVER) int
semver_major .major(SEMVER) int
semver_minor .minor(SEMVER) int
semver_patch .patch(SEMVER) int
format-validate .validate(FORMAT,string) ?[string]
format-named format.named(string) ?FORMAT
authorizer_path .path(AUTHORIZER,string) PATHCHECK
authorizer_group .group(AUTHORIZER,string) GROUPCHECK
authorizer_serviceaccount .serviceAccount(AUTHORIZER,string,string) AUTHORIZER
groupcheck_resource .resource(GROUPCHECK,string) RESOURCECHECK
resourcecheck_subresource .subresource(RESOURCECHECK,string) RESOURCECHECK
resourcecheck_namespace .namespace(RESOURCECHECK,string) RESOURCECHECK
resourcecheck_name .name(RESOURCECHECK,string) RESOURCECHECK
authorizer_fieldselector .fieldSelector(RESOURCECHECK,string) RESOURCECHECK
authorizer_labelselector .labelSelector(RESOURCECHECK,string) RESOURCECHECK
pathcheck_check .check(PATHCHECK,string) DECISION
resourcecheck_check .check(RESOURCECHECK,string) DECISION
decision_errored .errored(DECISION) bool
decision_error .error(DECISION) string
decision_allowed .allowed(DECISION) bool
decision_reason .reason(DECISION) string
string_jsonpatch_escapeKey_string jsonpatch.escapeKey(string) string
";

const COMPARABLE: [&str; 8] = ["int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"];
const SUMMABLE: [&str; 4] = ["int", "uint", "double", "duration"];

/// The named formats: what they are called, and a bound on the length of the pattern they check with.
pub const FORMATS: [(&str, u64); 13] = [
    ("dns1123Label", 30),
    ("dns1123Subdomain", 60),
    ("dns1035Label", 30),
    ("qualifiedName", 60),
    ("dns1123LabelPrefix", 30),
    ("dns1123SubdomainPrefix", 60),
    ("dns1035LabelPrefix", 30),
    ("labelValue", 40),
    ("uri", 1103),
    ("uuid", 70),
    ("byte", 84),
    ("date", 70),
    ("datetime", 70),
];

static ALL: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut all: HashMap<&'static str, Function> = HashMap::new();
    let mut lines: Vec<String> = TABLE.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
    for (op, word) in [("<", "less"), ("<=", "less_equals"), (">", "greater"), (">=", "greater_equals")] {
        for (id, a, b) in [
            ("bool", "bool", "bool"),
            ("int64", "int", "int"),
            ("int64_double", "int", "double"),
            ("int64_uint64", "int", "uint"),
            ("uint64", "uint", "uint"),
            ("uint64_double", "uint", "double"),
            ("uint64_int64", "uint", "int"),
            ("double", "double", "double"),
            ("double_int64", "double", "int"),
            ("double_uint64", "double", "uint"),
            ("string", "string", "string"),
            ("bytes", "bytes", "bytes"),
            ("timestamp", "timestamp", "timestamp"),
            ("duration", "duration", "duration"),
        ] {
            lines.push(format!("{word}_{id} _{op}_({a},{b}) bool"));
        }
    }
    for t in COMPARABLE {
        lines.push(format!("list_{t}_is_sorted_bool .isSorted([{t}]) bool"));
        lines.push(format!("list_{t}_max_{t} .max([{t}]) {t}"));
        lines.push(format!("list_{t}_min_{t} .min([{t}]) {t}"));
        lines.push(format!("list_{t}_sort .sort([{t}]) [{t}]"));
        lines.push(format!("list_{t}_sortByAssociatedKeys .@sortByAssociatedKeys([A],[{t}]) [A]"));
    }
    for t in SUMMABLE {
        lines.push(format!("list_{t}_sum_{t} .sum([{t}]) {t}"));
    }
    for (name, _) in FORMATS {
        lines.push(format!("format.{name} format.{name}() FORMAT"));
    }
    // The table lives as long as the program.
    let text: &'static str = Box::leak(lines.join("\n").into_boxed_str());
    for line in text.lines() {
        let parsed = declare(line);
        debug_assert!(parsed.is_some(), "{line}");
        if let Some((name, overload)) = parsed {
            all.entry(name).or_default().overloads.push(overload);
        }
    }
    all
});

/// The function of a name.
pub fn function(name: &str) -> Option<&'static Function> {
    ALL.get(name)
}

fn declare(line: &'static str) -> Option<(&'static str, Overload)> {
    let (id, rest) = line.split_once(' ')?;
    let (signature, result) = rest.rsplit_once(' ')?;
    let open = signature.rfind('(')?;
    // Types have no parentheses; operators do, but only before the arguments.
    let (name, args) = (&signature[..open], signature[open + 1..].strip_suffix(')')?);
    let member = name.starts_with('.');
    let name = name.strip_prefix('.').unwrap_or(name);
    let args: Vec<Type> =
        if args.is_empty() { Vec::new() } else { args.split(',').map(ty).collect::<Option<_>>()? };
    let result = ty(result)?;
    let generic = args.iter().chain([&result]).any(has_params);
    Some((name, Overload { id, member, args, result, generic }))
}

fn has_params(ty: &Type) -> bool {
    matches!(ty, Type::Param(_)) || ty.params().iter().any(|t| has_params(t))
}

fn ty(text: &'static str) -> Option<Type> {
    if let Some(inner) = text.strip_prefix('?') {
        return Some(Type::Optional(Arc::new(ty(inner)?)));
    }
    if let Some(inner) = text.strip_prefix('[') {
        return Some(Type::list(ty(inner.strip_suffix(']')?)?));
    }
    if let Some(inner) = text.strip_prefix('{') {
        let (key, value) = inner.strip_suffix('}')?.split_once(':')?;
        return Some(Type::map(ty(key)?, ty(value)?));
    }
    Some(match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Type(Some(Arc::new(Type::Param('A')))),
        "A" | "B" => Type::Param(text.chars().next()?),
        "IP" => Type::Opaque(IP),
        "CIDR" => Type::Opaque(CIDR),
        "URL" => Type::Opaque(URL),
        "QUANTITY" => Type::Opaque(QUANTITY),
        "SEMVER" => Type::Opaque(SEMVER),
        "FORMAT" => Type::Opaque(FORMAT),
        "AUTHORIZER" => Type::Opaque(AUTHORIZER),
        "PATHCHECK" => Type::Opaque(PATH_CHECK),
        "GROUPCHECK" => Type::Opaque(GROUP_CHECK),
        "RESOURCECHECK" => Type::Opaque(RESOURCE_CHECK),
        "DECISION" => Type::Opaque(DECISION),
        _ => return None,
    })
}

/// Names of types, which are values too.
pub fn type_name(name: &str) -> Option<Type> {
    let inner = match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "string" => Type::String,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        "optional_type" => Type::optional(Type::Dyn),
        _ => {
            let known = [
                IP,
                CIDR,
                URL,
                QUANTITY,
                SEMVER,
                FORMAT,
                AUTHORIZER,
                PATH_CHECK,
                GROUP_CHECK,
                RESOURCE_CHECK,
                DECISION,
            ];
            Type::Opaque(known.into_iter().find(|k| *k == name)?)
        }
    };
    Some(Type::Type(Some(Arc::new(inner))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_declares() {
        let lines = TABLE.lines().filter(|l| !l.is_empty()).count();
        let declared: usize = ALL.values().map(|f| f.overloads.len()).sum();
        assert_eq!(declared, lines + 4 * 14 + 8 * 5 + 4 + FORMATS.len());
        let add = function("_+_").unwrap();
        assert!(add.overloads.iter().any(|o| o.id == "add_list" && o.generic && !o.member));
        assert!(function("contains").unwrap().overloads[0].member);
    }
}
