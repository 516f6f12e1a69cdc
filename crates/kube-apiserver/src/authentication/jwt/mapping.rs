//! From the claims of a verified token to a user. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::user::UserInfo;
use expression::{CALL_COST_MAX, Error, List, Program, Value, Variables};
use serde_json::{Map, Value as Json, json};

use crate::authentication::configuration::{Compiled, JwtAuthenticator};

pub type Claims = Map<String, Json>;

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The user that the claims speak of, or why there is none.
pub fn user(config: &JwtAuthenticator, compiled: &Compiled, claims: &Claims) -> Result<UserInfo, String> {
    let data = Json::Object(claims.clone());
    let seen = Seen { name: "claims", data: &data };
    let user = UserInfo {
        name: username(config, compiled, claims, &seen)?,
        groups: groups(config, compiled, claims, &seen)?,
        uid: uid(config, compiled, claims, &seen)?,
        extra: extra(compiled, claims, &seen)?,
    };
    for rule in config.claim_validation_rules.iter().filter(|r| !r.claim.is_empty()) {
        let claim = &rule.claim;
        let Some(value) = claims.get(claim) else {
            return Err(format!("oidc: required claim {claim} not present in ID token"));
        };
        let value = text(value).map_err(|e| format!("oidc: parse claim {claim}: {e}"))?;
        if value != rule.required_value {
            return Err(format!(
                "oidc: required claim {claim} value does not match. Got = {value}, want = {}",
                rule.required_value
            ));
        }
    }
    let rules = compiled.claim_rules.iter().map(|(rule, p)| (&rule.expression, &rule.message, p));
    check(rules, &seen).map_err(|e| format!("oidc: error evaluating claim validation expression: {e}"))?;
    let data = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
    let rules = compiled.user_rules.iter().map(|(rule, p)| (&rule.expression, &rule.message, p));
    check(rules, &Seen { name: "user", data: &data })
        .map_err(|e| format!("oidc: error evaluating user info validation rule: {e}"))?;
    Ok(user)
}

/// What expressions see.
struct Seen<'a> {
    name: &'static str,
    data: &'a Json,
}

impl Seen<'_> {
    fn evaluate<T>(
        &self,
        source: &str,
        program: &Program,
        read: impl FnOnce(Value<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut variables = Variables::default();
        variables.set(self.name, Value::from_json(self.data, None));
        let told = |why: &str| format!("expression '{source}' resulted in error: {why}");
        match program.evaluate(&variables, CALL_COST_MAX).value {
            Ok(value) => read(value),
            Err(Error::Cancelled) => Err(told("operation cancelled: actual cost limit exceeded")),
            Err(Error::Failed(why)) => Err(told(&why)),
        }
    }
}

