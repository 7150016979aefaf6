//! What a file is, before anything compiles it: a component or not, and what it imports and exports by name.
//!
//! Reads section headers only, so that a hostile file costs time and memory in proportion to its size, and bounded by
//! [`Limits`]. It is not a validator: whoever compiles the component validates it.

use wasmparser::{Encoding, Parser, Payload};

/// Bounds on what is read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the file.
    pub size: u64,
    /// Imports, and exports, of the component itself.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The largest tool chains known produce 18 MB (Python) and 12 MB (JavaScript).
        Self { size: 64 << 20, names: 1_000 }
    }
}

/// A component's outermost imports and exports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Names of imports, as written.
    pub imports: Vec<String>,
    /// Names of exports, as written.
    pub exports: Vec<String>,
}

/// Why a file is not a component that can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Too many bytes.
    #[error(
        "the file has {size} bytes, more than the {limit} that are accepted; leave out debug sections (`wasm-tools strip`)"
    )]
    TooLarge {
        /// Bytes found.
        size: u64,
        /// Bytes accepted.
        limit: u64,
    },
    /// No WebAssembly at all.
    #[error("not WebAssembly: the file does not begin with \\0asm; give the component, not its source")]
    NotWasm,
    /// A core module.
    #[error(
        "a core module, not a component; turn it into one (`wasm-tools component new`, or a component tool chain of your language)"
    )]
    CoreModule,
    /// Cut off or garbled.
    #[error("malformed at byte {offset}: {message}; was the file cut off?")]
    Malformed {
        /// Where.
        offset: u64,
        /// What.
        message: String,
    },
    /// Too many names.
    #[error("more than {limit} {what}; a plugin exports one interface per kind of middleware and the registry")]
    TooManyNames {
        /// `imports` or `exports`.
        what: &'static str,
        /// Accepted.
        limit: usize,
    },
}

impl Shape {
    /// Reads the shape of `bytes`.
    ///
    /// # Errors
    /// When it is no component, or past `limits`.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, ShapeError> {
        let size = bytes.len() as u64;
        if size > limits.size {
            return Err(ShapeError::TooLarge { size, limit: limits.size });
        }
        if !bytes.starts_with(b"\0asm") {
            return Err(ShapeError::NotWasm);
        }
        let mut shape = Self::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(malformed)? {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    return Err(ShapeError::CoreModule);
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        shape.imports.push(import.map_err(malformed)?.name.name.to_owned());
                        if shape.imports.len() > limits.names {
                            return Err(ShapeError::TooManyNames { what: "imports", limit: limits.names });
                        }
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        shape.exports.push(export.map_err(malformed)?.name.name.to_owned());
                        if shape.exports.len() > limits.names {
                            return Err(ShapeError::TooManyNames { what: "exports", limit: limits.names });
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(shape)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn malformed(error: wasmparser::BinaryReaderError) -> ShapeError {
    ShapeError::Malformed { offset: error.offset() as u64, message: error.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, limits: Limits) -> Result<Shape, ShapeError> {
        Shape::read(&wat::parse_str(text).unwrap(), limits)
    }

    #[test]
    fn only_the_outermost_names_count() {
        let shape = read(
            r#"(component
                (import "a:b/c" (instance))
                (component (import "inner:x/y" (instance)) (core module (import "m" "n" (func))))
                (instance $i)
                (export "d:e/f" (instance $i)))"#,
            Limits::default(),
        )
        .unwrap();
        assert_eq!(shape, Shape { imports: vec!["a:b/c".into()], exports: vec!["d:e/f".into()] });
    }

    #[test]
    fn what_is_no_component_is_named() {
        assert!(matches!(Shape::read(b"#!/bin/sh", Limits::default()), Err(ShapeError::NotWasm)));
        assert!(matches!(read("(module)", Limits::default()), Err(ShapeError::CoreModule)));
        let whole = wat::parse_str("(component (core module (func)))").unwrap();
        for cut in 4..whole.len() {
            let error = Shape::read(&whole[..cut], Limits::default());
            // A component cut between two sections is a shorter component; compiling it is the validator's business.
            assert!(matches!(error, Ok(_) | Err(ShapeError::Malformed { .. })), "{cut}: {error:?}");
        }
        let limits = Limits { size: 8, names: 1 };
        assert!(matches!(Shape::read(&whole, limits), Err(ShapeError::TooLarge { limit: 8, .. })));
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let many: String = (0..3).map(|n| format!("(export \"x{n}\" (instance $i))")).collect();
        let text = format!("(component (instance $i) {many})");
        let limits = Limits { size: 1 << 20, names: 2 };
        assert!(matches!(read(&text, limits), Err(ShapeError::TooManyNames { what: "exports", limit: 2 })));
    }
}
