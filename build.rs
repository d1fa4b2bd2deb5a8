//! With feature `server`: bindings to the patched tree's headers and the C shim.
//!
//! `PG_BUILD` and `PG_SRC` name the build and the source tree (the same for a build in place);
//! PostgreSQL's Makefile sets them. Without the feature there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "server")]
    server::build();
}

#[cfg(feature = "server")]
mod server {
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    const DIR: &str = "src/pg";

    pub fn build() {
        for name in ["PG_BUILD", "PG_SRC"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let build = variable("PG_BUILD");
        let source = env::var("PG_SRC").unwrap_or_else(|_| build.clone());
        let out = PathBuf::from(env::var("OUT_DIR").expect("OUT_DIR is set by cargo"));
        let includes: Vec<String> = vec![
            DIR.to_owned(),
            format!("{build}/src/include"),
            format!("{source}/src/include"),
        ];
        println!("cargo:rerun-if-changed={DIR}");
        // Struct layouts follow the headers of the tree.
        for header in ["pg_config.h", "replication/postgres_r.h"] {
            for include in &includes[1..] {
                let path = format!("{include}/{header}");
                if Path::new(&path).exists() {
                    println!("cargo:rerun-if-changed={path}");
                }
            }
        }
        bindings(&includes, &out);
        shim(&includes);
        patchset(&out);
    }

    /// A symbol that names the patch set: the server is linked only with a library of its own.
    fn patchset(out: &Path) {
        println!("cargo:rerun-if-env-changed=PGR_PATCHSET");
        let set = env::var("PGR_PATCHSET").unwrap_or_else(|_| "none".to_owned());
        let text = format!(
            "/// Identifies the patch series.\npub const PATCHSET: &str = \"{set}\";\n\
             #[used]\n#[unsafe(export_name = \"pgr_patchset_{set}\")]\nstatic MARK: u8 = 1;\n"
        );
        fs::write(out.join("patchset.rs"), text).expect("write patchset.rs");
    }

    fn variable(name: &str) -> String {
        env::var(name).unwrap_or_else(|_| {
            panic!(
                "{name} is not set: feature `server` is built by PostgreSQL's Makefile (`make lib`)"
            )
        })
    }

    fn bindings(includes: &[String], out: &Path) {
        let mut builder = bindgen::Builder::default()
            .header(format!("{DIR}/wrapper.h"))
            .clang_args(includes.iter().map(|i| format!("-I{i}")))
            .clang_args(["-D_GNU_SOURCE", "-Wno-ignored-attributes"])
            .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
            .wrap_unsafe_ops(true)
            .derive_debug(false)
            .derive_default(false)
            .layout_tests(false)
            .generate_comments(false)
            .prepend_enum_name(false)
            .formatter(bindgen::Formatter::None)
            .blocklist_item("FP_.*|IPPORT_.*")
            .blocklist_function(".*setjmp.*|.*longjmp.*");
        let list = fs::read_to_string(format!("{DIR}/allowlist.txt")).expect("the allowlist");
        for line in list
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            let (kind, name) = line
                .split_once(' ')
                .unwrap_or_else(|| panic!("allowlist.txt: {line}"));
            builder = match kind {
                "fn" => builder.allowlist_function(name),
                "type" => builder.allowlist_type(name),
                "var" => builder.allowlist_var(name),
                other => panic!("allowlist.txt: {other} is neither fn, type nor var"),
            };
        }
        let bindings = builder.generate().expect("bindgen");
        bindings
            .write_to_file(out.join("bindings.rs"))
            .expect("write the bindings");
    }

    fn shim(includes: &[String]) {
        let mut cc = cc::Build::new();
        let mut files: Vec<PathBuf> = fs::read_dir(DIR)
            .expect("src/pg")
            .flatten()
            .map(|f| f.path())
            .filter(|f| f.extension().is_some_and(|e| e == "c"))
            .collect();
        files.sort();
        cc.files(&files);
        for include in includes {
            cc.include(include);
        }
        cc.define("_GNU_SOURCE", None)
            .flags([
                "-fno-strict-aliasing",
                "-fwrapv",
                "-fexcess-precision=standard",
                "-Wall",
                "-Wno-unused-parameter",
            ])
            .warnings(false)
            .compile("pgr_shim");
    }
}
