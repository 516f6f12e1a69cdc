//! `loopback`: brings `lo` up.

use super::types::{Address, Doing, Error, Interface, Success};
use super::{Request, netns};

pub fn add(request: &Request) -> Result<Success, Error> {
    let ns = netns::open(&request.netns)?
        .ok_or_else(|| Error::generic(format!("failed to open netns {:?}: no such file", request.netns)))?;
    let addresses = netns::within(&ns, &request.netns, |netlink| {
        netlink.set_up(1).doing(|| "failed to set lo up".into())?;
        netlink.addresses(1).doing(|| "failed to list the addresses of lo".into())
    })?;
    if let Some(previous) = request.previous()? {
        return Ok(previous);
    }
    Ok(Success {
        interfaces: vec![Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: request.netns.clone(),
            ..Default::default()
        }],
        ips: addresses
            .into_iter()
            .map(|address| Address { interface: Some(0), address, gateway: None })
            .collect(),
        ..Default::default()
    })
}

pub fn del(request: &Request) -> Result<(), Error> {
    // The namespace is about to go, or is gone: nothing here is worth an error.
    if let Ok(Some(ns)) = netns::open(&request.netns) {
        let _ = netns::within(&ns, &request.netns, |netlink| {
            netlink.set_down(1).doing(|| "failed to set lo down".into())
        });
    }
    Ok(())
}

pub fn check(request: &Request) -> Result<(), Error> {
    let ns = netns::open(&request.netns)?
        .ok_or_else(|| Error::generic(format!("failed to open netns {:?}: no such file", request.netns)))?;
    netns::within(&ns, &request.netns, |netlink| match netlink.link_at(1) {
        Ok(Some(link)) if link.up => Ok(()),
        Ok(_) => Err(Error::generic("loopback interface is down")),
        Err(e) => Err(e).doing(|| "failed to find lo".into()),
    })
}
