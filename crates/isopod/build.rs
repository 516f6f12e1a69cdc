//! Links the binary at a fixed address. The schema tables are hundreds of thousands of pointers; in a binary that can be
//! anywhere each of them is written at every start, and the memory they are in is no longer the file's.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
        // Cargo does not strip a binary whose package has a level of its own.
        if is("OPT_LEVEL", "s") {
            println!("cargo:rustc-link-arg-bins=-Wl,--strip-all");
        }
    }
}
