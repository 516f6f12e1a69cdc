//! Assembles identity and policy for the server.

pub mod failure;
#[cfg(test)]
pub mod testing;
