//! Decoders on arbitrary input, and codecs against each other on values made from the schemas.

use apimachinery::codec::{self, MediaType, Strictness, protobuf};
use apimachinery::schema::{self, Kind, Schema};
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{duration, managed_fields, patch, quantity};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A small source of choices, so that one seed makes one value.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn word(&mut self) -> String {
        ["a", "b", "x-y", "", "é😀", "\"\\\n", "nginx:1.25"][self.below(7) as usize].to_owned()
    }
}

fn make(schema: &Schema, choices: &mut Choices, depth: u32) -> Value {
    match &schema.kind {
        Kind::Object(fields) => {
            let mut object = Map::new();
            for field in fields.iter() {
                if depth < 7 && choices.below(3) == 0 && field.numbers[0] != 0 {
                    object.insert(field.name.clone().into_owned(), make(&field.schema, choices, depth + 1));
                }
            }
            Value::Object(object)
        }
        Kind::Map(values) => {
            let count = choices.below(3);
            (0..count)
                .map(|i| (format!("k{i}"), make(values, choices, depth + 1)))
                .collect::<Map<_, _>>()
                .into()
        }
        Kind::List(items, _) => {
            let count = choices.below(3);
            Value::Array((0..count).map(|_| make(items, choices, depth + 1)).collect())
        }
        Kind::String => choices.word().into(),
        Kind::Bool => (choices.below(2) == 0).into(),
        Kind::Int32 => (choices.below(1 << 33) as i64 as i32).into(),
        Kind::Int64 => (choices.below(u64::MAX) as i64).into(),
        Kind::Double => (choices.below(1000) as f64 / 8.0).into(),
        Kind::Bytes => ["", "AAEC", "/+8="][choices.below(3) as usize].into(),
        Kind::Quantity => ["100m", "1Gi", "0", "1500M", "12e6"][choices.below(5) as usize].into(),
        Kind::Time => "2024-01-02T03:04:05Z".into(),
        Kind::MicroTime => "2024-01-02T03:04:05.000006Z".into(),
        Kind::Duration => "1m0.5s".into(),
        Kind::IntOrString => {
            if choices.below(2) == 0 {
                (choices.below(100) as i32 - 50).into()
            } else {
                choices.word().into()
            }
        }
        Kind::Raw => json!({"kind": "A", "x": [1, null, {"y": 1.5}]}),
        Kind::FieldsV1 => json!({"f:spec": {".": {}, "f:x": {}}}),
        Kind::Any => {
            [json!({"a": [1]}), json!("x"), json!(3), json!(true)][choices.below(4) as usize].clone()
        }
        Kind::SchemaOrArray => json!({"type": "string"}),
        Kind::SchemaOrBool => choices.below(2).eq(&0).into(),
        Kind::SchemaOrStringArray => json!(["a", "b"]),
    }
}

