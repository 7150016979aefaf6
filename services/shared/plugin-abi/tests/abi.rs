//! Components built against the published packages load and answer through this crate's types.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use shipote_plugin_abi::fixtures::{Fixture, RESULT};
use shipote_plugin_abi::handlers::*;
use shipote_plugin_abi::host::{self, *};
use shipote_plugin_abi::metadata::*;
use shipote_plugin_abi::policy::Policy;
use shipote_plugin_abi::shape::{Limits, Shape};
use shipote_plugin_abi::{REGISTRY_INTERFACE, check};
use wasmtime::component::{Component, ComponentNamedList, Instance, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Config, Engine, Store};

#[derive(Default)]
struct Recorder {
    logged: Vec<(LogLevel, String, Vec<LogField>)>,
    counted: Vec<(String, u64)>,
}

impl Host for Recorder {
    fn args(&self) -> &str {
        "{\"limit\": 7}"
    }
    fn log(&mut self, level: LogLevel, message: String, fields: Vec<LogField>) {
        self.logged.push((level, message, fields));
    }
    fn random(&mut self, buffer: &mut [u8]) -> wasmtime::Result<()> {
        buffer.fill(42);
        Ok(())
    }
    fn metric_counter(&mut self, name: String, delta: u64, _: Vec<MetricLabel>) {
        self.counted.push((name, delta));
    }
    fn metric_gauge(&mut self, _: String, _: i64, _: Vec<MetricLabel>) {}
    fn http_fetch(&mut self, request: HttpFetchRequest) -> wasmtime::Result<Result<HttpFetchResponse, NetError>> {
        Ok(Err(NetError::NotAllowed(request.url)))
    }
}

struct Loaded {
    store: Store<Recorder>,
    instance: Instance,
    shape: Shape,
}

fn load(fixture: &Fixture) -> Loaded {
    let bytes = fixture.component();
    let shape = Shape::read(&bytes, Limits::default()).unwrap();
    let mut config = Config::new();
    config.concurrency_support(false);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, &bytes).unwrap();
    let mut linker = Linker::new(&engine);
    host::add_to_linker(&mut linker).unwrap();
    let mut store = Store::new(&engine, Recorder::default());
    let instance = linker.instantiate(&mut store, &component).unwrap();
    Loaded { store, instance, shape }
}

impl Loaded {
    fn func<P, R>(&mut self, interface: &str, name: &str) -> TypedFunc<P, R>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let interface = self.instance.get_export_index(&mut self.store, None, interface).unwrap();
        let index = self.instance.get_export_index(&mut self.store, Some(&interface), name).unwrap();
        self.instance.get_typed_func(&mut self.store, index).unwrap()
    }

    fn metadata(&mut self) -> Metadata {
        self.func::<(), (Metadata,)>(REGISTRY_INTERFACE, "get-metadata").call(&mut self.store, ()).unwrap().0
    }

    fn handle<I, D>(&mut self, kind: MiddlewareKind, input: I) -> Result<D, PluginError>
    where
        (String, I): ComponentNamedList + Lower,
        (Result<D, PluginError>,): ComponentNamedList + Lift,
    {
        let func = self.func::<(String, I), (Result<D, PluginError>,)>(kind.interface(), "handle");
        func.call(&mut self.store, (kind.name().to_owned(), input)).unwrap().0
    }
}

fn headers(count: usize) -> Vec<Header> {
    (0..count).map(|n| Header { name: format!("x-{n}"), value: format!("value {n}") }).collect()
}

fn context() -> Vec<ContextEntry> {
    let values = [
        ContextValue::Text("t".into()),
        ContextValue::Bytes(vec![0, 255]),
        ContextValue::Int64(-1),
        ContextValue::Uint64(u64::MAX),
        ContextValue::Boolean(true),
        ContextValue::ListText(vec!["a".into(), String::new()]),
    ];
    values.into_iter().map(|value| ContextEntry { path: "conn.id".into(), value }).collect()
}

#[test]
fn every_kind_of_handler_loads_and_answers() {
    let mut fixture = Fixture::new("all-kinds", "1.2.3", &MiddlewareKind::ALL);
    fixture.metadata.exports[2].needs_body = true;
    fixture.metadata.exports[2].inspects = vec!["conn.tls.sni".into(), "conn.peer_ip".into()];
    let mut plugin = load(&fixture);
    let metadata = plugin.metadata();
    assert_eq!(metadata, fixture.metadata);
    assert_eq!(check::check_shape(&plugin.shape, &Policy::default()), []);
    assert_eq!(check::check_metadata(&metadata, &plugin.shape), []);

    let peek = L4PeekInput { peek: vec![1; 8192], context: context() };
    assert_eq!(plugin.handle(MiddlewareKind::L4Peek, peek), Ok(L4PeekDecision::Continue));
    let view = BytesView { data: vec![7; 65_536], truncated: true };
    let bytes = L4BytesInput { bytes: view.clone(), context: context() };
    assert_eq!(plugin.handle(MiddlewareKind::L4Bytes, bytes), Ok(L4BytesDecision::Continue));
    let (method, uri) = ("GET".to_owned(), "/".to_owned());
    let request = L7RequestInput { method, uri, headers: headers(20), body: Some(view), context: context() };
    let lent = L7RequestRef::from(&request);
    assert_eq!(plugin.handle(MiddlewareKind::L7Request, lent), Ok(L7RequestDecision::Continue));
    assert_eq!(plugin.handle(MiddlewareKind::L7Request, request), Ok(L7RequestDecision::Continue));
    let response = L7ResponseInput { status: 200, headers: headers(20), body: None, context: context() };
    assert_eq!(plugin.handle(MiddlewareKind::L7Response, response), Ok(L7ResponseDecision::Continue));
}

