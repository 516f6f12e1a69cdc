//! What nobody needs any more: images when the disk fills up, and logs that have grown.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::machine::free_disk;
use crate::kubelet::Kubelet;

const IMAGE_PERIOD: Duration = Duration::from_secs(300);
const LOG_PERIOD: Duration = Duration::from_secs(10);

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut rounds = 0u32;
    while kubelet.pause(LOG_PERIOD).await {
        rotate_logs(&kubelet).await;
        rounds += 1;
        if rounds.is_multiple_of((IMAGE_PERIOD.as_secs() / LOG_PERIOD.as_secs()) as u32) {
            let used = free_disk(&kubelet.config.root_dir)
                .map_or(0, |(free, total, ..)| 100 - free * 100 / total.max(1));
            if used >= u64::from(kubelet.config.image_gc_high_percent) {
                free_images(&kubelet, false).await;
            }
        }
    }
}

/// Removes images that no container uses, the longest unused first, until enough is free. Returns the bytes freed.
pub async fn free_images(kubelet: &Kubelet, all: bool) -> u64 {
    let (Ok(images), Ok(containers)) =
        (kubelet.cri.list_images().await, kubelet.cri.list_containers(None).await)
    else {
        return 0;
    };
    let target = free_disk(&kubelet.config.root_dir).map_or(0, |(free, total, ..)| {
        (total * u64::from(100 - kubelet.config.image_gc_low_percent) / 100).saturating_sub(free)
    });
    let used = kubelet.images.used.lock().clone();
    let young =
        Timestamp::now() - SignedDuration::from_secs(kubelet.config.image_minimum_gc_age.as_secs() as i64);
    let sandbox = &kubelet.config.containerd.sandbox_image;
    let mut unused: Vec<_> = images
        .into_iter()
        .filter(|i| {
            let in_use = containers.iter().any(|c| {
                c.image_ref == i.id
                    || c.image.as_ref().is_some_and(|s| s.image == i.id)
                    || i.repo_digests.contains(&c.image_ref)
            });
            !in_use && !i.pinned && !i.repo_tags.contains(sandbox)
        })
        .map(|i| (used.get(&i.id).copied().unwrap_or(kubelet.started_at), i))
        .filter(|(at, _)| *at < young)
        .collect();
    unused.sort_by_key(|(at, _)| *at);
    let mut freed = 0;
    for (_, image) in unused {
        if !all && freed >= target {
            break;
        }
        match kubelet.cri.remove_image(&image.id).await {
            Ok(()) => {
                tracing::info!(image = image.repo_tags.join(","), bytes = image.size, "unused image removed");
                freed += image.size;
            }
            Err(error) => tracing::warn!(%error, "removing an image"),
        }
    }
    freed
}

async fn rotate_logs(kubelet: &Kubelet) {
    for handle in kubelet.pods.list() {
        for instance in handle.observed().running() {
            let path = Path::new(&instance.log_path);
            let large =
                std::fs::metadata(path).is_ok_and(|m| m.len() > kubelet.config.container_log_max_size);
            if large && let Err(error) = rotate(kubelet, path, &instance.id).await {
                tracing::warn!(log = instance.log_path, error, "rotating a log");
            }
        }
    }
}

async fn rotate(kubelet: &Kubelet, path: &Path, id: &str) -> Result<(), String> {
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let rotated = format!("{}.{stamp}", path.display());
    std::fs::rename(path, &rotated).map_err(|e| e.to_string())?;
    if let Err(error) = kubelet.cri.reopen_log(id).await {
        // Back under its name, or its writer would go on into a file nobody reads.
        let _ = std::fs::rename(&rotated, path);
        return Err(error.to_string());
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old: Vec<_> = std::fs::read_dir(dir)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    old.sort();
    let keep = (kubelet.config.container_log_max_files.max(2) - 1) as usize;
    let excess = old.len().saturating_sub(keep);
    for path in &old[..excess] {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
