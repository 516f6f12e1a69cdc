//! Issuers that change when their configuration file does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use apimachinery::user::UserInfo;
use arc_swap::ArcSwap;

use super::{Context, Issuers, Metrics};
use crate::authentication::configuration::AuthenticationConfiguration;
use crate::config_file::{self, Reloads};
use crate::file_watch::FileWatch;

/// How long new issuers have to be reached before the old ones give way.
const PATIENCE: Duration = Duration::from_secs(60);

/// The issuers in force.
pub struct Reloading {
    context: Context,
    current: ArcSwap<Issuers>,
}

impl Reloading {
    /// Issuers that do not change.
    pub fn fixed(config: &AuthenticationConfiguration, context: Context) -> anyhow::Result<Arc<Reloading>> {
        let issuers = Issuers::start(config, &context)?;
        Ok(Arc::new(Reloading { current: ArcSwap::from_pointee(issuers), context }))
    }

    /// Those of a file that was read already, and from then on those it says.
    pub fn follow(
        path: PathBuf,
        text: Vec<u8>,
        config: &AuthenticationConfiguration,
        context: Context,
    ) -> anyhow::Result<Arc<Reloading>> {
        let reloads = Reloads::new(
            &context.families,
            [
                "apiserver_authentication_config_controller_automatic_reloads_total",
                "apiserver_authentication_config_controller_automatic_reload_last_timestamp_seconds",
                "apiserver_authentication_config_controller_last_config_info",
            ],
            &text,
        );
        // Watched from before the first change can be missed.
        let watch = FileWatch::new(&path);
        let anonymous = config.anonymous.clone();
        let this = Reloading::fixed(config, context)?;
        let follower = this.clone();
        this.context.tasks.spawn(async move {
            let mut seen = text;
            loop {
                watch.changed().await;
                let text = match tokio::fs::read(watch.path()).await {
                    Ok(text) if text == seen => continue,
                    Ok(text) => text,
                    Err(error) => {
                        tracing::error!(%error, "failed to read authentication config file");
                        reloads.failed();
                        continue;
                    }
                };
                let config = AuthenticationConfiguration::parse(&text).and_then(|config| {
                    let mut errors = config.validate(&follower.context.own_issuers);
                    if config.anonymous != anonymous {
                        let path = Path::new("anonymous");
                        errors.push(FieldError::forbidden(&path, "changed from initial configuration file"));
                    }
                    config_file::aggregate(&errors).map(|()| config)
                });
                match config {
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "failed to load authentication config");
                        reloads.failed();
                        // It will not get better by trying again.
                        seen = text;
                    }
                    Ok(config) => match follower.replace(&config).await {
                        Ok(()) => {
                            tracing::info!("reloaded authentication config");
                            reloads.succeeded(&text);
                            seen = text;
                        }
                        Err(error) => {
                            tracing::error!(
                                error = format!("{error:#}"),
                                "failed to update authentication config"
                            );
                            reloads.failed();
                        }
                    },
                }
            }
        });
        Ok(this)
    }

    async fn replace(&self, config: &AuthenticationConfiguration) -> anyhow::Result<()> {
        let fresh = Issuers::start(config, &self.context).context("the new issuers")?;
        fresh.ready(PATIENCE).await.map_err(anyhow::Error::msg)?;
        let kept: Vec<String> = fresh.urls().map(str::to_owned).collect();
        let old = self.current.swap(Arc::new(fresh));
        for gone in old.urls().filter(|url| !kept.iter().any(|k| k == url)) {
            Metrics::new(&self.context.families, gone, crate::server_id::hash()).forget();
        }
        Ok(())
    }

    /// The user of a token of one of the issuers; `None` where it is of none.
    pub async fn authenticate(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let issuers = self.current.load_full();
        issuers.authenticate(token).await
    }
}
