//! What is fuzzed. A target answers a line that tells how its input fared, or what is wrong with the decoder.

use apimachinery::codec::{self, MediaType, Strictness, protobuf};
use apimachinery::continue_token::Continue;
use apimachinery::field_path::Path;
use apimachinery::managed_fields::{self, Writer};
use apimachinery::schema::{self, Schema};
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::structural::Validator;
use apimachinery::{duration, patch, quantity};
use expression::rules::{self, Rules};
use expression::schema::declare;
use expression::{Environment, Program, Value as CelValue, Variables};
use serde_json::{Value, json};

type Outcome = Result<String, String>;

pub struct Target {
    pub name: &'static str,
    pub seeds: &'static [&'static str],
    /// Seeds that are not text.
    pub more: fn() -> Vec<Vec<u8>>,
    pub dictionary: &'static [&'static str],
    run: fn(&[u8]) -> Outcome,
}

pub fn run(target: &Target, input: &[u8]) -> Outcome {
    (target.run)(input)
}

const fn target(
    name: &'static str,
    seeds: &'static [&'static str],
    dictionary: &'static [&'static str],
    run: fn(&[u8]) -> Outcome,
) -> Target {
    Target { name, seeds, more: Vec::new, dictionary, run }
}

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"b","labels":{"x":"y"},"creationTimestamp":"2024-01-02T03:04:05Z","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80,"protocol":"TCP"}],"env":[{"name":"E","value":"v"}],"resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"livenessProbe":{"httpGet":{"path":"/","port":"http"}}}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1e3"}}],"tolerations":[{"key":"k","operator":"Exists","tolerationSeconds":30}]},"status":{"phase":"Running","startTime":null}}"#;
const POD_YAML: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: &l\n    x: yes\n    z: 0o17\n  annotations: *l\nspec:\n  containers:\n  - name: c\n    image: \"i\"\n    args: [a, 'b', |-\n      c\n    ]\n    command:\n    - |\n      two\n      lines\n    - >-\n      folded\n";
const JSON_WORDS: &[&str] = &[
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "\"\"",
    "\\u0000",
    "\\ud83d",
    "\\ude00",
    "é",
    "😀",
    "\"metadata\":",
    "\"spec\":",
    "\"containers\":[",
    "\"name\":\"c\"",
    ",",
    ":",
    "\u{feff}",
    "[[[[",
    "{\"a\":",
    "\"apiVersion\":\"v1\"",
    "\"kind\":\"Pod\"",
];
const YAML_WORDS: &[&str] = &[
    "\n",
    "\n  ",
    "- ",
    ": ",
    "|",
    ">",
    "|+2\n",
    "&a ",
    "*a",
    "<<: *a",
    "---\n",
    "...",
    "%YAML 1.1\n",
    "!!binary ",
    "!!str ",
    "? ",
    "#",
    "'",
    "\"",
    "yes",
    "off",
    "~",
    "0x1f",
    "0o7",
    "1_000",
    ".inf",
    ".nan",
    "2024-01-01",
    "{",
    "}",
    "[",
    "]",
    "\t",
    "\r\n",
    "\u{85}",
    "\u{2028}",
    "\\x41",
    "\\N",
];
const PATCH_WORDS: &[&str] = &[
    "{\"op\":\"add\",\"path\":\"/a/-\",\"value\":1}",
    "\"remove\"",
    "\"replace\"",
    "\"move\"",
    "\"copy\"",
    "\"test\"",
    "\"from\":\"/a\"",
    "/metadata/labels",
    "~0",
    "~1",
    "/-",
    "/0",
    "\"$patch\":\"delete\"",
    "\"$patch\":\"replace\"",
    "\"$retainKeys\":[\"name\"]",
    "\"$setElementOrder/containers\":[{\"name\":\"c\"}]",
    "\"$deleteFromPrimitiveList/finalizers\":[\"a\"]",
    "null",
    "{}",
    "[]",
    ",",
];
const CEL_WORDS: &[&str] = &[
    "self",
    "self.s",
    "self.l",
    "self.m",
    "self.n",
    "self.o.p",
    "self.d",
    ".all(x, ",
    ".exists(x, ",
    ".exists_one(x, ",
    ".map(x, ",
    ".filter(x, ",
    ".all(k, v, ",
    ".transformList(i, v, ",
    ".transformMap(k, v, ",
    "x",
    "k",
    "v",
    "&&",
    "||",
    "!",
    "? 1 : 2",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "+",
    "-",
    "*",
    "/",
    "%",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "1",
    "1u",
    "1.5",
    "'a'",
    "b'\\xff'",
    "r'\\d'",
    "\"\"\"",
    "null",
    "true",
    "has(self.o)",
    "size(",
    ".size()",
    ".matches('a+b*')",
    ".find('[a-z]')",
    ".findAll('.', 2)",
    ".split(',')",
    ".join('-')",
    ".replace('a','b')",
    ".substring(1)",
    ".charAt(0)",
    ".lowerAscii()",
    ".format([1, 'a', 2.5])",
    "'%s %d %.3f %x'",
    ".sum()",
    ".min()",
    ".isSorted()",
    ".indexOf(1)",
    "sets.contains(",
    "url('http://a:1/b?c=d')",
    ".getHost()",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    ".containsIP('10.1.1.1')",
    "quantity('1Gi')",
    ".isLessThan(",
    "semver('1.2.3-a')",
    "isQuantity(",
    "int(",
    "uint(",
    "double(",
    "string(",
    "bytes(",
    "timestamp('2024-01-01T00:00:00Z')",
    "duration('1h')",
    ".getFullYear()",
    "type(",
    "dyn(",
    "optional.of(",
    "self.?o.?p",
    ".orValue(",
    ".hasValue()",
    ".optMap(y, ",
    "[?self.?s]",
    "cel.bind(z, ",
    "-9223372036854775808",
    "0xff",
    "//",
];
const SELECTOR_WORDS: &[&str] = &[
    "a",
    "a/b",
    "=",
    "==",
    "!=",
    " in (",
    " notin (",
    ")",
    ",",
    "!",
    ">",
    "<",
    "\\,",
    "\\=",
    "metadata.name",
    "spec.nodeName",
    "1",
    "é",
];

