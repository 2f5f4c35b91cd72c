//! `make layers`: prints the import circles between files of different rooms, for the crates in the given directories.

use std::process::ExitCode;

use weft_layers::{LayersError, Sources};

fn main() -> ExitCode {
    let mut left = 0;
    for directory in std::env::args().skip(1) {
        match report(&directory) {
            Ok(circles) => left += circles,
            Err(error) => {
                eprintln!("layers: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the circles of one crate and returns their number.
fn report(directory: &str) -> Result<usize, LayersError> {
    let sources = Sources::read(directory)?;
    let circles = sources.circles();
    println!("{directory}: {} files, {} rooms, {} circles", sources.files(), sources.rooms().len(), circles.len());
    for circle in &circles {
        println!("  {} files: {}", circle.len(), circle.join(" "));
    }
    Ok(circles.len())
}