/// A claim that has to be a string, with what Go says of others.
fn text(value: &Json) -> Result<String, String> {
    let kind = match value {
        Json::String(text) => return Ok(text.clone()),
        Json::Null => return Ok(String::new()),
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    Err(format!("json: cannot unmarshal {kind} into Go value of type string"))
}

fn claim(claims: &Claims, name: &str) -> Result<String, String> {
    claims.get(name).ok_or_else(|| "claim not present".to_owned()).and_then(text)
}

fn username(
    config: &JwtAuthenticator,
    compiled: &Compiled,
    claims: &Claims,
    seen: &Seen<'_>,
) -> Result<String, String> {
    let mapping = &config.claim_mappings.username;
    if let Some(program) = &compiled.username {
        let name = seen.evaluate(&mapping.expression, program, |value| match value {
            Value::String(text) => Ok((*text).to_owned()),
            _ => Err("username claim expression must return a string".to_owned()),
        });
        let name = name.map_err(|e| format!("oidc: error evaluating username claim expression: {e}"))?;
        if name.is_empty() {
            return Err("oidc: empty username via CEL expression is not allowed".to_owned());
        }
        return Ok(name);
    }
    let name = claim(claims, &mapping.claim)
        .map_err(|e| format!("oidc: parse username claims {:?}: {e}", mapping.claim))?;
    if mapping.claim == "email"
        && let Some(verified) = claims.get("email_verified")
    {
        match verified {
            Json::Bool(true) => {}
            Json::Bool(false) | Json::Null => return Err("oidc: email not verified".to_owned()),
            other => {
                let kind = if other.is_string() { "string" } else { "value" };
                return Err(format!(
                    "oidc: parse 'email_verified' claim: json: cannot unmarshal {kind} into Go value of type bool"
                ));
            }
        }
    }
    Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
}

fn groups(
    config: &JwtAuthenticator,
    compiled: &Compiled,
    claims: &Claims,
    seen: &Seen<'_>,
) -> Result<Vec<String>, String> {
    let mapping = &config.claim_mappings.groups;
    if !mapping.claim.is_empty()
        && let Some(value) = claims.get(&mapping.claim)
    {
        // A role given as a string is as good as a list of one.
        let groups = match value {
            Json::Array(items) => items.iter().map(text).collect::<Result<Vec<_>, _>>(),
            Json::Null => Ok(Vec::new()),
            other => text(other).map(|one| vec![one]),
        };
        let groups = groups.map_err(|e| format!("oidc: parse groups claim {:?}: {e}", mapping.claim))?;
        let prefix = mapping.prefix.as_deref().unwrap_or_default();
        return Ok(groups.into_iter().map(|g| format!("{prefix}{g}")).collect());
    }
    let Some(program) = &compiled.groups else { return Ok(Vec::new()) };
    let groups = seen.evaluate(&mapping.expression, program, |value| strings(&value));
    groups.map_err(|e| format!("oidc: error evaluating group claim expression: {e}"))
}

fn uid(
    config: &JwtAuthenticator,
    compiled: &Compiled,
    claims: &Claims,
    seen: &Seen<'_>,
) -> Result<String, String> {
    let mapping = &config.claim_mappings.uid;
    if !mapping.claim.is_empty() {
        return claim(claims, &mapping.claim)
            .map_err(|e| format!("oidc: parse uid claim {:?}: {e}", mapping.claim));
    }
    let Some(program) = &compiled.uid else { return Ok(String::new()) };
    let uid = seen.evaluate(&mapping.expression, program, |value| match value {
        Value::String(text) => Ok((*text).to_owned()),
        _ => Err("uid claim expression must return a string".to_owned()),
    });
    uid.map_err(|e| format!("oidc: error evaluating uid claim expression: {e}"))
}

fn extra(
    compiled: &Compiled,
    claims: &Claims,
    seen: &Seen<'_>,
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut extra = BTreeMap::new();
    if let Some(jti) = claims.get("jti").and_then(Json::as_str).filter(|j| !j.is_empty()) {
        extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]);
    }
    for (mapping, program) in &compiled.extra {
        let source = &mapping.value_expression;
        let values = seen.evaluate(source, program, |value| {
            strings(&value)
                .map_err(|e| format!("oidc: error evaluating extra claim expression: {source}: {e}"))
        })?;
        if !values.is_empty() {
            extra.insert(mapping.key.clone(), values);
        }
    }
    Ok(extra)
}

/// A string or a list of strings, without the empty ones; null is nothing.
fn strings(value: &Value<'_>) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let one = |value: &Value<'_>| value.as_str().map(str::to_owned).ok_or_else(wrong);
    let all = match value {
        Value::Null => Vec::new(),
        Value::String(_) => vec![one(value)?],
        Value::List(list) => all_of(list, one)?,
        _ => return Err(wrong()),
    };
    Ok(all.into_iter().filter(|s| !s.is_empty()).collect())
}

