use serde_json::{Value as Json, json};

use super::*;

fn environment() -> Environment {
    Environment::default().variable("object", Type::Dyn).variable("x", Type::Int).variable("s", Type::String)
}

fn run(source: &str) -> Result<Json, String> {
    let object = json!({"metadata": {"name": "x", "labels": {"a": "b"}, "gone": null},
        "spec": {"replicas": 3, "ratio": 0.5, "list": ["a", "b"], "big": 18446744073709551615u64}});
    let program = Program::compile(source, &environment())?;
    let mut variables = Variables::default();
    variables.set("object", Value::from_json(&object, None));
    variables.set("x", Value::Int(5));
    variables.set("s", Value::from("text"));
    let value = program.evaluate(&variables, CALL_COST_MAX).value.and_then(|v| v.to_json());
    value.map_err(|e| e.to_string())
}

#[test]
fn evaluates() {
    for (source, want) in [
        ("1 + 2 * 3", json!(7)),
        ("-7 / 2", json!(-3)),
        ("-7 % 2", json!(-1)),
        ("7u % 2u == 1u", json!(true)),
        ("1 < 2.5 && 2u > 1", json!(true)),
        ("[1, 2] + [3]", json!([1, 2, 3])),
        ("'a' + \"b\"", json!("ab")),
        ("r'\\d+' == '\\\\d+'", json!(true)),
        ("'''a\nb'''", json!("a\nb")),
        ("b'abc' == bytes('abc')", json!(true)),
        ("'\\u00e9'.size()", json!(1)),
        ("{'a': 1, 'b': 2}['b']", json!(2)),
        ("object.spec.replicas > 1", json!(true)),
        ("object.spec.replicas == 3.0", json!(true)),
        ("has(object.metadata.labels.a)", json!(true)),
        ("has(object.metadata.gone)", json!(false)),
        ("has(object.metadata.none)", json!(false)),
        ("'a' in object.metadata.labels", json!(true)),
        ("object.spec.list[1]", json!("b")),
        ("object.spec.list.all(i, i != 'c')", json!(true)),
        ("object.spec.list.exists(i, i == 'b')", json!(true)),
        ("object.spec.list.exists_one(i, i == 'b')", json!(true)),
        ("[1, 2, 3].map(i, i * 2)", json!([2, 4, 6])),
        ("[1, 2, 3].map(i, i > 1, i * 2)", json!([4, 6])),
        ("[1, 2, 3].filter(i, i > 1)", json!([2, 3])),
        ("object.metadata.labels.map(k, k)", json!(["a"])),
        ("[0, 1].exists(i, 1 / i == 1)", json!(true)),
        ("[1, 0].all(i, 1 / i == 2)", json!(false)),
        ("true || 1 / 0 == 1", json!(true)),
        ("1 / 0 == 1 || true", json!(true)),
        ("false && 1 / 0 == 1", json!(false)),
        ("x > 3 ? 'big' : 'small'", json!("big")),
        // Two variables.
        ("[1, 2].all(i, v, v == i + 1)", json!(true)),
        ("{'a': 1}.exists(k, v, k == 'a' && v == 1)", json!(true)),
        ("['a', 'b'].transformList(i, v, string(i) + v)", json!(["0a", "1b"])),
        ("['a', 'b'].transformList(i, v, i > 0, v)", json!(["b"])),
        ("{'a': 1}.transformMap(k, v, v + 1)", json!({"a": 2})),
        ("['a'].transformMapEntry(i, v, {v: i})", json!({"a": 0})),
        // Optionals.
        ("object.?spec.?replicas.orValue(0)", json!(3)),
        ("object.?spec.?none.orValue(0)", json!(0)),
        ("object.?none.hasValue()", json!(false)),
        ("optional.of(1).or(optional.of(2)).value()", json!(1)),
        ("optional.none().orValue(4)", json!(4)),
        ("[1, ?optional.none(), ?optional.of(2)]", json!([1, 2])),
        ("{?'a': optional.of(1), ?'b': optional.none()}", json!({"a": 1})),
        ("object.spec.?list[?0].optMap(v, v + '!').value()", json!("a!")),
        ("optional.of(2).optFlatMap(v, optional.of(v * 2)).value()", json!(4)),
        ("optional.ofNonZeroValue('').hasValue()", json!(false)),
        ("[1, 2].first().value() + [1, 2].last().value()", json!(3)),
        // Conversions and types.
        ("int('12') + int(2.9) + int(3u)", json!(17)),
        ("string(1.5) + string(true) + string(7u)", json!("1.5true7")),
        ("string(1e100)", json!("1e+100")),
        ("double('2.5')", json!(2.5)),
        ("type(1) == int && type('') == string && type(type(1)) == type", json!(true)),
        ("type(object.spec.list) == list && type(null) == null_type", json!(true)),
        ("type(timestamp('2020-01-01T00:00:00Z')) == google.protobuf.Timestamp", json!(true)),
        ("bool('true')", json!(true)),
        // Time.
        ("duration('1h30m') == duration('90m')", json!(true)),
        ("string(duration('1h1.5s'))", json!("3601.5s")),
        ("timestamp('2023-12-25T00:00:00Z').getFullYear()", json!(2023)),
        ("timestamp('2023-12-25T02:00:00Z').getDate('-08:00')", json!(24)),
        ("timestamp('2023-12-25T00:00:00Z').getDayOfWeek()", json!(1)),
        (
            "timestamp('2023-12-25T00:00:01Z') - timestamp('2023-12-25T00:00:00Z') == duration('1s')",
            json!(true),
        ),
        ("duration('90s').getMinutes()", json!(1)),
        // Strings.
        ("'hello'.charAt(4) + 'Ab'.lowerAscii() + 'b'.upperAscii()", json!("oabB")),
        ("'hello mellow'.indexOf('ello', 2)", json!(7)),
        ("'hello mellow'.lastIndexOf('ello')", json!(7)),
        ("'hello mellow'.lastIndexOf('ello', 6)", json!(1)),
        ("'hello hello'.replace('he', 'we', 1)", json!("wello hello")),
        ("'a,b,c'.split(',', 2)", json!(["a", "b,c"])),
        ("'abc'.split('')", json!(["a", "b", "c"])),
        ("'tacocat'.substring(4) + 'tacocat'.substring(0, 4)", json!("cattaco")),
        ("'  x '.trim()", json!("x")),
        ("['a', 'b'].join('-')", json!("a-b")),
        ("strings.quote('a\"b')", json!("\"a\\\"b\"")),
        ("'%s is %d, %.2f, %x'.format([dyn('a'), dyn(3), dyn(1.5), 255])", json!("a is 3, 1.50, ff")),
        ("'%s'.format([[dyn(1), dyn('a'), {'b': true}]])", json!("[1, \"a\", {\"b\":true}]")),
        ("'abc'.matches('^a.c$') && 'abc'.startsWith('a') && 'abc'.endsWith('c')", json!(true)),
        ("'abc 123'.find('[0-9]+')", json!("123")),
        ("'1 2 3'.findAll('[0-9]', 2)", json!(["1", "2"])),
        // Lists and sets.
        ("[1, 3].isSorted() && ![3, 1].isSorted()", json!(true)),
        ("[1, 3].sum() + [1, 3].min() + [1, 3].max()", json!(8)),
        ("[1, 2, 2].lastIndexOf(2)", json!(2)),
        ("[3, 1, 2].sort()", json!([1, 2, 3])),
        ("['ab', 'c'].sortBy(s, size(s))", json!(["c", "ab"])),
        ("[1, 2, 3].slice(1, 3).reverse()", json!([3, 2])),
        ("[[1], [2, 3]].flatten()", json!([1, 2, 3])),
        ("[1, 1, 2].distinct() + lists.range(2)", json!([1, 2, 0, 1])),
        (
            "sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1])",
            json!(true),
        ),
        // Kubernetes' own.
        ("ip('192.168.0.1').family() == 4 && isIP('::1') && !isIP('1.2.3')", json!(true)),
        ("ip('127.0.0.1').isLoopback() && ip.isCanonical('::1')", json!(true)),
        ("cidr('192.168.0.0/24').containsIP('192.168.0.9')", json!(true)),
        ("cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25')", json!(true)),
        ("string(cidr('192.168.1.5/24').masked())", json!("192.168.1.0/24")),
        ("url('https://example.com:80/a b?k=v').getEscapedPath()", json!("/a%20b")),
        (
            "url('https://example.com:80/path').getHostname() + url('https://[::1]:80/').getPort()",
            json!("example.com80"),
        ),
        ("url('https://e.com/?k=a&k=b').getQuery()", json!({"k": ["a", "b"]})),
        ("isURL('https://a') && isURL('/a') && !isURL('../a')", json!(true)),
        ("quantity('1Gi').isGreaterThan(quantity('1G'))", json!(true)),
        ("quantity('50k').add(20).sub(quantity('19')).asInteger()", json!(50001)),
        ("sign(quantity('-1')) == -1 && isQuantity('1.3Gi') && !isQuantity('1 G')", json!(true)),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.0', true).minor() == 0", json!(true)),
        ("semver('1.0.0-alpha.1').compareTo(semver('1.0.0-alpha.beta'))", json!(-1)),
        ("format.dns1123Label().validate('ok').hasValue()", json!(false)),
        ("format.named('dns1123Label').value().validate('Not Ok').value().size() > 0", json!(true)),
        ("jsonpatch.escapeKey('a/b~c')", json!("a~1b~0c")),
    ] {
        assert_eq!(run(source), Ok(want), "{source}");
    }
}