pub static TARGETS: &[Target] = &[
    target(
        "json",
        &[POD, "[1,-2.5e3,\"\\u00e9\\ud83d\\ude00\",null]", "{\"a\":{\"a\":1,\"a\":2}}"],
        JSON_WORDS,
        json,
    ),
    target(
        "yaml",
        &[POD_YAML, POD, "a: !!binary aGk=\nb: [1, {c: d}]\n? e\n: f\n", "- - - a\n- \"\\x41\\u00e9\"\n"],
        YAML_WORDS,
        yaml,
    ),
    Target {
        name: "protobuf",
        seeds: &[],
        more: messages,
        dictionary: &["\n\u{1}", "\u{8}\u{7f}", "k8s\0"],
        run: protobuf,
    },
    target(
        "json-patch",
        &[
            "[{\"op\":\"add\",\"path\":\"/spec/containers/0\",\"value\":{\"name\":\"x\"}},{\"op\":\"test\",\"path\":\"/a\",\"value\":null}]",
            "[{\"op\":\"move\",\"from\":\"/spec\",\"path\":\"/a~1b\"},{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/b\"}]",
        ],
        PATCH_WORDS,
        json_patch,
    ),
    target(
        "merge-patch",
        &[POD, "{\"metadata\":{\"labels\":{\"x\":null}},\"spec\":null}"],
        PATCH_WORDS,
        merge_patch,
    ),
    target(
        "strategic-merge-patch",
        &[
            POD,
            "{\"spec\":{\"$setElementOrder/containers\":[{\"name\":\"d\"},{\"name\":\"c\"}],\"containers\":[{\"name\":\"d\",\"image\":\"j\"},{\"$patch\":\"delete\",\"name\":\"c\"}]}}",
            "{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"a\"],\"labels\":{\"$patch\":\"replace\"}},\"spec\":{\"volumes\":[{\"$retainKeys\":[\"name\"],\"name\":\"v\"}]}}",
        ],
        PATCH_WORDS,
        strategic,
    ),
    target(
        "apply",
        &[
            POD_YAML,
            POD,
            "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"containers\":[{\"name\":\"c\",\"env\":[]}]}}",
        ],
        PATCH_WORDS,
        apply,
    ),
    target(
        "managed-fields",
        &[
            "{\"f:metadata\":{\"f:labels\":{\".\":{},\"f:x\":{}}},\"f:spec\":{\"f:containers\":{\"k:{\\\"name\\\":\\\"c\\\"}\":{\".\":{}},\"v:1\":{},\"i:0\":{}}}}",
        ],
        JSON_WORDS,
        fields,
    ),
    target("label-selector", &["a=b,c!=d,e in (f, g),h notin (i),!j,k,l>1,m<2"], SELECTOR_WORDS, labels),
    target(
        "field-selector",
        &["metadata.name=a,spec.nodeName!=b\\,c,x==\\=y"],
        SELECTOR_WORDS,
        field_selector,
    ),
    target(
        "continue-token",
        &["eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0", "e30="],
        &["eyJ2", "==", "-_", "{\"v\":\"meta.k8s.io/v1\",\"rv\":1,\"start\":\"a\"}"],
        continued,
    ),
    target(
        "texts",
        &["1.5Gi", "-3e2", "1h2m3.5s", "2024-01-02T03:04:05.678+01:00", "100n", "999999999999E"],
        &["e", "E", ".", "-", "+", "Ki", "Ei", "n", "u", "m", "h", "µs", "T", "Z", ":"],
        texts,
    ),
    target(
        "cel",
        &[
            "self.s.startsWith('a') && self.l.all(x, x > 0) || size(self.m) == 0",
            "self.m.exists(k, k.matches('^[a-z]+$') && self.m[k] == self.s) ? self.n : int(self.d)",
            "self.l.map(x, x * 2).sum() < quantity('1Gi').asInteger() && ip(self.s).family() == 4",
            "'%s-%d'.format([self.s, self.n]) + self.s.split(',').join('') == self.?o.?p.orValue('x')",
            "self.l.transformList(i, v, i + v).filter(x, x in self.l) == sets.intersects(self.l, [1,2]) ? [] : [3]",
        ],
        CEL_WORDS,
        cel,
    ),
    target(
        "rules",
        &[
            "{\"type\":\"object\",\"x-kubernetes-validations\":[{\"rule\":\"self.a > oldSelf.a\",\"messageExpression\":\"'a' + string(self.a)\",\"fieldPath\":\".a\",\"reason\":\"FieldValueForbidden\"}],\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":1},\"b__c\":{\"type\":\"array\",\"maxItems\":3,\"items\":{\"type\":\"string\",\"maxLength\":4,\"x-kubernetes-validations\":[{\"rule\":\"self != ''\"}]}}}}",
            "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"format\":\"date-time\",\"x-kubernetes-validations\":[{\"rule\":\"optionalOldSelf\",\"optionalOldSelf\":true}]}}},\"allOf\":[{\"x-kubernetes-validations\":[{\"rule\":\"self.all(k, k != 'x')\"}]}]}",
        ],
        &[
            "\"type\":\"string\"",
            "\"type\":\"integer\"",
            "\"type\":\"array\"",
            "\"items\":",
            "\"properties\":",
            "\"additionalProperties\":",
            "\"x-kubernetes-int-or-string\":true",
            "\"x-kubernetes-preserve-unknown-fields\":true",
            "\"x-kubernetes-list-type\":\"map\"",
            "\"x-kubernetes-list-map-keys\":[\"a\"]",
            "\"x-kubernetes-validations\":[{\"rule\":\"true\"}]",
            "\"maxItems\":",
            "\"pattern\":\"^a\"",
            "\"enum\":[1]",
            "\"nullable\":true",
            "\"default\":1",
            "\"format\":\"date-time\"",
            "self",
            "oldSelf",
            "has(self.a)",
            "self.all(x, x == x)",
            "\"x-kubernetes-embedded-resource\":true",
            "\"oneOf\":[{}]",
            "\"not\":{}",
            "-1",
            "null",
        ],
        validations,
    ),
];