fn all_of(
    list: &List<'_>,
    one: impl Fn(&Value<'_>) -> Result<String, String>,
) -> Result<Vec<String>, String> {
    list.iter().map(|v| one(&v)).collect()
}

fn check<'r>(
    rules: impl Iterator<Item = (&'r String, &'r String, &'r Arc<Program>)>,
    seen: &Seen<'_>,
) -> Result<(), String> {
    for (source, message, program) in rules {
        let holds = seen.evaluate(source, program, |value| match value {
            Value::Bool(holds) => Ok(holds),
            _ => Err("validation expression must return a boolean".to_owned()),
        })?;
        if !holds {
            return Err(format!("validation expression '{source}' failed: {message}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::configuration::{AuthenticationConfiguration, compile};
    use apimachinery::field_path::Path;

    fn of(rest: &str, claims: Json) -> Result<UserInfo, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n\
             jwt: [{{issuer: {{url: https://a, audiences: [x]}}, {rest}}}]\n"
        );
        let config = AuthenticationConfiguration::parse(text.as_bytes()).unwrap();
        let mut errors = Vec::new();
        let compiled = compile(&config.jwt[0], &Path::new("jwt"), &[], &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        user(&config.jwt[0], &compiled, claims.as_object().unwrap())
    }

    #[test]
    fn reads_users() {
        let claims = json!({"sub": "jane", "email": "j@a", "email_verified": true, "roles": ["a", "b"], "role": "c",
            "jti": "1", "n": 5, "team": {"name": "t", "x.y": "z"}, "empty": ["", "q"]});
        let user = |name: &str, uid: &str, groups: &[&str], extra: &[(&str, &[&str])]| UserInfo {
            name: name.into(),
            uid: uid.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            extra: [("authentication.kubernetes.io/credential-id", &["JTI=1"] as &[&str])]
                .iter()
                .chain(extra)
                .map(|(k, v)| ((*k).to_owned(), v.iter().map(|v| (*v).to_owned()).collect()))
                .collect(),
        };
        let plain = "username: {claim: sub, prefix: 'p:'}";
        for (mappings, want) in [
            (plain.to_owned(), user("p:jane", "", &[], &[])),
            (format!("{plain}, groups: {{claim: roles, prefix: 'g:'}}"), user("p:jane", "", &["g:a", "g:b"], &[])),
            (format!("{plain}, groups: {{claim: role, prefix: ''}}"), user("p:jane", "", &["c"], &[])),
            (format!("{plain}, groups: {{claim: none, prefix: ''}}"), user("p:jane", "", &[], &[])),
            ("username: {claim: email, prefix: ''}, uid: {claim: sub}".to_owned(), user("j@a", "jane", &[], &[])),
            (
                "username: {expression: '\"x-\" + claims.sub'}, groups: {expression: 'claims.roles + [claims.role]'}, \
                 uid: {expression: 'claims.team.name'}, extra: [{key: 'a.io/t', valueExpression: 'claims.team[\"x.y\"]'}, \
                 {key: 'a.io/e', valueExpression: claims.empty}, {key: 'a.io/n', valueExpression: '\"\"'}]"
                    .to_owned(),
                user("x-jane", "t", &["a", "b", "c"], &[("a.io/t", &["z"]), ("a.io/e", &["q"])]),
            ),
        ] {
            let got = of(&format!("claimMappings: {{{mappings}}}"), claims.clone());
            assert_eq!(got, Ok(want), "{mappings}");
        }
    }

    #[test]
    fn refuses_users() {
        let plain = "claimMappings: {username: {claim: sub, prefix: ''}}";
        let claims = json!({"sub": "jane", "email": "j@a", "email_verified": false, "n": 5, "hd": "a.com"});
        for (rest, why) in [
            (
                "claimMappings: {username: {claim: none, prefix: ''}}",
                "oidc: parse username claims \"none\": claim not present",
            ),
            (
                "claimMappings: {username: {claim: 'n', prefix: ''}}",
                "oidc: parse username claims \"n\": json: cannot unmarshal number into Go value of type string",
            ),
            ("claimMappings: {username: {claim: email, prefix: ''}}", "oidc: email not verified"),
            (
                "claimMappings: {username: {expression: claims.n}}",
                "oidc: error evaluating username claim expression: username claim expression must return a string",
            ),
            (
                "claimMappings: {username: {expression: claims.none}}",
                "oidc: error evaluating username claim expression: expression 'claims.none' resulted in error: no such key: none",
            ),
            (
                "claimMappings: {username: {expression: '\"\"'}}",
                "oidc: empty username via CEL expression is not allowed",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}, groups: {expression: '[1]'}}",
                "oidc: error evaluating group claim expression: expression must return a string or a list of strings",
            ),
            (
                &format!("{plain}, claimValidationRules: [{{claim: hd, requiredValue: b.com}}]"),
                "oidc: required claim hd value does not match. Got = a.com, want = b.com",
            ),
            (
                &format!("{plain}, claimValidationRules: [{{claim: none, requiredValue: b.com}}]"),
                "oidc: required claim none not present in ID token",
            ),
            (
                &format!("{plain}, claimValidationRules: [{{expression: 'claims.n == 6', message: six}}]"),
                "oidc: error evaluating claim validation expression: validation expression 'claims.n == 6' failed: six",
            ),
            (
                &format!(
                    "{plain}, userValidationRules: [{{expression: '!user.username.startsWith(\"j\")', message: no j}}]"
                ),
                "oidc: error evaluating user info validation rule: validation expression \
                 '!user.username.startsWith(\"j\")' failed: no j",
            ),
        ] {
            assert_eq!(of(rest, claims.clone()), Err(why.to_owned()), "{rest}");
        }
        assert!(
            of(&format!("{plain}, claimValidationRules: [{{expression: 'claims.n == 5'}}]"), claims).is_ok()
        );
    }
}
