//! Who may do what: the configured authorizers, asked in their order. The first that allows or denies decides.

pub mod abac;
pub mod configuration;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod rule;
pub mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::bail;
use apimachinery::clock::Clock;
use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::FutureExt;

use crate::config_file::Reloads;
use crate::file_watch::FileWatch;
use crate::metrics::Families;
use crate::seams::{Authorizer, Decision, RequestInfo};
use crate::tasks::Tasks;
use configuration::AuthorizationConfiguration;
use rule::PolicyRule;

/// A kind of authorizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Abac,
    Webhook,
    Rbac,
    Node,
}

impl Mode {
    pub const ALL: [Mode; 6] =
        [Mode::AlwaysAllow, Mode::AlwaysDeny, Mode::Abac, Mode::Webhook, Mode::Rbac, Mode::Node];

    /// As flags and configurations name it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::AlwaysAllow => "AlwaysAllow",
            Mode::AlwaysDeny => "AlwaysDeny",
            Mode::Abac => "ABAC",
            Mode::Webhook => "Webhook",
            Mode::Rbac => "RBAC",
            Mode::Node => "Node",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Mode, String> {
        let found = Mode::ALL.into_iter().find(|m| m.name() == s);
        found.ok_or_else(|| format!("authorization-mode {s:?} is not a valid mode"))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// No, whatever others say.
    Deny,
    #[default]
    NoOpinion,
}

/// What one authorizer, or all of them, made of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opinion {
    pub verdict: Verdict,
    pub reason: String,
    /// What went wrong on the way there.
    pub error: Option<String>,
}

impl Opinion {
    fn new(verdict: Verdict, reason: impl Into<String>) -> Opinion {
        Opinion { verdict, reason: reason.into(), error: None }
    }

    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

enum Kind {
    AlwaysAllow,
    AlwaysDeny,
    Abac,
    Node,
    Rbac,
    Webhook(Box<webhook::Webhook>),
}

/// One of the configured authorizers.
struct Step {
    kind: Kind,
    allowed: Arc<AtomicU64>,
    denied: Arc<AtomicU64>,
}

/// The configured authorizers in their order.
struct Steps {
    steps: Vec<Step>,
    /// The step of RBAC, where it can be asked first: nothing before it can deny.
    rbac: Option<usize>,
}

/// What authorizers are made of.
#[derive(Clone)]
pub struct Context {
    pub clock: Clock,
    pub families: Families,
    pub tasks: Tasks,
}

/// All authorizers.
pub struct Chain {
    steps: ArcSwap<Steps>,
    pub node: node::NodeAuthorizer,
    pub rbac: Arc<rbac::Rbac>,
    abac: Option<abac::Policies>,
    modes: Vec<Mode>,
}

impl Chain {
    /// Builds the authorizers of `config`, with what those of kinds other than webhooks are made of.
    pub async fn new(
        config: &AuthorizationConfiguration,
        node: node::NodeAuthorizer,
        rbac: Arc<rbac::Rbac>,
        abac: Option<abac::Policies>,
        context: &Context,
    ) -> anyhow::Result<Chain> {
        let modes = config.modes();
        let steps = steps(config, &modes, context).await?;
        Ok(Chain { steps: ArcSwap::from_pointee(steps), node, rbac, abac, modes })
    }

    /// Those of modes that need no configuration.
    pub fn of_modes(modes: &[Mode], node: node::NodeAuthorizer, rbac: Arc<rbac::Rbac>) -> Chain {
        let families = Families::default();
        let built_in = modes.iter().filter_map(|m| Some(Step::new(built_in(*m)?, *m, m.name(), &families)));
        let steps = Steps::new(built_in.collect());
        Chain { steps: ArcSwap::from_pointee(steps), node, rbac, abac: None, modes: modes.to_vec() }
    }

