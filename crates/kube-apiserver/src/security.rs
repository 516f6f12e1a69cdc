//! Assembles identity and policy for the server.
