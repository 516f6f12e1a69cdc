//! What tests and examples need beside Isopod itself: images made of the distribution's packages.

pub mod example_images;
pub mod packages;
pub mod pods;