    /// Follows the file that `config` was read from.
    pub fn follow(self: &Arc<Self>, path: PathBuf, text: Vec<u8>, context: Context) {
        let reloads = Reloads::new(
            &context.families,
            [
                "apiserver_authorization_config_controller_automatic_reloads_total",
                "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds",
                "apiserver_authorization_config_controller_last_config_info",
            ],
            &text,
        );
        let watch = FileWatch::new(&path);
        let (this, tasks) = (self.clone(), context.tasks.clone());
        tasks.spawn(async move {
            let mut seen = text;
            loop {
                watch.changed().await;
                let read = tokio::fs::read(watch.path()).await;
                if read.as_ref().is_ok_and(|text| *text == seen) {
                    continue;
                }
                let outcome = match read {
                    Ok(text) => {
                        seen = text;
                        this.replace(&seen, &context).await
                    }
                    Err(error) => Err(error.into()),
                };
                match outcome {
                    Ok(()) => {
                        tracing::info!("reloaded authorization config");
                        reloads.succeeded(&seen);
                    }
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "reloading authorization config");
                        reloads.failed();
                    }
                }
            }
        });
    }

    async fn replace(&self, text: &[u8], context: &Context) -> anyhow::Result<()> {
        let config = AuthorizationConfiguration::parse(text)?;
        let modes = config.modes();
        let mut missing: Vec<&str> = self
            .modes
            .iter()
            .filter(|m| **m != Mode::Webhook && !modes.contains(m))
            .map(|m| m.name())
            .collect();
        missing.sort_unstable();
        if !missing.is_empty() {
            bail!("missing required types: [{}]", missing.join(" "));
        }
        let fresh = steps(&config, &self.modes, context).await?;
        self.steps.store(Arc::new(fresh));
        Ok(())
    }

    /// Without RBAC there is nothing that roles could grant.
    pub fn rbac_is_off(&self) -> bool {
        !self.modes.contains(&Mode::Rbac)
    }

    /// The rules of a user in a namespace, and what is not known of them.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let all = || {
            let all = || vec!["*".to_owned()];
            let resources =
                PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() };
            [resources, PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() }]
        };
        let (mut rules, mut unknown) = (Vec::new(), Vec::new());
        if user.in_group(SYSTEM_MASTERS) {
            rules.extend(all());
        }
        for step in &self.steps.load().steps {
            match &step.kind {
                Kind::AlwaysAllow => rules.extend(all()),
                Kind::AlwaysDeny => {}
                Kind::Abac => rules.extend(self.abac.iter().flat_map(|p| p.rules(user, namespace))),
                Kind::Rbac => {
                    let (granted, missing) = self.rbac.rules(user, namespace);
                    rules.extend(granted);
                    unknown.extend(missing);
                }
                Kind::Node if node::node_name(user).is_some() => {
                    unknown.push("node authorizer does not support user rule resolution".to_owned());
                }
                Kind::Node => {}
                Kind::Webhook(_) => {
                    unknown.push("webhook authorizer does not support user rule resolution".to_owned());
                }
            }
        }
        (rules, unknown)
    }

    /// The opinion of the first that has one, and the reasons of those before.
    pub async fn decide(&self, user: &UserInfo, request: &RequestInfo) -> Opinion {
        if user.in_group(SYSTEM_MASTERS) {
            return Opinion::new(Verdict::Allow, "");
        }
        let steps = self.steps.load_full();
        let (mut reasons, mut errors) = (Vec::new(), Vec::new());
        for step in &steps.steps {
            let opinion = match &step.kind {
                Kind::Webhook(webhook) => webhook.authorize(user, request).await,
                other => self.ask(other, user, request),
            };
            step.count(opinion.verdict);
            errors.extend(opinion.error.filter(|e| !e.is_empty()));
            if opinion.verdict == Verdict::Allow {
                return Opinion::new(Verdict::Allow, opinion.reason);
            }
            if !opinion.reason.is_empty() {
                reasons.push(opinion.reason);
            }
            if opinion.verdict == Verdict::Deny {
                return Opinion {
                    verdict: Verdict::Deny,
                    reason: reasons.join("\n"),
                    error: aggregate(errors),
                };
            }
        }
        Opinion { verdict: Verdict::NoOpinion, reason: reasons.join("\n"), error: aggregate(errors) }
    }

    /// As [`Chain::decide`], for those who cannot wait: expressions, and admission plugins that ask in passing.
    pub fn decide_now(&self, user: &UserInfo, request: &RequestInfo) -> Opinion {
        let asking = self.decide(user, request);
        // Only webhooks take time.
        if self.steps.load().steps.iter().any(|s| matches!(s.kind, Kind::Webhook(_))) {
            return tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking));
        }
        asking.now_or_never().unwrap_or_default()
    }

    fn ask(&self, kind: &Kind, user: &UserInfo, request: &RequestInfo) -> Opinion {
        match kind {
            Kind::AlwaysAllow => Opinion::new(Verdict::Allow, ""),
            Kind::AlwaysDeny => Opinion::new(Verdict::NoOpinion, "Everything is forbidden."),
            Kind::Abac if self.abac.as_ref().is_some_and(|p| p.allow(user, request)) => {
                Opinion::new(Verdict::Allow, "")
            }
            Kind::Abac => Opinion::new(Verdict::NoOpinion, "No policy matched."),
            Kind::Node => match self.node.authorize(user, request) {
                Some(Ok(())) => Opinion::new(Verdict::Allow, ""),
                Some(Err(reason)) => Opinion::new(Verdict::NoOpinion, reason),
                None => Opinion::default(),
            },
            Kind::Rbac => match self.rbac.authorize(user, request) {
                rbac::Verdict::Allowed(reason) => Opinion::new(Verdict::Allow, reason),
                rbac::Verdict::NoOpinion(reason) => Opinion::new(Verdict::NoOpinion, reason),
            },
            Kind::Webhook(_) => Opinion::default(),
        }
    }
}

