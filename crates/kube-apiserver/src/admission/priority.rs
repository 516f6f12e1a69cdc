//! Priority: a pod's class becomes its number; at most one class is the default.

use apimachinery::status::Status;
use serde_json::{Value, json};

use super::{Context, creates, refuse, writes};
use crate::seams::{AdmissionRequest, Operation};

const GROUP: &str = "scheduling.k8s.io";

const MARK: &[u8] = b"\"globalDefault\":true";

fn default_class(context: &Context) -> Option<Value> {
    let classes = context.objects.list(GROUP, "priorityclasses", None);
    // Stored objects have no blanks; most classes are passed over without decoding them.
    let marked = |body: &[u8]| memchr::memmem::find(body, MARK).is_some();
    let mut defaults: Vec<Value> = classes
        .iter()
        .filter(|c| marked(&c.body))
        .filter_map(|c| serde_json::from_slice::<Value>(&c.body).ok())
        .filter(|c| c["globalDefault"] == true)
        .collect();
    // Two can exist for a moment; the lower one is the safer default.
    defaults.sort_by_key(|c| c["value"].as_i64());
    defaults.into_iter().next()
}

pub(super) fn admit(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !writes(request, "", "pods") || !request.object["spec"].is_object() {
        return Ok(());
    }
    if request.operation == Operation::Update {
        let old = request.old_object.map(|o| &o["spec"]).unwrap_or(&Value::Null);
        for field in ["priority", "preemptionPolicy"] {
            if request.object["spec"][field].is_null() && !old[field].is_null() {
                request.object["spec"][field] = old[field].clone();
            }
        }
        return Ok(());
    }
    let spec = &request.object["spec"];
    let class_name = spec["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if class_name.is_empty() {
        default_class(context)
    } else {
        let found = context.objects.get(GROUP, "priorityclasses", "", &class_name);
        let Some(found) = found else {
            return Err(refuse(request, format!("no PriorityClass with name {class_name} was found")));
        };
        serde_json::from_slice(&found.body).ok()
    };
    let class = class.unwrap_or(Value::Null);
    let value = class["value"].as_i64().unwrap_or(0);
    let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned();
    if let Some(given) = spec["priority"].as_i64()
        && given != value
    {
        return Err(refuse(
            request,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
                 controller computed {value} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str()
        && given != policy
    {
        return Err(refuse(
            request,
            format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            ),
        ));
    }
    let spec = &mut request.object["spec"];
    if class_name.is_empty()
        && let Some(name) = class["metadata"]["name"].as_str()
    {
        spec["priorityClassName"] = json!(name);
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

pub(super) fn validate(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !writes(request, GROUP, "priorityclasses") || request.object["globalDefault"] != true {
        return Ok(());
    }
    if let Some(default) = default_class(context) {
        let other = default["metadata"]["name"].as_str().unwrap_or_default();
        let same = !creates(request, GROUP, "priorityclasses") && other == super::name(request);
        if !same {
            return Err(refuse(
                request,
                format!("PriorityClass {other} is already marked as default. Only one default can exist"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use std::sync::Arc;

    #[test]
    fn computes_the_number() {
        let objects = Arc::new(FakeObjects::default());
        objects.put(GROUP, "priorityclasses", json!({"metadata": {"name": "high"}, "value": 100}));
        let context = context(&objects);
        for (spec, want) in [
            (json!({}), Ok(0)),
            (json!({"priorityClassName": "high"}), Ok(100)),
            (json!({"priorityClassName": "high", "priority": 100}), Ok(100)),
            (json!({"priority": 7}), Err("must not be provided")),
            (json!({"priorityClassName": "none"}), Err("no PriorityClass with name none was found")),
        ] {
            let mut request = Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
            let got = request.with(|r| admit(&context, r));
            match want {
                Ok(value) => {
                    got.unwrap();
                    assert_eq!(request.object["spec"]["priority"], value);
                    assert_eq!(request.object["spec"]["preemptionPolicy"], "PreemptLowerPriority");
                }
                Err(text) => assert!(got.unwrap_err().message.contains(text)),
            }
        }
        let class = json!({"metadata": {"name": "d"}, "value": 5, "globalDefault": true});
        let mut request = Request::create(GROUP, "priorityclasses", class.clone());
        request.with(|r| validate(&context, r)).unwrap();
        objects.put(GROUP, "priorityclasses", class.clone());
        assert!(request.with(|r| validate(&context, r)).is_err());
        let mut request =
            Request { operation: Operation::Update, ..Request::create(GROUP, "priorityclasses", class) };
        request.with(|r| validate(&context, r)).unwrap();
    }
}
