//! What tests, examples and measurements need beside Isopod itself: images made of the distribution's packages, a load
//! generator.

pub mod example_images;
pub mod load;
pub mod packages;
pub mod pods;
pub mod schedule;
