//! What the code must not contain: the arrows between the crates, what a control plane sees, where `unsafe` is,
//! and that the switch needs no operating system. Sources are read as tokens, so comments and texts do not count.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cargo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap()
}

/// The crates of this workspace, each with its folder and with those of them that it depends on, for whatever
/// purpose.
fn crates() -> BTreeMap<String, (PathBuf, BTreeSet<String>)> {
    let output = cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let members = metadata["packages"].as_array().unwrap().iter().map(|package| {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
        // Those that have a path are ours.
        let ours = package["dependencies"].as_array().unwrap().iter().filter(|on| on["path"].is_string());
        (text(&package["name"]), (folder, ours.map(|on| text(&on["name"])).collect()))
    });
    members.collect()
}

/// The Rust sources under a folder, if there is one.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The words and signs of a source, in order, brackets left out.
fn words(source: &str) -> Vec<String> {
    fn flatten(tokens: TokenStream, into: &mut Vec<String>) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => flatten(group.stream(), into),
                TokenTree::Ident(word) => into.push(word.to_string()),
                TokenTree::Punct(sign) => into.push(sign.to_string()),
                TokenTree::Literal(_) => into.push(String::new()),
            }
        }
    }
    let mut found = Vec::new();
    flatten(source.parse().expect("a Rust source"), &mut found);
    found
}

fn has_unsafe(source: &str) -> bool {
    words(source).iter().any(|word| word == "unsafe")
}

/// pvnet <- dataplane <- controlplane: each of the three depends on the one before it and on no other; the simulator
/// depends on all three.
#[test]
fn crates_depend_in_one_direction() {
    let crates = crates();
    let (pvnet, dataplane) = ("hyper-switch-pvnet", "hyper-switch-dataplane");
    let controlplane = "hyper-switch-controlplane";
    for (name, on) in [
        (pvnet, &[][..]),
        (dataplane, &[pvnet]),
        (controlplane, &[dataplane]),
        ("hyper-switch-sim", &[pvnet, dataplane, controlplane]),
    ] {
        let (_, depends) = &crates[name];
        assert_eq!(*depends, on.iter().copied().map(str::to_owned).collect(), "{name}");
    }
}

/// The control plane names nothing of the workspace but the data plane's api.
#[test]
fn the_control_plane_sees_the_api_alone() {
    let sources = sources(&root().join("controlplane/src"));
    let mut seen = 0;
    for path in &sources {
        let words = words(&read(path));
        for (at, _) in words.iter().enumerate().filter(|(_, word)| word.starts_with("hyper_switch_")) {
            let named = words[at..].iter().take(4).map(String::as_str).collect::<String>();
            assert_eq!(named, "hyper_switch_dataplane::api", "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "no source was found to look at");
}

/// The files that the section `## Unsafe code` of a page lists in backticks.
fn listed(page: &str) -> BTreeSet<String> {
    let lines = page.lines().skip_while(|line| *line != "## Unsafe code").skip(1);
    let section: String =
        lines.take_while(|line| !line.starts_with("## ")).flat_map(|line| [line, "\n"]).collect();
    section.split('`').skip(1).step_by(2).filter(|text| text.ends_with(".rs")).map(str::to_owned).collect()
}

/// `ARCHITECTURE.md` lists every file of what ships that has `unsafe`, and none that has not.
#[test]
fn unsafe_is_where_the_architecture_says() {
    let listed = listed(&read(&root().join("ARCHITECTURE.md")));
    let idle: Vec<_> = listed.iter().filter(|path| !has_unsafe(&read(&root().join(path)))).collect();
    assert!(idle.is_empty(), "listed in ARCHITECTURE.md, but without unsafe: {idle:#?}");

    let shipped = crates().into_values().flat_map(|(folder, _)| sources(&folder.join("src")));
    let with_unsafe = shipped.filter(|path| has_unsafe(&read(path)));
    let name = |path: PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let unlisted: Vec<_> = with_unsafe.map(name).filter(|path| !listed.contains(path)).collect();
    assert!(unlisted.is_empty(), "with unsafe, but not listed in ARCHITECTURE.md: {unlisted:#?}");
}

/// What the test above rests on: the section ends at the next one, only paths of sources count, and neither
/// a comment nor a text nor a lint is `unsafe`.
#[test]
fn lists_and_sources_are_read_as_meant() {
    let page = "# A\n`x.rs`\n## Unsafe code\n| `a/b.rs` | calls `read` |\n`c.rs`, `d.md`\n## Next\n`e.rs`\n";
    assert_eq!(listed(page), ["a/b.rs", "c.rs"].map(str::to_owned).into());
    assert_eq!(listed("# A\n`x.rs`\n"), BTreeSet::new());
    for without in
        ["#![forbid(unsafe_code)]", "// unsafe {}", "/// unsafe\nfn f() {}", r#"const A: &str = "unsafe";"#]
    {
        assert!(!has_unsafe(without), "{without}");
    }
    for with in [
        "fn f() { unsafe { g() } }",
        "macro_rules! m { () => { unsafe { g() } } }",
        "unsafe impl Sync for A {}",
    ] {
        assert!(has_unsafe(with), "{with}");
    }
}

/// The control plane, the simulator and the program forbid `unsafe` for good.
#[test]
fn some_crates_forbid_unsafe() {
    for path in ["src/lib.rs", "src/main.rs", "controlplane/src/lib.rs", "sim/src/lib.rs"] {
        let words = words(&read(&root().join(path)));
        assert!(words.windows(2).any(|pair| pair == ["forbid", "unsafe_code"]), "{path}");
    }
}

/// The data plane and the rings link into a program without the standard library, which carries a frame from VM
/// to VM; and did they need `std`, it would not build. By: the program in `tests/no_std`, which has a panic
/// handler of its own, built with the versions that this workspace is locked to; and again with `std` asked for.
#[test]
fn the_switch_needs_no_standard_library() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no_std");
    fs::create_dir_all(&folder).unwrap();
    let manifest = format!(
        r#"
[package]
name = "hyper-switch-without-std"
version = "0.0.0"
edition = "2024"

[workspace]

[features]
std = []

[dependencies]
hyper-switch-dataplane = {{ path = '{root}/dataplane' }}
hyper-switch-pvnet = {{ path = '{root}/pvnet', default-features = false }}

[[bin]]
name = "hyper-switch-without-std"
path = '{root}/tests/no_std/program.rs'

[profile.dev]
panic = "abort"
"#,
        root = root().display()
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let manifest = folder.join("Cargo.toml");
    // The folder of the build that this test is part of, where much of what is needed is built already.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let run = |features: &str| {
        let (manifest, target) = (manifest.to_str().unwrap(), target.to_str().unwrap());
        let place = ["--offline", "--manifest-path", manifest, "--target-dir", target];
        let Output { status, stderr, .. } = cargo(&[&["run", "--features", features][..], &place].concat());
        (status.success(), String::from_utf8(stderr).unwrap())
    };
    let (arrived, why) = run("");
    assert!(arrived, "the program was not built, or the frame did not arrive: {why}");
    let (built, why) = run("std");
    assert!(!built && why.contains("E0152"), "std went unnoticed: {why}");
}