fn pod() -> Result<&'static Schema, String> {
    schema::for_kind("", "v1", "Pod").ok_or_else(|| "no schema".to_owned())
}

fn pod_value() -> Result<Value, String> {
    codec::decode(POD.as_bytes(), MediaType::Json, pod()?, Strictness::Warn)
        .map(|d| d.value)
        .map_err(|e| e.to_string())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, a: &T, b: &T) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what}: {a:?} became {b:?}")) }
}

/// How it fared, told without the details of what was decoded.
fn told<T, E: std::fmt::Display>(what: &str, result: &Result<T, E>) -> String {
    match result {
        Ok(_) => format!("{what} ok;"),
        Err(e) => format!("{what} {e};"),
    }
}

/// What decodes as a pod is canonical: it encodes and decodes to itself.
fn typed(bytes: &[u8], media_type: MediaType) -> Outcome {
    let schema = pod()?;
    let mut out = String::new();
    for strictness in [Strictness::Ignore, Strictness::Warn, Strictness::Strict] {
        let decoded = codec::decode(bytes, media_type, schema, strictness);
        out += &told("typed", &decoded);
        let Ok(decoded) = decoded else { continue };
        let again = codec::normalize(&decoded.value, schema, Strictness::Strict)
            .map_err(|e| format!("canonical value: {e}"))?;
        same("canonical value", &decoded.value, &again.value)?;
        let message = protobuf::encode(&decoded.value, schema);
        protobuf::decode(&message, schema).map_err(|e| format!("own protobuf: {e}"))?;
    }
    out += &told("applied", &applied(bytes, schema));
    out += &told("type meta", &codec::type_meta(bytes, media_type));
    Ok(out)
}

