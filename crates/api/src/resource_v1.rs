//! Dynamic resource allocation.

mod claim_status;

use apimachinery::quantity::Quantity;
use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod::scheduling;
use crate::equality;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, FieldLabels, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write, quantity};

pub const GROUP: &str = "resource.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "resourceclaims",
        revalidates: true,
        first_status: "{}",
        validate: validate_claim,
        validate_update: fixed_spec,
        prepare_for_status_update: claim_status::prepare,
        validate_status_update: claim_status::validate,
        defaults: |claim| requests(claim, "spec.devices.requests"),
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceclaimtemplates",
        revalidates: true,
        validate: validate_template,
        validate_update: |new, old| [validate_template(new), fixed_spec(new, old)].concat(),
        defaults: |template| {
            template.put_default("spec.metadata", serde_json::json!({}));
            requests(template, "spec.spec.devices.requests");
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "deviceclasses",
        validate: validate_class,
        validate_update: |new, _| validate_class(new),
        namespaced: false,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "devicetaintrules",
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceslices",
        warnings: crate::advice::of_resource_slice,
        defaults: |slice| slice.put_default("spec.pool.generation", 0),
        prepare_for_create: prepare_slice,
        prepare_for_update: |new, old| {
            // Counted before it is seen what remains of the change.
            if !equality::same_at(new, old, "spec") {
                new.put("metadata.generation", old.int("metadata.generation") + 1);
            }
            drop_disabled(new);
        },
        stamp: Some(|new, _, now| stamp_taints(new, now)),
        validate: validate_slice,
        validate_update: validate_slice_update,
        namespaced: false,
        generation: &["spec"],
        fields: |slice| ["spec.nodeName", "spec.driver"].map(|p| (p, slice.text(p).to_owned())).into(),
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.nodeName", "spec.driver"],
            error: |version, label| {
                format!("field label not supported for {version}, Kind=ResourceSlice: {label}")
            },
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "resourcepoolstatusrequests",
        namespaced: false,
        unconditional_update: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
];