fn stored_kinds() -> Vec<&'static Schema> {
    apimachinery::resources::all()
        .iter()
        .filter_map(|r| schema::for_kind(r.group, r.version, r.kind))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn creation_owns_what_an_update_would(seed in any::<u64>(), which in 0usize..200, reset in 0usize..4) {
        let kinds = stored_kinds();
        let schema = kinds[which % kinds.len()];
        let mut value = make(schema, &mut Choices(seed), 0);
        value["metadata"] = json!({"name": "x", "namespace": "n", "labels": {"a/b\"c": "d"}, "finalizers": ["b", "a"],
            "annotations": {}, "ownerReferences": [{"uid": "1", "name": "o", "kind": "O", "apiVersion": "v1"}]});
        let mut value = codec::normalize(&value, schema, Strictness::Strict).unwrap().value;
        let resets: [&[&[&str]]; 4] = [&[], &[&["status"]], &[&["spec"]], &[&["metadata", "labels"], &["spec", "replicas"]]];
        let writer = managed_fields::Writer {
            manager: "m\"", api_version: "v1", subresource: ["", "status"][reset % 2], now: "2024-01-02T03:04:05Z",
            reset_fields: resets[reset],
        };
        if let Ok(text) = managed_fields::created(&value, schema, &writer) {
            managed_fields::update(None, &mut value, schema, &writer);
            let want = value["metadata"].get("managedFields").map(|m| m.to_string());
            prop_assert_eq!(text, want);
        }
    }

    #[test]
    fn codecs_agree(seed in any::<u64>(), which in 0usize..200) {
        let kinds = stored_kinds();
        let schema = kinds[which % kinds.len()];
        let value = make(schema, &mut Choices(seed), 0);
        let value = codec::normalize(&value, schema, Strictness::Strict).unwrap().value;
        // Once canonical, always canonical.
        prop_assert_eq!(&codec::normalize(&value, schema, Strictness::Strict).unwrap().value, &value);
        let bytes = protobuf::encode(&value, schema);
        let mut decoded = codec::decode(&bytes, MediaType::Protobuf, schema, Strictness::Strict).unwrap().value;
        // Straight from JSON it is the same message, if not the same bytes.
        let straight = protobuf::transcode_json(&codec::encode_json(&value), schema).unwrap();
        prop_assert_eq!(&protobuf::decode(&straight, schema).unwrap(), &decoded);
        // Protobuf cannot tell an empty list or map from none.
        let mut value = value;
        drop_empty(&mut value, schema);
        drop_empty(&mut decoded, schema);
        prop_assert_eq!(decoded, value);
    }

    #[test]
    fn fields_can_be_moved(seed in any::<u64>(), other in any::<u64>(), which in 0usize..200) {
        let kinds = stored_kinds();
        let schema = kinds[which % kinds.len()];
        let one = codec::normalize(&make(schema, &mut Choices(seed), 0), schema, Strictness::Ignore).unwrap().value;
        let mut two = codec::normalize(&make(schema, &mut Choices(other), 0), schema, Strictness::Ignore).unwrap().value;
        let writer = managed_fields::Writer { manager: "m", api_version: "v1", subresource: "", now: "2024-01-01T00:00:00Z", reset_fields: &[] };
        let mut first = one;
        managed_fields::update(None, &mut first, schema, &writer);
        managed_fields::update(Some(&first), &mut two, schema, &managed_fields::Writer { manager: "n", ..writer });
        let mut again = two.clone();
        managed_fields::update(Some(&two), &mut again, schema, &writer);
        prop_assert_eq!(again, two);
    }

    #[test]
    fn rubbish_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let pod = schema::for_kind("", "v1", "Pod").unwrap();
        for media_type in [MediaType::Json, MediaType::Yaml, MediaType::Protobuf] {
            let _ = codec::decode(&bytes, media_type, pod, Strictness::Warn);
            let _ = codec::type_meta(&bytes, media_type);
            let _ = codec::decode_any(&bytes, media_type);
        }
        let mut enveloped = protobuf::MAGIC.to_vec();
        enveloped.extend_from_slice(&bytes);
        let _ = protobuf::decode(&enveloped, pod);
        let _ = protobuf::decode_message(&bytes, pod);
        let _ = protobuf::read_watch_frame(&bytes);
        let _ = patch::json_patch(&json!({}), &bytes);
        let _ = patch::strategic_merge_patch(&json!({}), &bytes, pod);
    }

    #[test]
    fn almost_protobuf(seed in any::<u64>(), flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        let pod = schema::for_kind("", "v1", "Pod").unwrap();
        let mut bytes = protobuf::encode_message(&make(pod, &mut Choices(seed), 0), pod);
        for (at, value) in flips {
            if !bytes.is_empty() {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
        }
        let _ = protobuf::decode_message(&bytes, pod);
    }

    #[test]
    fn json_agrees_with_serde(text in r#"[\[\]{}:,"a0-9.eE+\\ntrufls -]{0,40}"#) {
        let ours = codec::decode_any(text.as_bytes(), MediaType::Json);
        if let Ok(theirs) = serde_json::from_str::<Value>(&text) {
            prop_assert_eq!(ours.unwrap(), theirs);
        }
    }

    #[test]
    fn texts(text in ".{0,30}") {
        if let Ok(q) = quantity::Quantity::parse(&text) {
            prop_assert_eq!(quantity::Quantity::parse(&q.to_string()).unwrap(), q);
        }
        if let Some(nanos) = duration::parse_nanos(&text) {
            prop_assert_eq!(duration::parse_nanos(&duration::format_nanos(nanos)), Some(nanos));
        }
        if let Ok(s) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
        }
        if let Ok(s) = FieldSelector::parse(&text) {
            prop_assert_eq!(FieldSelector::parse(&s.to_string()).unwrap(), s);
        }
    }

    #[test]
    fn quantities(text in r"[+-]?[0-9]{1,12}(\.[0-9]{0,12})?(n|u|m|k|M|G|T|Ki|Mi|Gi|e3|E-3)?") {
        let q = quantity::Quantity::parse(&text).unwrap();
        let again = quantity::Quantity::parse(&q.to_string()).unwrap();
        prop_assert_eq!(again, q);
        prop_assert_eq!(again.to_string(), q.to_string());
    }
}

fn drop_empty(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(object) => {
            object.retain(|name, value| {
                let Some(member) = schema.member(name) else { return true };
                drop_empty(value, member);
                let empty = match (&member.kind, &*value) {
                    (Kind::List(..) | Kind::Map(_), Value::Null) => true,
                    (Kind::List(..), Value::Array(list)) => list.is_empty(),
                    (Kind::Map(_), Value::Object(map)) => map.is_empty(),
                    _ => false,
                };
                !empty || matches!(schema.kind, Kind::Map(_))
            });
        }
        Value::Array(list) => {
            if let Some(items) = schema.items() {
                list.iter_mut().for_each(|v| drop_empty(v, items));
            }
        }
        _ => {}
    }
}