fn json(bytes: &[u8]) -> Outcome {
    let decoded = codec::decode_any(bytes, MediaType::Json);
    if let Ok(theirs) = serde_json::from_slice::<Value>(bytes)
        && let Err(e) = &decoded
    {
        return Err(format!("serde_json takes it as {theirs}: {e}"));
    }
    if let Ok(value) = &decoded {
        let again = codec::decode_any(&codec::encode_json(value), MediaType::Json)
            .map_err(|e| format!("own JSON: {e}"))?;
        same("own JSON", value, &again)?;
        let text = codec::encode_yaml(value);
        let again = codec::decode_any(&text, MediaType::Yaml)
            .map_err(|e| format!("own YAML: {e}: {}", String::from_utf8_lossy(&text)))?;
        same("own YAML", value, &again)?;
    }
    Ok(told("any", &decoded) + &typed(bytes, MediaType::Json)?)
}

fn yaml(bytes: &[u8]) -> Outcome {
    let decoded = codec::decode_any(bytes, MediaType::Yaml);
    if let Ok(value) = &decoded {
        let text = codec::encode_yaml(value);
        let again = codec::decode_any(&text, MediaType::Yaml)
            .map_err(|e| format!("own YAML: {e}: {}", String::from_utf8_lossy(&text)))?;
        same("own YAML", value, &again)?;
    }
    Ok(told("any", &decoded) + &typed(bytes, MediaType::Yaml)?)
}

fn kinds() -> Vec<&'static Schema> {
    apimachinery::resources::all()
        .iter()
        .filter_map(|r| schema::for_kind(r.group, r.version, r.kind))
        .collect()
}

fn messages() -> Vec<Vec<u8>> {
    let Ok((schema, value)) = pod().and_then(|s| Ok((s, pod_value()?))) else { return Vec::new() };
    let mut seeds = vec![[b"\0", &protobuf::encode(&value, schema)[..]].concat()];
    seeds.extend(
        (0..kinds().len()).map(|i| [&[i as u8][..], &protobuf::encode_message(&value, schema)].concat()),
    );
    seeds
}

/// The first byte is the kind.
fn protobuf(bytes: &[u8]) -> Outcome {
    let Some((which, bytes)) = bytes.split_first() else { return Ok(String::new()) };
    let kinds = kinds();
    let schema = kinds.get(usize::from(*which) % kinds.len()).ok_or("no kinds")?;
    let mut out = told("unknown", &protobuf::unwrap(bytes));
    out += &told("frame", &protobuf::read_watch_frame(bytes));
    out += &told("meta", &codec::type_meta(bytes, MediaType::Protobuf));
    out += &told("enveloped", &protobuf::decode(bytes, schema));
    let decoded = protobuf::decode_message(bytes, schema);
    out += &told("message", &decoded);
    if let Ok(value) = &decoded {
        let message = protobuf::encode_message(value, schema);
        let again = protobuf::decode_message(&message, schema).map_err(|e| format!("own message: {e}"))?;
        let third = protobuf::encode_message(&again, schema);
        same("own message", &message, &third)?;
    }
    Ok(out)
}

