//! `isopod kube-apiserver`: the API server alone, on an etcd it is told of.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use etcd::remote::{self, Remote};
use kube_apiserver::Flags;
use tokio_util::sync::CancellationToken;

use crate::cli::Told;
use crate::{pki, residency, settings};

/// Serves until `shutdown`.
pub async fn run(flags: &Flags, told: Told, shutdown: CancellationToken) -> Result<()> {
    flags.validate()?;
    let options = remote::Options {
        endpoints: flags.etcd_servers.clone(),
        ca: read(flags.etcd_cafile.as_deref())?,
        certificate: read(flags.etcd_certfile.as_deref())?,
        key: read(flags.etcd_keyfile.as_deref())?,
        prefix: Some(flags.etcd_prefix.clone()),
    };
    let store = Remote::connect(options).await?;
    let advertised = match advertised(flags.advertise_address, flags.bind_address) {
        Some(address) => address,
        None => settings::default_address()
            .context("find an address to advertise; name it with --advertise-address")?,
    };
    let (certificate, key) = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(certificate), Some(key)) => (file(certificate)?, file(key)?),
        (None, None) => self_signed(flags, advertised)?,
        _ => bail!("--tls-cert-file and --tls-private-key-file are only of use together"),
    };
    let mut config = kube_apiserver::Config::new(Arc::new(store), certificate, key);
    config.security.advertise_address = advertised;
    flags.apply(&mut config)?;
    config.flags = told;
    let (handle, prepared) = kube_apiserver::prepare(config).await?;
    tokio::spawn(residency::give_back_freed(handle.freed(), shutdown.clone()));
    prepared.run(shutdown).await
}

/// The address others are told of, where the flags name one. An address only this host can reach is none.
fn advertised(advertise: Option<IpAddr>, bind: IpAddr) -> Option<IpAddr> {
    advertise
        .filter(|a| !a.is_unspecified())
        .or(Some(bind).filter(|a| !a.is_unspecified() && !a.is_loopback()))
}

/// The certificate in the certificate directory, made there when it is missing.
fn self_signed(flags: &Flags, advertised: IpAddr) -> Result<(Vec<u8>, Vec<u8>)> {
    let directory = &flags.cert_dir;
    let (certificate, key) = (directory.join("apiserver.crt"), directory.join("apiserver.key"));
    if !certificate.exists() || !key.exists() {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let names =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from);
        let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), advertised];
        if let Some(range) = flags.service_cluster_ip_range.first() {
            addresses.push(settings::nth_address(range, 1)?);
        }
        let pair = pki::self_signed(&advertised.to_string(), &names, &addresses)?;
        pki::write_private(&key, &pair.key)?;
        pki::write_private(&certificate, &pair.certificate)?;
        tracing::info!(certificate = %certificate.display(), "made a serving certificate");
    }
    Ok((file(&certificate)?, file(&key)?))
}

pub fn read(path: Option<&Path>) -> Result<Option<Vec<u8>>> {
    path.map(file).transpose()
}

fn file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_advertise() {
        for (advertise, bind, want) in [
            (Some("10.0.0.1"), "0.0.0.0", Some("10.0.0.1")),
            (Some("10.0.0.1"), "10.0.0.2", Some("10.0.0.1")),
            (Some("0.0.0.0"), "10.0.0.2", Some("10.0.0.2")),
            (None, "10.0.0.2", Some("10.0.0.2")),
            (None, "0.0.0.0", None),
            (None, "127.0.0.1", None),
            (None, "::1", None),
        ] {
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            assert_eq!(advertised(advertise.map(address), address(bind)), want.map(address), "{bind}");
        }
    }
}
