//! Turns `tables/*.tsv` into static arrays: read-only data, no start-up cost.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "build/openapi.rs"]
mod openapi;
#[path = "build/types.rs"]
mod types;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=tables");
    fs::write(out.join("resources.rs"), resources(&read("tables/resources.tsv"))).expect("writable OUT_DIR");
    fs::write(out.join("openapi.json.gz"), openapi::generate(&read("tables/openapi.tsv")))
        .expect("writable OUT_DIR");
    fs::write(out.join("types.rs"), types::generate(&read("tables/types.tsv"))).expect("writable OUT_DIR");
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn list(comma_separated: &str) -> String {
    let items: Vec<String> =
        comma_separated.split(',').filter(|s| !s.is_empty()).map(|s| format!("{s:?}")).collect();
    format!("&[{}]", items.join(", "))
}

/// Rows `group version resource kind scope singular short categories verbs`, each followed by its subresources'
/// `/name kind group/version-of-the-kind verbs`.
fn resources(table: &str) -> String {
    let mut out = String::from("&[\n");
    let mut open = false;
    for line in table.lines() {
        let c: Vec<&str> = line.split('\t').collect();
        if let Some(name) = c[0].strip_prefix('/') {
            let (group, version) = c[2].split_once('/').unwrap_or(("", c[2]));
            writeln!(
                out,
                "Subresource {{ name: {name:?}, kind: {:?}, group: {:?}, version: {:?}, verbs: {} }},",
                c[1],
                (!version.is_empty()).then_some(group),
                (!version.is_empty()).then_some(version),
                list(c[3])
            )
            .expect("a String takes all");
            continue;
        }
        if open {
            out.push_str("] },\n");
        }
        open = true;
        writeln!(
            out,
            "ResourceInfo {{ group: {:?}, version: {:?}, resource: {:?}, kind: {:?}, namespaced: {}, singular: {:?}, \
             short_names: {}, categories: {}, verbs: {}, subresources: &[",
            c[0],
            c[1],
            c[2],
            c[3],
            c[4] == "N",
            c[5],
            list(c[6]),
            list(c[7]),
            list(c[8])
        )
        .expect("a String takes all");
    }
    out.push_str("] },\n]\n");
    out
}