fn json_patch(bytes: &[u8]) -> Outcome {
    let target = json!({"a": [1, {"b": null}], "a/b": "x", "spec": {"containers": [{"name": "c"}]}, "": 0});
    Ok(told("patched", &patch::json_patch(&target, bytes).map_err(|e| e.message)))
}

fn merge_patch(bytes: &[u8]) -> Outcome {
    let patched = patch::merge_patch(&pod_value()?, bytes);
    if let Ok(value) = &patched {
        let again =
            patch::merge_patch(value, bytes).map_err(|e| format!("the same patch again: {}", e.message))?;
        same("patched twice", value, &again)?;
    }
    Ok(told("patched", &patched.map_err(|e| e.message)))
}

fn strategic(bytes: &[u8]) -> Outcome {
    let patched = patch::strategic_merge_patch(&pod_value()?, bytes, pod()?);
    if let Ok(value) = &patched {
        let _ = codec::normalize(value, pod()?, Strictness::Warn);
    }
    Ok(told("patched", &patched.map_err(|e| e.message)))
}

fn apply(bytes: &[u8]) -> Outcome {
    let schema = pod()?;
    let writer = |manager| Writer {
        manager,
        api_version: "v1",
        subresource: "",
        now: "2024-01-01T00:00:00Z",
        reset_fields: &[],
    };
    let mut live = pod_value()?;
    managed_fields::update(None, &mut live, schema, &writer("first"));
    let config = match applied(bytes, schema) {
        Ok(config) => config,
        Err(e) => return Ok(e.to_string()),
    };
    let mut out = String::new();
    for (live, force) in [(None, false), (Some(&live), false), (Some(&live), true)] {
        let applied =
            managed_fields::apply(live, &config, schema, &writer("second"), force).map_err(|e| e.message);
        out += &told("applied", &applied);
        if let (Ok(value), true) = (&applied, force) {
            let again = managed_fields::apply(Some(value), &config, schema, &writer("second"), true);
            let again = again.map_err(|e| format!("the same again: {}", e.message))?;
            same("applied twice", value, &again)?;
        }
    }
    Ok(out)
}

fn applied(bytes: &[u8], schema: &'static Schema) -> Result<Value, codec::DecodeError> {
    let read = codec::read_applied(bytes, Strictness::Warn)?;
    codec::type_applied(&read.value, schema)
}

fn fields(bytes: &[u8]) -> Outcome {
    let Ok(value) = codec::decode_any(bytes, MediaType::Json) else { return Ok("no JSON".to_owned()) };
    let Some(set) = managed_fields::set::parse(&value) else { return Ok("no set".to_owned()) };
    Ok(format!("{} paths", managed_fields::set::paths(&set).len()))
}

fn labels(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let parsed = LabelSelector::parse(&text);
    if let Ok(selector) = &parsed {
        let printed = selector.to_string();
        let again = LabelSelector::parse(&printed).map_err(|e| format!("own text {printed}: {e}"))?;
        same("selector", selector, &again)?;
        selector.matches_map(&json!({"a": "b", "k": "1"}));
    }
    Ok(told("labels", &parsed))
}

fn field_selector(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let parsed = FieldSelector::parse(&text);
    if let Ok(selector) = &parsed {
        let printed = selector.to_string();
        let again = FieldSelector::parse(&printed).map_err(|e| format!("own text {printed}: {e}"))?;
        same("selector", selector, &again)?;
    }
    Ok(told("fields", &parsed))
}

fn continued(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let token = Continue::decode(&text);
    if let Ok(token) = &token {
        let again =
            Continue::decode(&Continue::encode(token.rv, token.start.clone())).map_err(|e| e.message)?;
        same("token", token, &again)?;
    }
    Ok(told("token", &token.map_err(|e| e.message)))
}