#[test]
fn a_response_is_changed_by_adding_a_header() {
    let mut plugin = load(&Fixture::stamping("stamp", "1.0.0", "x-stamp", "seen"));
    for count in [0, 1, 20, 5_000] {
        let input = L7ResponseInput { status: 200, headers: headers(count), body: None, context: vec![] };
        let mut expected = headers(count);
        expected.push(Header { name: "x-stamp".into(), value: "seen".into() });
        let modified = ModifiedResponse { status: None, headers: Some(expected), body: None };
        assert_eq!(plugin.handle(MiddlewareKind::L7Response, input), Ok(L7ResponseDecision::Modify(modified)));
    }
}

#[test]
fn a_request_is_answered_by_the_plugin_itself() {
    let mut plugin = load(&Fixture::answering("teapot", "1.0.0", 418, "short and stout"));
    let (method, uri) = ("BREW".to_owned(), "/pot".to_owned());
    let input = L7RequestInput { method, uri, headers: headers(3), body: None, context: vec![] };
    let response = SynthResponse { status: 418, headers: vec![], body: b"short and stout".to_vec() };
    assert_eq!(plugin.handle(MiddlewareKind::L7Request, input), Ok(L7RequestDecision::Short(response)));
}

#[test]
fn host_functions_reach_the_host_and_their_faults_stop_the_plugin() {
    let mut fixture = Fixture::new("talker", "1.0.0", &[MiddlewareKind::L4Peek]);
    fixture.imports = r#"
        (import "vane:host/host@0.1.0" "log" (func $log (param i32 i32 i32 i32 i32)))
        (import "vane:host/host@0.1.0" "metric-counter" (func $count (param i32 i32 i64 i32 i32)))"#
        .into();
    let (message, good, bad) = (fixture.text("hello"), fixture.text("calls_total"), fixture.text("9calls"));
    fixture.handlers[0].1 = format!(
        "(call $log (i32.const 3) (i32.const {message}) (i32.const 5) (i32.const 0) (i32.const 0))
         (call $count (i32.const {good}) (i32.const 11) (i64.const 2) (i32.const 0) (i32.const 0)) i32.const {RESULT}"
    );
    let input = || L4PeekInput { peek: vec![], context: vec![] };
    let mut plugin = load(&fixture);
    assert_eq!(plugin.handle(MiddlewareKind::L4Peek, input()), Ok(L4PeekDecision::Continue));
    assert_eq!(plugin.store.data().logged, [(LogLevel::Warn, "hello".into(), vec![])]);
    assert_eq!(plugin.store.data().counted, [("calls_total".into(), 2)]);

    fixture.handlers[0].1 = format!(
        "(call $count (i32.const {bad}) (i32.const 6) (i64.const 2) (i32.const 0) (i32.const 0)) i32.const {RESULT}"
    );
    let mut plugin = load(&fixture);
    let func = plugin.func::<(String, L4PeekInput), (Result<L4PeekDecision, PluginError>,)>(
        MiddlewareKind::L4Peek.interface(),
        "handle",
    );
    let error = func.call(&mut plugin.store, ("x".into(), input())).unwrap_err();
    assert!(format!("{error:?}").contains("9calls"), "{error:?}");
    assert!(plugin.store.data().counted.is_empty());
}

#[test]
fn an_error_in_band_comes_back_whole() {
    let mut fixture = Fixture::new("fails", "1.0.0", &[MiddlewareKind::L4Peek]);
    let (code, hint) = (fixture.text("quota"), fixture.text("force-close"));
    fixture.handlers[0].1 = format!(
        "(i32.store8 (i32.const {RESULT}) (i32.const 1))
         (i32.store (i32.const {}) (i32.const {code})) (i32.store (i32.const {}) (i32.const 5))
         (i32.store8 (i32.const {}) (i32.const 1))
         (i32.store (i32.const {}) (i32.const {hint})) (i32.store (i32.const {}) (i32.const 11)) i32.const {RESULT}",
        RESULT + 4,
        RESULT + 8,
        RESULT + 20,
        RESULT + 24,
        RESULT + 28,
    );
    let input = L4PeekInput { peek: vec![], context: vec![] };
    let error = load(&fixture).handle::<_, L4PeekDecision>(MiddlewareKind::L4Peek, input).unwrap_err();
    assert_eq!((error.code.as_str(), error.message.as_str()), ("quota", ""));
    assert_eq!(error.hint(), Some(ErrorHint::ForceClose));
}

/// The plugins in `wit/examples`, as text that needs no tool chain. `BLESS=1` writes them anew.
#[test]
fn the_examples_are_what_the_fixtures_build() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../wit/examples");
    let table = [
        ("stamp.wat", ";; Adds the header x-shipote: stamped to every response.\n", {
            Fixture::stamping("stamp", "1.0.0", "x-shipote", "stamped")
        }),
        ("teapot.wat", ";; Answers every request with status 418.\n", {
            Fixture::answering("teapot", "1.0.0", 418, "short and stout\n")
        }),
    ];
    for (file, head, fixture) in table {
        let text = format!("{head}{}", wasmprinter::print_bytes(fixture.component()).unwrap());
        let path = examples.join(file);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap() == text, "{file} is not current; run this test with BLESS=1");
        assert!(wat::parse_str(&text).is_ok());
    }
}
