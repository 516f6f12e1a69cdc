//! How many containers have ended, by their exit code and reason: `kubelet_terminated_containers_total`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;
use serde_json::Value;

/// Kind of container, exit code and reason.
type Ending = (&'static str, i64, String);

#[derive(Default)]
pub struct Terminations(Mutex<BTreeMap<Ending, u64>>);

const LISTS: [(&str, &str); 3] = [
    ("initContainerStatuses", "init_container"),
    ("containerStatuses", "container"),
    ("ephemeralContainerStatuses", "ephemeral_container"),
];

/// The containers that have ended in `new` and had not in `old`, both statuses of one pod.
fn endings(old: &Value, new: &Value) -> Vec<Ending> {
    let of = |status: &Value, list: &str| status[list].as_array().cloned().unwrap_or_default();
    let mut out = vec![];
    for (list, kind) in LISTS {
        let before = of(old, list);
        for status in of(new, list) {
            let end = &status["state"]["terminated"];
            let had_ended =
                before.iter().any(|b| b["name"] == status["name"] && !b["state"]["terminated"].is_null());
            if end.is_null() || had_ended {
                continue;
            }
            let reason = end["reason"].as_str().unwrap_or_default().to_owned();
            out.push((kind, end["exitCode"].as_i64().unwrap_or_default(), reason));
        }
    }
    out
}

impl Terminations {
    pub fn count(&self, old: &Value, new: &Value) {
        for ending in endings(old, new) {
            *self.0.lock().entry(ending).or_default() += 1;
        }
    }

    pub fn write(&self, out: &mut String) {
        let counts = self.0.lock();
        if counts.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "# HELP kubelet_terminated_containers_total [ALPHA] Cumulative number of container terminations.\n# TYPE kubelet_terminated_containers_total counter"
        );
        for ((kind, code, reason), count) in counts.iter() {
            let _ = writeln!(
                out,
                "kubelet_terminated_containers_total{{container_type=\"{kind}\",exit_code=\"{code}\",reason={reason:?}}} {count}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_end_counts_once() {
        let running = json!({"containerStatuses": [{"name": "a", "state": {"running": {}}}]});
        let ended = json!({
            "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 139, "reason": "Error"}}}],
            "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
        });
        let terminations = Terminations::default();
        let mut text = String::new();
        terminations.count(&Value::Null, &running);
        terminations.write(&mut text);
        assert_eq!(text, "");
        terminations.count(&running, &ended);
        terminations.count(&ended, &ended);
        terminations.count(&running, &ended);
        terminations.write(&mut text);
        let samples: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 2"#,
                r#"kubelet_terminated_containers_total{container_type="init_container",exit_code="0",reason="Completed"} 2"#,
            ]
        );
    }
}
