//! Compiles every .proto file below this folder with protox, so that no protoc has to be installed.

use std::path::{Path, PathBuf};

#[expect(clippy::disallowed_methods, reason = "cargo says by OUT_DIR where a build script writes")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files = Vec::new();
    collect(Path::new("."), &mut files)?;
    files.sort();
    println!("cargo:rerun-if-changed=.");
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut bare = descriptors.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&bare))?;
    tonic_prost_build::configure().btree_map(".").bytes(".").include_file("all.rs").compile_fds(descriptors)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("src") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            files.push(path.strip_prefix(".").unwrap_or(&path).to_owned());
        }
    }
    Ok(())
}
