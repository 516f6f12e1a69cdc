mod pause;
mod pki;
fn main() {}
