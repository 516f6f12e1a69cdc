//! Volumes that show an image's files. The runtime's snapshotter has them unpacked already; a read-only view of them
//! is mounted.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use nix::mount::{MsFlags, mount};

use crate::cri::api;
use crate::kubelet::Kubelet;

fn key(uid: &str, volume: &str) -> String {
    format!("isopod-volume-{uid}-{volume}")
}

pub async fn set_up(
    kubelet: &Kubelet,
    pod: &Pod,
    volume: &str,
    source: &ImageVolumeSource,
    path: &Path,
) -> Result<(), String> {
    if super::is_mount_point(path) {
        return Ok(());
    }
    if kubelet.runtime_name != "containerd" {
        return Err("image volumes need containerd".into());
    }
    let wanted = Container {
        name: volume.to_owned(),
        image: source.reference.clone(),
        image_pull_policy: source.pull_policy.clone(),
        ..Container::default()
    };
    let reference = crate::events::pod_reference(pod);
    let image = kubelet
        .images
        .ensure(pod, &wanted, &reference, vec![], api::PodSandboxConfig::default())
        .await
        .map_err(|e| format!("{}: {}", e.reason, e.message))?;
    let chain = kubelet.cri.image_chain(&image.id).await.map_err(|e| e.to_string())?;
    let key = key(crate::pod::spec::uid(pod), volume);
    let mounts = kubelet.cri.view_snapshot(&key, &chain).await.map_err(|e| e.to_string())?;
    fs::create_dir_all(path).map_err(|e| e.to_string())?;
    for m in mounts {
        let bind = m.options.iter().any(|o| o == "bind" || o == "rbind");
        let (kind, flags) = if bind {
            (None, MsFlags::MS_BIND | MsFlags::MS_REC)
        } else {
            (Some(m.r#type.as_str()), MsFlags::MS_RDONLY)
        };
        let options: Vec<&str> = m
            .options
            .iter()
            .map(String::as_str)
            .filter(|o| !matches!(*o, "ro" | "rw" | "bind" | "rbind"))
            .collect();
        let options = options.join(",");
        let data = (!options.is_empty()).then_some(options.as_str());
        mount(Some(m.source.as_str()), path, kind, flags, data)
            .map_err(|e| format!("mounting an image: {e}"))?;
        if bind {
            let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, again, None::<&str>)
                .map_err(|e| format!("mounting an image: {e}"))?;
        }
    }
    Ok(())
}

/// Gives the view back, once it is unmounted.
pub async fn release(kubelet: &Kubelet, uid: &str, volume: &str) {
    if let Err(error) = kubelet.cri.remove_snapshot(&key(uid, volume)).await
        && !error.is_not_found()
    {
        tracing::warn!(volume, %error, "giving back an image volume");
    }
}