fn aggregate(mut errors: Vec<String>) -> Option<String> {
    match errors.len() {
        0 => None,
        1 => Some(errors.swap_remove(0)),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}

fn built_in(mode: Mode) -> Option<Kind> {
    Some(match mode {
        Mode::AlwaysAllow => Kind::AlwaysAllow,
        Mode::AlwaysDeny => Kind::AlwaysDeny,
        Mode::Abac => Kind::Abac,
        Mode::Rbac => Kind::Rbac,
        Mode::Node => Kind::Node,
        Mode::Webhook => return None,
    })
}

async fn steps(
    config: &AuthorizationConfiguration,
    started_with: &[Mode],
    context: &Context,
) -> anyhow::Result<Steps> {
    let mut steps = Vec::new();
    for authorizer in &config.authorizers {
        let mode: Mode = authorizer.kind.parse().map_err(anyhow::Error::msg)?;
        if matches!(mode, Mode::Abac | Mode::Node | Mode::Rbac) && !started_with.contains(&mode) {
            bail!(
                "authorizer type {} is not allowed if it was not enabled at initial server startup",
                mode.name()
            );
        }
        let name = authorizer.name.as_str();
        let kind = match (built_in(mode), &authorizer.webhook) {
            (Some(kind), _) => kind,
            (None, Some(webhook)) => {
                let (clock, families) = (context.clock.clone(), &context.families);
                Kind::Webhook(Box::new(webhook::Webhook::new(name, webhook, clock, families).await?))
            }
            (None, None) => bail!("authorization-mode Webhook's authorization config file not passed"),
        };
        steps.push(Step::new(kind, mode, name, &context.families));
    }
    Ok(Steps::new(steps))
}

impl Steps {
    fn new(steps: Vec<Step>) -> Steps {
        let rbac = steps.iter().position(|s| matches!(s.kind, Kind::Rbac));
        let denies = |step: &Step| matches!(step.kind, Kind::Webhook(_));
        let rbac = rbac.filter(|at| !steps[..*at].iter().any(denies));
        Steps { steps, rbac }
    }
}

impl Step {
    fn new(kind: Kind, mode: Mode, name: &str, families: &Families) -> Step {
        let decisions = families.counter(
            "apiserver_authorization_decisions_total",
            "Decisions that an authorizer made for good.",
            &["type", "name", "decision"],
        );
        let cell = |decision: &str| decisions.cell(&[mode.name(), name, decision]);
        Step { kind, allowed: cell("allowed"), denied: cell("denied") }
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Allow => self.allowed.fetch_add(1, Ordering::Relaxed),
            Verdict::Deny => self.denied.fetch_add(1, Ordering::Relaxed),
            Verdict::NoOpinion => return,
        };
    }
}

#[async_trait]
impl Authorizer for Chain {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Decision {
        // The common case first, without building the reason.
        if user.in_group(SYSTEM_MASTERS) {
            return Decision::Allow;
        }
        {
            let steps = self.steps.load();
            if let Some(step) = steps.rbac.map(|at| &steps.steps[at])
                && self.rbac.allows(user, request)
            {
                step.count(Verdict::Allow);
                return Decision::Allow;
            }
        }
        match self.decide(user, request).await {
            Opinion { verdict: Verdict::Allow, .. } => Decision::Allow,
            Opinion { error: Some(why), .. } => Decision::Failed(why),
            Opinion { reason, .. } => Decision::Deny(reason),
        }
    }
}
