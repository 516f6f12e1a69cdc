mod pause;
mod pki;
mod preflight;
mod process;
mod settings;
mod status;
mod supervisor;
mod up;
fn main() {}