fn texts(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let parsed = quantity::Quantity::parse(&text);
    if let Ok(q) = &parsed {
        let again =
            quantity::Quantity::parse(&q.to_string()).map_err(|e| format!("own quantity {q}: {e}"))?;
        same("quantity", q, &again)?;
        let _ = (q.value(), q.milli_value(), q.as_f64(), q.times(3), q.is_whole());
    }
    let mut out = told("quantity", &parsed);
    if let Some(nanos) = duration::parse_nanos(&text) {
        same("duration", &Some(nanos), &duration::parse_nanos(&duration::format_nanos(nanos)))?;
        out += "duration";
    }
    for normalize in [codec::normalize_time, codec::normalize_micro_time] {
        let time = normalize(&text);
        out += &told("time", &time);
        if let Ok(time) = &time {
            same("time", &Ok(time.clone()), &normalize(time))?;
        }
    }
    Ok(out)
}

fn cel_schema() -> Value {
    json!({"type": "object", "properties": {
        "s": {"type": "string", "maxLength": 20},
        "l": {"type": "array", "maxItems": 10, "items": {"type": "integer"}},
        "m": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "string", "maxLength": 10}},
        "n": {"type": "integer"},
        "d": {"type": "number"},
        "o": {"type": "object", "properties": {"p": {"type": "string", "maxLength": 5}, "q": {"x-kubernetes-int-or-string": true}}},
        "t": {"type": "string", "format": "date-time"}}})
}

/// Two budgets, so that what costs little is known to be quick.
const COST_MAX: u64 = 1_000_000;

fn cel(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    let decl = declare(&cel_schema(), false, "self").ok_or("no declaration")?;
    let environment = Environment::default().variable("self", decl.ty());
    let program = match Program::compile(&text, &environment) {
        Ok(program) => program,
        // The caret's line repeats the source.
        Err(why) => return Ok(why.lines().next().unwrap_or_default().to_owned()),
    };
    let estimate = program.estimate(Some(&decl));
    if estimate.min > estimate.max {
        return Err(format!("costs at least {} and at most {}", estimate.min, estimate.max));
    }
    let object = json!({"s": "a,b,1.2.3.4", "l": [1, 2, 3, -9, 9], "m": {"a": "b", "c": "é"}, "n": 7, "d": 2.5, "o": {"p": "x", "q": 5},
        "t": "2024-01-02T03:04:05Z"});
    let mut variables = Variables::default();
    variables.set("self", CelValue::from_json(&object, Some(&decl)));
    let evaluated = program.evaluate(&variables, COST_MAX);
    let out = match &evaluated.value {
        Ok(value) => {
            let _ = value.to_json();
            if evaluated.cost > estimate.max {
                return Err(format!("costs {}, estimated at most {}", evaluated.cost, estimate.max));
            }
            format!("yields {:?}", value.ty())
        }
        Err(why) => format!("{why:?}"),
    };
    Ok(format!("{out} of {:?}", program.output()))
}

fn validations(bytes: &[u8]) -> Outcome {
    let Ok(schema) = codec::decode_any(bytes, MediaType::Json) else { return Ok("no JSON".to_owned()) };
    let errors = rules::check(&schema, &Path::new("s"));
    let mut out: String = errors.iter().take(3).map(|e| e.to_string()).collect();
    let validator = Validator::new(&schema);
    let old =
        json!({"a": 1, "b__c": ["x", ""], "x": {"a": "2024-01-01T00:00:00Z"}, "metadata": {"name": "a"}});
    for object in [
        json!({"a": 2, "b__c": ["", "y"], "x": {"a": "b"}}),
        json!([1, "a"]),
        json!("x"),
        json!(null),
        old.clone(),
    ] {
        out += &format!(
            "{} {}",
            validator.validate(&object).len(),
            validator.validate_update(&object, &old).len()
        );
        // What is not admitted is not evaluated either.
        if errors.is_empty()
            && let Some(rules) = Rules::new(&schema)
        {
            rules.validate(&object, None);
            rules.validate(&object, Some(&old));
        }
    }
    Ok(out)
}