#[test]
fn fails_as_upstream_does() {
    for (source, want) in [
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("object.none", "no such key: none"),
        ("object.spec.list[7]", "index out of bounds: 7"),
        ("object.spec.list['a'] == 1", "unsupported index type 'string' in list"),
        ("object.spec.replicas + 'a'", "no such overload"),
        ("optional.none().value()", "optional.none() dereference"),
        ("[].min() == 1", "min called on empty list"),
        ("'abc'.substring(5)", "index out of range: 5"),
        ("object.metadata.name.matches('(' + '')", "Illegal regex"),
        (
            "lists.range(100000).map(a, lists.range(100000))",
            "operation cancelled: actual cost limit exceeded",
        ),
        (
            "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, a + b + c + d + e > 0)))))",
            "operation cancelled: actual cost limit exceeded",
        ),
    ] {
        let got = run(source).unwrap_err();
        assert!(got.starts_with(want), "{source}: {got}");
    }
}

#[test]
fn checks_types() {
    for (source, want) in [
        ("y", "1:1: undeclared reference to 'y' (in container '')\n | y\n | ^"),
        ("f(1)", "1:2: undeclared reference to 'f' (in container '')\n | f(1)\n | .^"),
        ("x + s", "1:3: found no matching overload for '_+_' applied to '(int, string)'\n | x + s\n | ..^"),
        (
            "s.startsWith(1)",
            "1:13: found no matching overload for 'startsWith' applied to 'string.(int)'\n | s.startsWith(1)\n | ............^",
        ),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        ("x.y", "1:2: type 'int' does not support field selection\n | x.y\n | .^"),
        ("x && true", "1:1: expected type 'bool' but found 'int'\n | x && true\n | ^"),
        (
            "x.all(i, true)",
            "1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | x.all(i, true)\n | ^",
        ),
        ("s.matches('(')", "1:11: invalid matches argument\n | s.matches('(')\n | ..........^"),
        (
            "duration('x') == duration('1s')",
            "1:10: invalid duration argument\n | duration('x') == duration('1s')\n | .........^",
        ),
        (
            "[1].map(i, i + 's')",
            "1:14: found no matching overload for '_+_' applied to '(int, string)'\n | [1].map(i, i + 's')\n | .............^",
        ),
        (
            "true ? 1 : 'a'",
            "1:6: found no matching overload for '_?_:_' applied to '(bool, int, string)'\n | true ? 1 : 'a'\n | .....^",
        ),
    ] {
        let got = Program::compile(source, &environment()).unwrap_err();
        assert_eq!(got, format!("ERROR: <input>:{want}"), "{source}");
    }
    for (source, want) in [
        ("x + 1", "int"),
        ("[x].map(i, string(i))", "list(string)"),
        ("{'a': x}", "map(string, int)"),
        ("object.spec", "dyn"),
        ("optional.of(x)", "optional_type(int)"),
        ("[]", "list(dyn)"),
        ("type(x)", "type(int)"),
        ("quantity('1')", "kubernetes.Quantity"),
        ("ip('::1')", "net.IP"),
    ] {
        assert_eq!(Program::compile(source, &environment()).unwrap().output().to_string(), want, "{source}");
    }
}
