//! Small plugins for tests and benches, built from the packages in `wit/` and a core module in text form, with no
//! tool chain but the crates `wat` and `wit-component`. Not for shipping: enabled by the feature `fixtures` alone.

use std::fmt::Write as _;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::metadata::{Metadata, MiddlewareExport, MiddlewareKind};
use crate::{HOST_INTERFACE, REGISTRY_INTERFACE, wit};

/// Where static data begins; below it lies zeroed memory.
const DATA: u32 = 1024;
/// 64 zeroed bytes that read as `ok(continue)` for every handler; a handler may write its result there.
pub const RESULT: u32 = 64;

/// An interface that one plugin may offer and another want.
pub const LEAF: &str = "test:link/leaf@1.0.0";

/// A plugin to build.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// What `get-metadata` answers.
    pub metadata: Metadata,
    /// Instructions that `get-metadata` runs before it answers.
    pub on_metadata: String,
    /// Handler interfaces to export, each with its function's body: instructions that leave the result's address.
    /// `local.get 0` and on are the flattened parameters, `call $alloc` gives memory until the call's end.
    pub handlers: Vec<(MiddlewareKind, String)>,
    /// Core imports in text form, such as `(import "vane:host/host@0.1.0" "now-unix-ms" (func $now (result i64)))`.
    pub imports: String,
    /// Further imports and exports of the world, in WIT.
    pub world: String,
    /// WIT packages that the world names, each a text of its own.
    pub packages: Vec<String>,
    /// Further core functions in text form, such as those of an interface that is offered to other plugins.
    pub functions: String,
    /// Pages of memory, at first and at most.
    pub pages: (u32, u32),
    data: Vec<u8>,
}

impl Fixture {
    /// A plugin `name` of version `version` with one export per kind, called like the kind, that always answers
    /// `continue`.
    #[must_use]
    pub fn new(name: &str, version: &str, kinds: &[MiddlewareKind]) -> Self {
        let export = |kind: &MiddlewareKind| MiddlewareExport {
            name: kind.name().to_owned(),
            kind: *kind,
            stateless: true,
            needs_body: false,
            inspects: Vec::new(),
            needs_streaming_body: false,
        };
        Self {
            metadata: Metadata {
                name: name.to_owned(),
                version: version.to_owned(),
                abi_version: crate::ABI_VERSION.to_string(),
                exports: kinds.iter().map(export).collect(),
            },
            on_metadata: String::new(),
            handlers: kinds.iter().map(|kind| (*kind, format!("i32.const {RESULT}"))).collect(),
            imports: String::new(),
            world: String::new(),
            packages: Vec::new(),
            functions: String::new(),
            pages: (2, 64),
            data: Vec::new(),
        }
    }

    /// A plugin that answers every request itself, with `status` and `body`.
    #[must_use]
    pub fn answering(name: &str, version: &str, status: u16, body: &str) -> Self {
        let mut this = Self::new(name, version, &[MiddlewareKind::L7Request]);
        let (at, length) = (this.text(body), body.len());
        this.handlers[0].1 = format!(
            "(i32.store8 (i32.const {}) (i32.const 1)) (i32.store16 (i32.const {}) (i32.const {status}))
             (i32.store (i32.const {}) (i32.const {at})) (i32.store (i32.const {}) (i32.const {length})) i32.const {RESULT}",
            RESULT + 4,
            RESULT + 8,
            RESULT + 20,
            RESULT + 24,
        );
        this
    }