/// A request is for exactly one device, where it does not say how many.
fn requests(holder: &mut Value, path: &str) {
    let count = |request: &mut Value| {
        request.put_default_text("allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" && request.int("count") == 0 {
            request.put("count", 1);
        }
        for toleration in request.list_mut("tolerations") {
            toleration.put_default_text("operator", "Equal");
        }
    };
    for request in holder.list_mut(path) {
        if let Some(exactly) = request.find_mut("exactly") {
            count(exactly);
        }
        request.list_mut("firstAvailable").for_each(count);
    }
}

const SPEC: Path<'static> = Path::new("spec");

/// `devices` of a claim: what is asked for, and what the answers must have in common.
fn devices(errors: &mut Errors, devices: &Value, path: &Path<'_>) {
    const REQUESTS_MAX: usize = 32;
    let all = devices.list("requests");
    let list = path.child("requests");
    if all.len() > REQUESTS_MAX {
        errors.too_many(&list, all.len(), REQUESTS_MAX);
        return;
    }
    let mut names: Vec<String> = vec![];
    for (i, request) in all.iter().enumerate() {
        let path = list.index(i);
        let name = request.text("name");
        if names.iter().any(|n| n == name) {
            errors.duplicate(&path, name);
        }
        names.push(name.to_owned());
        errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
        let choices = request.list("firstAvailable");
        match (request.has("exactly"), choices.is_empty()) {
            (false, true) => {
                errors.required(&path, "exactly one of `exactly` or `firstAvailable` is required")
            }
            (true, false) => errors.invalid(
                &path,
                Value::Null,
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (true, true) => one_request(errors, request.at("exactly"), &path.child("exactly")),
            (false, false) => {
                for (j, choice) in choices.iter().enumerate() {
                    let list = path.child("firstAvailable");
                    let path = list.index(j);
                    let own = choice.text("name");
                    errors.invalid_each(&path.child("name"), own, check::dns1123_label(own));
                    names.push(format!("{name}/{own}"));
                    one_request(errors, choice, &path);
                }
            }
        }
    }
    for (i, constraint) in devices.list("constraints").iter().enumerate() {
        let list = path.child("constraints");
        let path = list.index(i);
        known_requests(errors, constraint, &names, &path);
        let kinds = ["matchAttribute", "distinctAttribute"];
        match kinds.into_iter().find(|name| constraint.has(name)) {
            Some(name) => {
                let (attribute, path) = (constraint.text(name), path.child(name));
                qualified(errors, attribute, &path);
                if !attribute.contains('/') {
                    let why = "a fully qualified name must be a domain and a name separated by a slash";
                    errors.invalid(&path, attribute, why);
                }
            }
            None => errors.required(
                &path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
        }
    }
    for (i, config) in devices.list("config").iter().enumerate() {
        let list = path.child("config");
        let path = list.index(i);
        known_requests(errors, config, &names, &path);
        opaque(errors, config, &path);
    }
}

const NOT_A_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

fn known_requests(errors: &mut Errors, holder: &Value, names: &[String], path: &Path<'_>) {
    let list = path.child("requests");
    for (i, name) in holder.list("requests").iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        for part in name.splitn(2, '/') {
            errors.invalid_each(&list.index(i), part, check::dns1123_label(part));
        }
        if !names.iter().any(|n| n == name) {
            errors.invalid(&list.index(i), name, NOT_A_REQUEST);
        }
    }
}

fn one_request(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    let class = request.text("deviceClassName");
    if class.is_empty() {
        errors.required(&path.child("deviceClassName"), "");
    } else {
        errors.invalid_each(&path.child("deviceClassName"), class, check::dns1123_subdomain(class));
    }
    selectors(errors, request, path);
    let count = request.int("count");
    match request.text("allocationMode") {
        "ExactCount" if count <= 0 => {
            errors.invalid(&path.child("count"), count, "must be greater than zero")
        }
        "All" if count != 0 => {
            errors.invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'")
        }
        mode => errors.one_of(&path.child("allocationMode"), mode, &["All", "ExactCount"]),
    }
    let list = path.child("tolerations");
    for (i, toleration) in request.list("tolerations").iter().enumerate() {
        let path = list.index(i);
        let (key, value) = (toleration.text("key"), toleration.text("value"));
        if !key.is_empty() {
            errors.invalid_each(&path.child("key"), key, check::qualified_name(key));
        }
        match toleration.text("operator") {
            "Exists" if !value.is_empty() => {
                errors.invalid(&path.child("value"), value, "must be empty for operator `Exists`");
            }
            "Equal" => errors.invalid_each(&path.child("value"), value, check::label_value(value)),
            "" => errors.required(&path.child("operator"), ""),
            operator => errors.one_of(&path.child("operator"), operator, &["Equal", "Exists"]),
        }
        effect(errors, toleration.text("effect"), false, &path.child("effect"));
    }
}

fn selectors(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    for (i, selector) in holder.list("selectors").iter().enumerate() {
        let list = path.child("selectors");
        let item = list.index(i);
        let path = item.child("cel");
        if !selector.has("cel") {
            errors.required(&path, "");
        } else if selector.text("cel.expression").is_empty() {
            errors.required(&path.child("expression"), "");
        }
    }
}

fn opaque(errors: &mut Errors, config: &Value, path: &Path<'_>) {
    let path = path.child("opaque");
    if !config.has("opaque") {
        errors.required(&path, "");
        return;
    }
    driver(errors, config.text("opaque.driver"), &path.child("driver"));
    match config.at("opaque.parameters") {
        Value::Null => errors.required(&path.child("parameters"), ""),
        Value::Object(_) => {}
        _ => errors.invalid(&path.child("parameters"), "<value omitted>", "must be a valid JSON object"),
    }
}

fn driver(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
    } else if name.len() > 63 {
        errors.too_long(path, 63);
    }
    if !name.is_empty() {
        errors.invalid_each(path, name, check::dns1123_subdomain(&name.to_lowercase()));
    }
}

fn validate_claim(claim: &Value) -> Errors {
    let mut errors = Errors::new();
    devices(&mut errors, claim.at("spec.devices"), &SPEC.child("devices"));
    errors
}

fn fixed_spec(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.immutable(&SPEC, new.at("spec"), old.at("spec"));
    errors
}

fn validate_template(template: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = SPEC.child("spec");
    devices(&mut errors, template.at("spec.spec.devices"), &spec.child("devices"));
    errors
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    selectors(&mut errors, class.at("spec"), &SPEC);
    for (i, config) in class.list("spec.config").iter().enumerate() {
        let list = SPEC.child("config");
        opaque(&mut errors, config, &list.index(i));
    }
    if class.has("spec.extendedResourceName") {
        let name = class.text("spec.extendedResourceName");
        if !crate::core_v1::resources::is_extended(name) {
            let path = SPEC.child("extendedResourceName");
            errors.invalid(&path, name, "must be a valid extended resource name");
        }
    }
    errors
}

fn validate_slice(slice: &Value) -> Errors {
    slice_spec(slice, None)
}

fn pool_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    const NAME_MAX_BYTES: usize = 253;
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > NAME_MAX_BYTES {
        errors.too_long(path, NAME_MAX_BYTES);
    }
    for part in name.split('/') {
        errors.invalid_each(path, part, check::dns1123_subdomain(part));
    }
}

fn slice_spec(slice: &Value, old: Option<&Value>) -> Errors {
    const DEVICES_MAX: usize = 128;
    /// Where devices have taints or share counters.
    const ADVANCED_DEVICES_MAX: usize = 64;
    const COUNTER_SETS_MAX: usize = 8;
    let mut errors = Errors::new();
    let spec = slice.at("spec");
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    driver(&mut errors, spec.text("driver"), &SPEC.child("driver"));
    let pool = SPEC.child("pool");
    pool_name(&mut errors, spec.text("pool.name"), &pool.child("name"));
    errors.positive_value(&pool.child("resourceSliceCount"), spec.int("pool.resourceSliceCount"));
    if spec.int("pool.generation") < 0 {
        let why = "must be greater than or equal to zero";
        errors.invalid(&pool.child("generation"), spec.int("pool.generation"), why);
    }
    if let Some(was) = old.map(|old| old.at("spec")) {
        let name = was.at("pool.name");
        errors.immutable_text(&pool.child("name"), spec.at("pool.name"), name);
        errors.immutable_text(&SPEC.child("driver"), spec.at("driver"), was.at("driver"));
        errors.immutable(&SPEC.child("nodeName"), spec.at("nodeName"), was.at("nodeName"));
    }
    let mut places = place(&mut errors, spec, "must be either unset or set to a non-empty string", &SPEC);
    if spec.has("nodeSelector") && spec.list("nodeSelector.nodeSelectorTerms").len() != 1 {
        let selector = SPEC.child("nodeSelector");
        let (path, terms) = (selector.child("nodeSelectorTerms"), spec.at("nodeSelector.nodeSelectorTerms"));
        errors.invalid(&path, terms.clone(), "must have exactly one node selector term");
    }
    let per_device = spec.flag("perDeviceNodeSelection");
    if per_device {
        places.push("`perDeviceNodeSelection`");
    } else if spec.has("perDeviceNodeSelection") {
        errors.invalid(&SPEC.child("perDeviceNodeSelection"), false, "must be either unset or set to true");
    }
    match places.as_slice() {
        [] => errors.required(&SPEC, ONE),
        [_] => {}
        all => errors.invalid(
            &SPEC,
            format!("{{{}}}", all.join(", ")),
            format!("{ONE}, but multiple fields are set"),
        ),
    }
    if spec.has("sharedCounters") && spec.has("devices") {
        errors.invalid(&SPEC, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let all = spec.list("devices");
    let advanced = |d: &Value| !d.list("taints").is_empty() || !d.list("consumesCounters").is_empty();
    let most = if all.iter().any(advanced) { ADVANCED_DEVICES_MAX } else { DEVICES_MAX };
    set(&mut errors, all, most, "name", &SPEC.child("devices"), |errors, one, path| {
        device(errors, one, per_device, path);
    });
    let counters = spec.list("sharedCounters");
    set(
        &mut errors,
        counters,
        COUNTER_SETS_MAX,
        "name",
        &SPEC.child("sharedCounters"),
        |errors, one, path| {
            counter_set(errors, one, "name", path);
        },
    );
    errors
}

/// Checks each item of a list that has no two with the same `key`, and no more than `most`.
fn set(
    errors: &mut Errors,
    items: &[Value],
    most: usize,
    key: &str,
    path: &Path<'_>,
    check: impl Fn(&mut Errors, &Value, &Path<'_>),
) {
    if items.len() > most {
        errors.too_many(path, items.len(), most);
        return;
    }
    for (i, item) in items.iter().enumerate() {
        check(errors, item, &path.index(i));
    }
    for (i, item) in items.iter().enumerate() {
        if items[..i].iter().any(|other| other.text(key) == item.text(key)) {
            errors.duplicate(&path.index(i), item.text(key));
        }
    }
}

/// Where a slice or a device is: which of the ways to say so are used.
fn place(errors: &mut Errors, holder: &Value, empty: &str, path: &Path<'_>) -> Vec<&'static str> {
    let mut said = vec![];
    if holder.has("nodeName") {
        let (name, path) = (holder.text("nodeName"), path.child("nodeName"));
        if name.is_empty() {
            errors.invalid(&path, name, empty);
        } else {
            said.push("`nodeName`");
            errors.invalid_each(&path, name, check::dns1123_subdomain(name));
        }
    }
    if holder.has("nodeSelector") {
        said.push("`nodeSelector`");
        scheduling::node_selector(errors, holder.at("nodeSelector"), &path.child("nodeSelector"));
    }
    if holder.flag("allNodes") {
        said.push("`allNodes`");
    } else if holder.has("allNodes") {
        errors.invalid(&path.child("allNodes"), false, "must be either unset or set to true");
    }
    said
}

/// A name, or a domain and a name.
fn qualified(errors: &mut Errors, name: &str, path: &Path<'_>) {
    const ID_MAX: usize = 32;
    let id = |errors: &mut Errors, id: &str| {
        if id.len() > ID_MAX {
            errors.too_long(path, ID_MAX);
        }
        let start = |b: u8| b.is_ascii_alphabetic() || b == b'_';
        let valid =
            id.bytes().next().is_some_and(start) && id.bytes().all(|b| start(b) || b.is_ascii_digit());
        if !valid {
            errors.invalid(
                path,
                id,
                "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                 characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
                 '[A-Za-z_][A-Za-z0-9_]*')",
            );
        }
    };
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [own] => id(errors, own),
        [domain, own] => {
            match *domain {
                "" => errors.invalid(path, "", "the domain must not be empty"),
                domain => driver(errors, domain, path),
            }
            match *own {
                "" => errors.invalid(path, "", "the name must not be empty"),
                own => id(errors, own),
            }
        }
        // Upstream lets these pass.
        _ => {}
    }
}

/// Counters of a set, or what a device takes of them.
fn counter_set(errors: &mut Errors, set: &Value, name: &str, path: &Path<'_>) {
    const COUNTERS_MAX: usize = 32;
    match set.text(name) {
        "" => errors.required(&path.child(name), ""),
        text => errors.invalid_each(&path.child(name), text, check::dns1123_label(text)),
    }
    let (path, count) = (path.child("counters"), set.entries("counters").count());
    if count == 0 {
        errors.required(&path, "");
    } else if count > COUNTERS_MAX {
        errors.too_many(&path, count, COUNTERS_MAX);
    } else {
        for (key, _) in set.entries("counters") {
            errors.invalid_each(&path, key, check::dns1123_label(key));
        }
    }
}

fn device(errors: &mut Errors, device: &Value, per_device: bool, path: &Path<'_>) {
    const MEMBERS_MAX: usize = 32;
    const TAINTS_MAX: usize = 16;
    const CONSUMED_MAX: usize = 2;
    let name = device.text("name");
    errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
    let members = device.entries("attributes").count() + device.entries("capacity").count();
    if members > MEMBERS_MAX {
        errors.invalid(
            path,
            members,
            format!("the total number of attributes and capacities must not exceed {MEMBERS_MAX}"),
        );
    }
    let attributes = path.child("attributes");
    for (key, value) in device.entries("attributes") {
        qualified(errors, key, &attributes);
        attribute(errors, value, &attributes.key(cut(key)));
    }
    let capacities = path.child("capacity");
    for (key, value) in device.entries("capacity") {
        qualified(errors, key, &capacities);
        let here = capacities.key(cut(key));
        let policy = value.at("requestPolicy");
        if policy.is_null() {
        } else if device.flag("allowMultipleAllocations") {
            request_policy(errors, value.at("value"), policy, &here.child("requestPolicy"));
        } else {
            errors.forbidden(&here.child("requestPolicy"), "allowMultipleAllocations must be true");
        }
    }
    let (taints, list) = (device.list("taints"), path.child("taints"));
    if taints.len() > TAINTS_MAX {
        errors.too_many(&list, taints.len(), TAINTS_MAX);
    } else {
        for (i, taint) in taints.iter().enumerate() {
            let path = list.index(i);
            let (key, value) = (taint.text("key"), taint.text("value"));
            errors.invalid_each(&path.child("key"), key, check::qualified_name(key));
            errors.invalid_each(&path.child("value"), value, check::label_value(value));
            effect(errors, taint.text("effect"), true, &path.child("effect"));
        }
    }
    let (consumed, list) = (device.list("consumesCounters"), path.child("consumesCounters"));
    set(errors, consumed, CONSUMED_MAX, "counterSet", &list, |errors, one, path| {
        counter_set(errors, one, "counterSet", path);
    });
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                       `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    if per_device {
        match place(errors, device, "must not be empty", path).as_slice() {
            [] => errors.required(path, ONE),
            [_] => {}
            all => errors.invalid(path, format!("{{{}}}", all.join(", ")), ONE),
        }
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|name| device.has(name)) {
        errors.invalid(
            path,
            Value::Null,
            "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the \
             ResourceSlice spec",
        );
    }
    conditions_to_bind(errors, device, path);
}

/// Conditions that a pod waits for on a device, and those after which it does no longer.
fn conditions_to_bind(errors: &mut Errors, device: &Value, path: &Path<'_>) {
    const CONDITIONS_MAX: usize = 4;
    let (good, bad) = (device.list("bindingConditions"), device.list("bindingFailureConditions"));
    for (name, all) in [("bindingConditions", good), ("bindingFailureConditions", bad)] {
        let path = path.child(name);
        if all.len() > CONDITIONS_MAX {
            errors.too_many(&path, all.len(), CONDITIONS_MAX);
            continue;
        }
        for (i, condition) in all.iter().enumerate() {
            let condition = condition.as_str().unwrap_or_default();
            errors.invalid_each(&path.index(i), condition, check::qualified_name(condition));
        }
    }
    for (name, all) in [("bindingConditions", good), ("bindingFailureConditions", bad)] {
        let path = path.child(name);
        for (i, condition) in all.iter().enumerate() {
            if all[..i].contains(condition) {
                errors.duplicate(&path.index(i), condition.clone());
            }
            if name == "bindingFailureConditions" && good.contains(condition) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                errors.invalid(&path.index(i), condition.clone(), why);
            }
        }
    }
    if good.is_empty() && !bad.is_empty() {
        let why = "bindingConditions are required to use bindingFailureConditions";
        errors.invalid(&path.child("bindingConditions"), device.at("bindingConditions").clone(), why);
    }
    if bad.is_empty() && !good.is_empty() {
        let why = "bindingFailureConditions are required to use bindingConditions";
        errors.invalid(
            &path.child("bindingFailureConditions"),
            device.at("bindingFailureConditions").clone(),
            why,
        );
    }
}

/// A key as paths show it.
fn cut(key: &str) -> &str {
    key.get(..96).unwrap_or(key)
}

fn effect(errors: &mut Errors, effect: &str, required: bool, path: &Path<'_>) {
    match effect {
        "" if required => errors.required(path, ""),
        "" => {}
        effect => errors.one_of(path, effect, &["NoExecute", "NoSchedule", "None"]),
    }
}

/// The value of an attribute, which is of one type.
fn attribute(errors: &mut Errors, attribute: &Value, path: &Path<'_>) {
    const VALUE_MAX: usize = 64;
    for name in ["string", "version"] {
        let (text, path) = (attribute.text(name), path.child(name));
        if name == "version" && attribute.has(name) && !is_semantic_version(text) {
            errors.invalid(&path, text, "must be a string compatible with semver.org spec 2.0.0");
        }
        if text.len() > VALUE_MAX {
            errors.too_long(&path, VALUE_MAX);
        }
    }
    match ["bool", "int", "string", "version"].iter().filter(|name| attribute.has(name)).count() {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(path, attribute.clone(), "exactly one value must be specified"),
    }
}

fn is_semantic_version(text: &str) -> bool {
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| !s.is_empty() && digits(s) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|p| word(p) && (!digits(p) || number(p))))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// What may be asked for of a capacity that is shared.
fn request_policy(errors: &mut Errors, capacity: &Value, policy: &Value, path: &Path<'_>) {
    const OPTIONS_MAX: usize = 10;
    let (values, range) = (policy.list("validValues"), policy.at("validRange"));
    if !values.is_empty() && !range.is_null() {
        let both = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        errors.forbidden(path, both);
        return;
    }
    let kind = match (values.is_empty(), range.is_null()) {
        (false, _) => "validValues",
        (_, false) => "validRange",
        _ => return,
    };
    let Some(default) = quantity(policy.at("default")) else {
        errors.required(&path.child("default"), format!("required when {kind} is defined"));
        return;
    };
    let Some(most) = quantity(capacity) else { return };
    let path = path.child(kind);
    if kind == "validValues" {
        let all: Vec<_> = values.iter().filter_map(quantity).collect();
        for (i, pair) in all.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
            errors.invalid(
                &path.index(i + 1),
                pair[1].to_string(),
                "values must be sorted in ascending order",
            );
        }
        if all.len() > OPTIONS_MAX {
            errors.too_many(&path, all.len(), OPTIONS_MAX);
        } else {
            for (i, option) in all.iter().enumerate().filter(|(_, option)| **option > most) {
                let why = format!("option is larger than capacity value: {most}");
                errors.invalid(&path.index(i), option.to_string(), why);
            }
            for (i, option) in all.iter().enumerate().filter(|(i, option)| all[..*i].contains(option)) {
                errors.duplicate(&path.index(i), option.to_string());
            }
        }
        if all.len() > OPTIONS_MAX || !all.contains(&default) {
            let why = "default value is not valid according to the requestPolicy";
            errors.invalid(&path, default.to_string(), why);
        }
        return;
    }
    let Some(min) = quantity(range.at("min")) else {
        errors.required(&path.child("min"), "required when validRange is defined");
        return;
    };
    let mut wrong = |is: bool, member: &str, value: Quantity, why: String| {
        if is {
            errors.invalid(&path.child(member), value.to_string(), why);
        }
    };
    wrong(min > most, "min", min, format!("min is larger than capacity value: {most}"));
    wrong(default < min, "min", default, format!("default is less than min: {min}"));
    let max = quantity(range.at("max"));
    if let Some(max) = max {
        wrong(min > max, "max", min, format!("min is larger than max: {max}"));
        wrong(max > most, "max", max, format!("max is larger than capacity value: {most}"));
        wrong(default > max, "max", default, format!("default is more than max: {max}"));
    }
    if let Some(step) = quantity(range.at("step")).filter(|step| step.value() != 0) {
        let one = min + step;
        let larger = format!("one step {one} is larger than capacity value: {most}");
        wrong(one > most, "step", step, larger);
        for value in [Some(default), max].into_iter().flatten() {
            let off = (value.value() - min.value()) % step.value() != 0;
            wrong(
                off,
                "step",
                value,
                format!("value is not a multiple of a given step ({step}) from ({min})"),
            );
        }
    }
}

/// What features that are off by default would need, and when devices were tainted.
fn prepare_slice(slice: &mut Value) {
    drop_disabled(slice);
    let now = slice.text("metadata.creationTimestamp").to_owned();
    stamp_taints(slice, &now);
}

fn stamp_taints(slice: &mut Value, now: &str) {
    for device in slice.list_mut("spec.devices") {
        for taint in device.list_mut("taints") {
            taint.put_default("timeAdded", now);
        }
    }
}

fn drop_disabled(slice: &mut Value) {
    for device in slice.list_mut("spec.devices") {
        device.remove("nodeAllocatableResourceMappings");
        if let Some(attributes) = device.find_mut("attributes").and_then(Value::as_object_mut) {
            for attribute in attributes.values_mut() {
                for list in ["bools", "ints", "strings", "versions"] {
                    attribute.remove(list);
                }
            }
        }
    }
}

fn validate_slice_update(new: &Value, old: &Value) -> Errors {
    slice_spec(new, Some(old))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_ask_for_what_they_name() {
        let one = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
        for (devices, want) in [
            (json!({"requests": [one]}), None),
            (json!({"requests": [one, one]}), Some("spec.devices.requests[1]: Duplicate value: \"r\"")),
            (
                json!({"requests": [{"name": "r"}]}),
                Some(
                    "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                ),
            ),
            (
                json!({"requests": [one], "constraints": [{"requests": ["q"], "matchAttribute": "a/b"}]}),
                Some(
                    "spec.devices.constraints[0].requests[0]: Invalid value: \"q\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
                ),
            ),
        ] {
            let mut claim = json!({"spec": {"devices": devices}});
            requests(&mut claim, "spec.devices.requests");
            let got: Vec<String> = validate_claim(&claim).iter().map(ToString::to_string).collect();
            assert_eq!(got, Vec::from_iter(want), "{claim}");
        }
    }
}