    /// A plugin that lets requests pass which carry `header` (in lower case) with exactly `value`, and answers all others
    /// with status 401 and `body`. How long it takes does not tell how much of a value was right.
    #[must_use]
    pub fn guarding(name: &str, version: &str, (header, value): (&str, &str), body: &str) -> Self {
        let mut this = Self::new(name, version, &[MiddlewareKind::L7Request]);
        let [header_at, value_at, body_at] = [header, value, body].map(|text| this.text(text));
        this.functions = "(func $same (param $a i32) (param $b i32) (param $n i32) (result i32) (local $d i32)
             (block $end (loop $next
               (br_if $end (i32.eqz (local.get $n)))
               (local.set $n (i32.sub (local.get $n) (i32.const 1)))
               (local.set $d (i32.or (local.get $d) (i32.xor
                 (i32.load8_u (i32.add (local.get $a) (local.get $n)))
                 (i32.load8_u (i32.add (local.get $b) (local.get $n))))))
               (br $next)))
             (i32.eqz (local.get $d)))"
            .to_owned();
        let (header_length, value_length, body_length) = (header.len(), value.len(), body.len());
        this.handlers[0].1 = format!(
            "(local $at i32) (local $left i32)
             (memory.fill (i32.const {RESULT}) (i32.const 0) (i32.const 64))
             (local.set $at (local.get 6)) (local.set $left (local.get 7))
             (block $denied (loop $next
               (br_if $denied (i32.eqz (local.get $left)))
               (if (i32.and
                     (i32.eq (i32.load offset=4 (local.get $at)) (i32.const {header_length}))
                     (i32.eq (i32.load offset=12 (local.get $at)) (i32.const {value_length})))
                 (then (if (i32.and
                       (call $same (i32.load (local.get $at)) (i32.const {header_at}) (i32.const {header_length}))
                       (call $same (i32.load offset=8 (local.get $at)) (i32.const {value_at}) (i32.const {value_length})))
                   (then (return (i32.const {RESULT}))))))
               (local.set $at (i32.add (local.get $at) (i32.const 16)))
               (local.set $left (i32.sub (local.get $left) (i32.const 1)))
               (br $next)))
             (i32.store8 (i32.const {}) (i32.const 1)) (i32.store16 (i32.const {}) (i32.const 401))
             (i32.store (i32.const {}) (i32.const {body_at})) (i32.store (i32.const {}) (i32.const {body_length}))
             i32.const {RESULT}",
            RESULT + 4,
            RESULT + 8,
            RESULT + 20,
            RESULT + 24,
        );
        this
    }

    /// A plugin without handlers that offers [`LEAF`]: its `value` adds `add` to its argument.
    #[must_use]
    pub fn offering(name: &str, version: &str, add: u32) -> Self {
        Self::offering_that(name, version, &format!("(i32.add (local.get 0) (i32.const {add}))"))
    }

    /// The same with a body of its own for `value`.
    #[must_use]
    pub fn offering_that(name: &str, version: &str, body: &str) -> Self {
        let mut this = Self::new(name, version, &[]);
        this.packages = vec!["package test:link@1.0.0; interface leaf { value: func(n: u32) -> u32; }".to_owned()];
        this.world = format!("export {LEAF};");
        this.functions = format!("(func (export \"{LEAF}#value\") (param i32) (result i32) {body})");
        this
    }

    /// A plugin that calls `value` of [`LEAF`] with 400 and answers every request with the status that this gives; with
    /// 500 and the error's case if it fails.
    #[must_use]
    pub fn wanting(name: &str, version: &str) -> Self {
        let mut this = Self::new(name, version, &[MiddlewareKind::L7Request]);
        this.packages = vec![
            "package test:link@1.0.0; interface leaf { use shipote:link/errors@0.1.0.{call-error}; value: func(n: u32) -> result<u32, call-error>; }"
                .to_owned(),
        ];
        this.world = format!("import {LEAF};");
        this.imports = format!("(import \"{LEAF}\" \"value\" (func $value (param i32 i32)))");
        this.handlers[0].1 = format!(
            "(call $value (i32.const 400) (i32.const 512))
             (i32.store8 (i32.const {}) (i32.const 1))
             (i32.store16 (i32.const {}) (if (result i32) (i32.load8_u (i32.const 512))
               (then (i32.add (i32.const 500) (i32.load8_u (i32.const 516)))) (else (i32.load (i32.const 516)))))
             i32.const {RESULT}",
            RESULT + 4,
            RESULT + 8,
        );
        this
    }

    /// A plugin that adds a header to every response.
    #[must_use]
    pub fn stamping(name: &str, version: &str, header: &str, value: &str) -> Self {
        let mut this = Self::new(name, version, &[MiddlewareKind::L7Response]);
        let (key_at, value_at) = (this.text(header), this.text(value));
        let mut entry = Vec::new();
        for word in [key_at as usize, header.len(), value_at as usize, value.len()] {
            entry.extend(u32::try_from(word).expect("fixtures are small").to_le_bytes());
        }
        let entry = this.bytes(&entry, 4);
        this.handlers[0].1 = format!(
            "(local $list i32) (local $size i32)
             (local.set $size (i32.mul (local.get 4) (i32.const 16)))
             (local.set $list (call $alloc (i32.add (local.get $size) (i32.const 16))))
             (memory.copy (local.get $list) (local.get 3) (local.get $size))
             (memory.copy (i32.add (local.get $list) (local.get $size)) (i32.const {entry}) (i32.const 16))
             (i32.store8 (i32.const {}) (i32.const 1)) (i32.store8 (i32.const {}) (i32.const 1))
             (i32.store (i32.const {}) (local.get $list))
             (i32.store (i32.const {}) (i32.add (local.get 4) (i32.const 1))) i32.const {RESULT}",
            RESULT + 4,
            RESULT + 12,
            RESULT + 16,
            RESULT + 20,
        );
        this
    }

    /// Puts `text` into static data and returns its address.
    pub fn text(&mut self, text: &str) -> u32 {
        self.bytes(text.as_bytes(), 1)
    }

    /// Puts `bytes` into static data at a multiple of `align` and returns their address.
    pub fn bytes(&mut self, bytes: &[u8], align: usize) -> u32 {
        self.data.resize(self.data.len().next_multiple_of(align), 0);
        let at = self.data.len();
        self.data.extend(bytes);
        DATA + u32::try_from(at).expect("fixtures are small")
    }

    /// The component's bytes.
    ///
    /// # Panics
    /// When a body or import is not valid text, as a test's author will want to see.
    #[must_use]
    pub fn component(&self) -> Vec<u8> {
        let mut this = self.clone();
        let metadata = this.metadata_record();
        let mut funcs = format!(
            "(func (export \"{REGISTRY_INTERFACE}#get-metadata\") (result i32) {} i32.const {metadata})",
            this.on_metadata
        );
        let mut world = format!("import {HOST_INTERFACE};\nexport {REGISTRY_INTERFACE};\n{}", this.world);
        for (kind, body) in &this.handlers {
            let params = match kind {
                MiddlewareKind::L4Peek => "i32 ".repeat(6),
                MiddlewareKind::L4Bytes => "i32 ".repeat(7),
                MiddlewareKind::L7Request => "i32 ".repeat(14),
                MiddlewareKind::L7Response => "i32 ".repeat(11),
            };
            let interface = kind.interface();
            write!(funcs, "(func (export \"{interface}#handle\") (param {params}) (result i32) {body} (global.set $heap (i32.const {HEAP})))")
                .expect("a String takes everything");
            writeln!(world, "export {interface};").expect("a String takes everything");
        }
        let module = this.module(&funcs);
        encode_with(&module, &world, &this.packages)
    }

    fn module(&self, funcs: &str) -> String {
        let data: String = self.data.iter().map(|byte| format!("\\{byte:02x}")).collect();
        let (first, most) = self.pages;
        format!(
            "(module {imports} (memory (export \"memory\") {first} {most}) (data (i32.const {DATA}) \"{data}\")
               (global $heap (mut i32) (i32.const {HEAP}))
               (func $alloc (param i32) (result i32) (local $at i32)
                 (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                 (global.set $heap (i32.add (local.get $at) (local.get 0)))
                 (block $fits (loop $more
                   (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
                   (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
                   (br $more)))
                 (local.get $at))
               (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (local $at i32)
                 (local.set $at (call $alloc (local.get 3)))
                 (memory.copy (local.get $at) (local.get 0) (local.get 1))
                 (local.get $at))
               {funcs} {functions})",
            imports = self.imports,
            functions = self.functions,
        )
    }

    fn metadata_record(&mut self) -> u32 {
        let metadata = self.metadata.clone();
        let mut exports = Vec::new();
        for export in &metadata.exports {
            let mut inspects = Vec::new();
            for path in &export.inspects {
                let at = self.text(path);
                pair(&mut inspects, at, path.len());
            }
            let inspects_at = self.bytes(&inspects, 4);
            let name = self.text(&export.name);
            pair(&mut exports, name, export.name.len());
            exports.extend([export.kind as u8, export.stateless.into(), export.needs_body.into(), 0]);
            pair(&mut exports, inspects_at, export.inspects.len());
            exports.extend([export.needs_streaming_body.into(), 0, 0, 0]);
        }
        let exports_at = self.bytes(&exports, 4);
        let mut record = Vec::new();
        for text in [&metadata.name, &metadata.version, &metadata.abi_version] {
            let at = self.text(text);
            pair(&mut record, at, text.len());
        }
        pair(&mut record, exports_at, metadata.exports.len());
        self.bytes(&record, 4)
    }
}

/// Where memory that the host fills begins: behind the first page, which holds static data.
const HEAP: u32 = 65_536;

fn pair(into: &mut Vec<u8>, at: u32, length: usize) {
    into.extend(at.to_le_bytes());
    into.extend(u32::try_from(length).expect("fixtures are small").to_le_bytes());
}

/// Builds a component from a core module in text form and a world's items in WIT, with the packages of `wit/` known.
///
/// # Panics
/// When either is not valid.
#[must_use]
pub fn encode(module: &str, world: &str) -> Vec<u8> {
    encode_with(module, world, &[])
}

fn encode_with(module: &str, world: &str, packages: &[String]) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let push = |resolve: &mut Resolve, name: &str, text: &str| {
        resolve.push_str(name, text).unwrap_or_else(|error| panic!("{name}: {error:#}"))
    };
    push(&mut resolve, "fake.wit", "package wasi:cli@0.2.0; interface fake { now: func(); }");
    push(&mut resolve, "host.wit", wit::HOST);
    push(&mut resolve, "link.wit", wit::LINK);
    push(&mut resolve, "state.wit", wit::STATE);
    let handlers = wit::HANDLERS.replacen("package vane:plugin@0.1.0;", "", 1);
    push(&mut resolve, "plugin.wit", &format!("{}{handlers}", wit::TYPES));
    for (at, text) in packages.iter().enumerate() {
        push(&mut resolve, &format!("{at}.wit"), text);
    }
    let package = push(&mut resolve, "fixture.wit", &format!("package fixture:plugin;\nworld plugin {{ {world} }}"));
    let world = resolve.select_world(&[package], Some("plugin")).expect("one world");
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}\n{module}"));
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("embeds");
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .unwrap_or_else(|error| panic!("{error:#}"))
}
