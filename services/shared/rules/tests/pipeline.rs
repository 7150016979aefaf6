//! The whole pipeline: what a graph does for a request is what the rules, read one by one, say.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, missing_docs, reason = "a test: what fails should panic")]

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use shipote_rules::{Field, Graph, Node, NodeId, Phase, Shortcuts, Source, Terminator, Value, View, compile};

struct Request {
    ip: IpAddr,
    sni: Option<&'static str>,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    http: bool,
}

impl Default for Request {
    fn default() -> Self {
        let ip = IpAddr::from([127, 0, 0, 1]);
        Self { ip, sni: None, method: "GET", path: "/".to_owned(), headers: Vec::new(), http: true }
    }
}

impl View for Request {
    fn any(&self, field: &Field, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        match field {
            Field::Transport => f(Value::Bytes(b"tcp")),
            Field::RemoteIp => f(Value::Address(self.ip)),
            Field::TlsSni => self.sni.is_some_and(|s| f(Value::Bytes(s.as_bytes()))),
            Field::Method => f(Value::Bytes(self.method.as_bytes())),
            Field::UriPath => f(Value::Bytes(self.path.as_bytes())),
            Field::Header(name) => {
                self.headers.iter().filter(|(n, _)| n == name).any(|(_, v)| f(Value::Bytes(v.as_bytes())))
            }
            _ => false,
        }
    }
}

/// The rule that takes a request, and the phases that the walk went through.
fn walk(graph: &Graph, entry: NodeId, request: &Request) -> (String, Vec<Phase>) {
    let (rule, phases, _) = walk_with(graph, &Shortcuts::default(), entry, request);
    (rule, phases)
}

/// The same by shortcuts, and how many checks were tried.
fn walk_with(graph: &Graph, shortcuts: &Shortcuts, entry: NodeId, request: &Request) -> (String, Vec<Phase>, usize) {
    let mut phases = Vec::new();
    let mut tried = 0;
    let mut at = entry;
    loop {
        at = match graph.node(at) {
            Node::Check { check, yes, no } => match shortcuts.next(at, request) {
                Some(next) => next,
                None => {
                    tried += 1;
                    if graph.check(*check).holds(request) { *yes } else { *no }
                }
            },
            Node::Detect { http, other } => {
                if request.http {
                    *http
                } else {
                    *other
                }
            }
            Node::Upgrade { to, next } => {
                phases.push(*to);
                *next
            }
            Node::Middleware { next, .. } => *next,
            Node::Terminate { terminator, .. } => {
                let entry = graph.terminator(*terminator);
                let name = if entry.rule.is_empty() { entry.terminator.name().to_owned() } else { entry.rule.clone() };
                return (name, phases, tried);
            }
        };
    }
}

fn graph(rules: Json) -> Graph {
    compile(&[Source::new("r.json", json!({ "rules": rules }).to_string())]).unwrap()
}

fn rule(name: &str, matches: Json, terminate: Json) -> Json {
    json!({"name": name, "listen": ["127.0.0.1:80"], "match": matches, "terminate": terminate})
}

fn fixed() -> Json {
    json!({"type": "static", "status": 200})
}

#[test]
fn the_more_specific_rule_wins_wherever_it_is_written() {
    let g = graph(json!([
        rule("all", json!({}), fixed()),
        rule("api", json!({"http.uri.path": {"prefix": "/api"}}), fixed()),
        rule("api-post", json!({"http.uri.path": {"prefix": "/api"}, "http.method": {"equals": "POST"}}), fixed()),
    ]));
    let take = |method, path: &str| {
        walk(&g, g.listeners[0].entry, &Request { method, path: path.into(), ..Default::default() }).0
    };
    assert_eq!(take("GET", "/"), "all");
    assert_eq!(take("GET", "/api/x"), "api");
    assert_eq!(take("POST", "/api/x"), "api-post");
    assert_eq!(g.listeners[0].rules, ["api-post", "api", "all"]);
}

#[test]
fn a_thousand_rules_are_not_tried_one_by_one() {
    let paths =
        (0..500).map(|i| rule(&format!("p{i}"), json!({"http.uri.path": {"prefix": format!("/{i}/")}}), fixed()));
    let names = (0..500).map(|i| {
        let both = json!({"http.header.h": {"equals": format!("n{i}")}, "http.uri.path": {"prefix": format!("/{i}/")}});
        rule(&format!("n{i}"), both, fixed())
    });
    let g = graph(json!(paths.chain(names).collect::<Vec<_>>()));
    let shortcuts = Shortcuts::of(&g);
    for (path, name, takes) in [
        ("/499/", "", "p499"),
        ("/7/x", "n7", "n7"),
        ("/7/x", "n8", "p7"),
        ("/", "n499", "static"),
        ("/x", "", "static"),
    ] {
        let headers = vec![("h", name.to_owned())];
        let request = Request { path: path.to_owned(), headers, ..Default::default() };
        let (taken, _, tried) = walk_with(&g, &shortcuts, g.listeners[0].entry, &request);
        assert_eq!(taken, takes, "{path} {name}");
        assert!(tried < 20, "{tried} for {path} {name}");
    }
}

#[test]
fn without_a_match_a_request_gets_404_and_bytes_are_closed() {
    let g = graph(json!([rule("a", json!({"http.uri.path": {"equals": "/a"}}), fixed())]));
    let (end, phases) = walk(&g, g.listeners[0].entry, &Request::default());
    assert_eq!((end.as_str(), phases), ("static", vec![Phase::Request]));
    let g = graph(json!([rule(
        "a",
        json!({"remote.ip": {"cidr": "10.0.0.0/8"}}),
        json!({"type": "tcp_forward", "upstream": "a:1"})
    )]));
    assert_eq!(walk(&g, g.listeners[0].entry, &Request::default()).0, "close");
}

#[test]
fn names_are_forwarded_before_anything_is_decrypted() {
    let mut site = rule("site", json!({}), fixed());
    site["tls"] = json!({"cert_file": "/c", "key_file": "/k", "enable_zero_rtt": false});
    let g = graph(json!([
        site,
        rule("db", json!({"tls.sni": {"equals": "db"}}), json!({"type": "tcp_forward", "upstream": "a:1"}))
    ]));
    let entry = g.listeners[0].entry;
    let (end, phases) = walk(&g, entry, &Request { sni: Some("db"), ..Default::default() });
    assert_eq!((end.as_str(), phases), ("db", vec![Phase::Peek]));
    let (end, phases) = walk(&g, entry, &Request { sni: Some("www"), ..Default::default() });
    assert_eq!((end.as_str(), phases), ("site", vec![Phase::Peek, Phase::Tls, Phase::Request]));
}

#[test]
fn http_and_other_bytes_can_share_a_listener() {
    let g = graph(json!([
        rule("a", json!({"http.uri.path": {"prefix": "/a"}}), fixed()),
        rule("b", json!({"http.uri.path": {"prefix": "/b"}}), fixed()),
        rule("ssh", json!({}), json!({"type": "tcp_forward", "upstream": "127.0.0.1:22"})),
    ]));
    let entry = g.listeners[0].entry;
    assert_eq!(walk(&g, entry, &Request { http: false, ..Default::default() }).0, "ssh");
    assert_eq!(walk(&g, entry, &Request { path: "/b".into(), ..Default::default() }).0, "b");
    let detects = g.nodes.iter().filter(|n| matches!(n, Node::Detect { .. })).count();
    assert_eq!(detects, 1);
}

#[test]
fn equal_listeners_share_their_graph_and_equal_checks_are_kept_once() {
    let mut a = rule("a", json!({"http.uri.path": {"prefix": "/a"}, "http.method": {"equals": "GET"}}), fixed());
    a["listen"] = json!([":80", ":8080"]);
    let g = graph(json!([a]));
    assert_eq!(g.listeners.len(), 4);
    assert!(g.listeners.iter().all(|l| l.entry == g.listeners[0].entry));
    assert_eq!(g.checks.len(), 2);
}

#[test]
fn a_rule_that_nothing_reaches_is_a_warning() {
    let first = json!({"order": -1, "rules": [rule("first", json!({}), fixed())]});
    let second = json!({"rules": [rule("second", json!({}), fixed())]});
    let g = compile(&[Source::new("a.json", first.to_string()), Source::new("b.json", second.to_string())]).unwrap();
    assert_eq!(g.warnings.len(), 1);
    assert!(g.warnings[0].contains("\"second\""), "{:?}", g.warnings);
}

#[test]
fn contradictions_between_levels_are_refused_by_field() {
    for (rule, field) in [
        (
            rule("a", json!({"http.method": {"equals": "GET"}}), json!({"type": "tcp_forward", "upstream": "a:1"})),
            "match",
        ),
        (rule("a", json!({"tls.version": {"equals": "1.3"}}), fixed()), "match"),
        (json!({"name": "a", "listen": ["udp:53"], "terminate": fixed()}), "listen"),
        (json!({"name": "a", "listen": [":53"], "terminate": {"type": "udp_forward", "upstream": "a:1"}}), "listen"),
        (
            json!({"name": "a", "listen": [":53"], "middleware_chain": [{"use": "forward_client_ip"}],
            "terminate": {"type": "tcp_forward", "upstream": "a:1"}}),
            "middleware_chain",
        ),
    ] {
        let result = compile(&[Source::new("r.json", json!({"rules": [rule]}).to_string())]);
        assert_eq!(result.unwrap_err().0[0].field, field, "{rule}");
    }
}

#[test]
fn a_certificate_by_acme_is_known_by_its_names_and_contradictions_are_refused() {
    let site = |name: &str, listen: &str, tls: Json| json!({"name": name, "listen": [listen], "tls": tls, "terminate": fixed()});
    let g = graph(json!([
        site("a", ":443", json!({"acme": ["A.example", "www.a.example"]})),
        site("b", ":443", json!({"sni": "b.example", "cert_file": "/b.pem", "key_file": "/b.key"})),
        site("c", ":8443", json!({"acme": ["a.example", "www.a.example"]})),
    ]));
    let tls = serde_json::to_value(&g).unwrap()["listeners"][0]["tls"].clone();
    assert_eq!(tls["by_name"]["www.a.example"], json!({"acme": ["a.example", "www.a.example"]}));
    assert_eq!(tls["by_name"]["b.example"]["cert_file"], "/b.pem");
    assert_eq!(tls["default"], Json::Null);
    for (a, b, field, why) in [
        (json!({"acme": ["a.example"]}), json!({"acme": ["a.example", "b.example"]}), "tls.acme", "first of one list"),
        (
            json!({"acme": ["a.example"]}),
            json!({"acme": ["b.example", "a.example"]}),
            "tls.acme",
            "another certificate",
        ),
        (json!({"acme": ["a.example"]}), json!({"acme": ["*.b.example"]}), "tls.acme", "wildcard"),
        (json!({"acme": ["a.example"]}), json!({"acme": []}), "tls.acme", "at least one"),
        (json!({"acme": ["a.example"]}), json!({"acme": ["b.example"], "sni": "b.example"}), "tls.sni", "of no use"),
        (json!({"acme": ["a.example"]}), json!({"acme": ["b.example"], "key_file": "/k"}), "tls.key_file", "of no use"),
    ] {
        let text = json!({"rules": [site("a", ":443", a), site("b", ":443", b.clone())]}).to_string();
        let problems = compile(&[Source::new("r.json", text)]).unwrap_err().0;
        assert!(problems.iter().any(|p| p.field == field && p.message.contains(why)), "{b}: {problems:?}");
    }
}

#[test]
fn the_graph_prints_as_json() {
    let g = graph(json!([rule(
        "a",
        json!({"http.uri.path": {"prefix": "/a"}}),
        json!({"type": "http_proxy", "upstream": "a:1"})
    )]));
    let value = serde_json::to_value(&g).unwrap();
    assert_eq!(value["listeners"][0]["address"], "127.0.0.1:80");
    assert_eq!(value["checks"][0], json!({"field": "http.uri.path", "operator": {"prefix": "/a"}}));
    assert!(value["terminators"].as_array().unwrap().iter().any(|t| t["type"] == "http_proxy" && t["rule"] == "a"));
}

fn check() -> impl Strategy<Value = Json> {
    prop_oneof![
        "/[ab]{0,2}".prop_map(|p| json!({"http.uri.path": {"prefix": p}})),
        "/[ab]{0,2}".prop_map(|p| json!({"http.uri.path": {"not_equals": p}})),
        prop::sample::select(vec!["GET", "POST"]).prop_map(|m| json!({"http.method": {"equals": m}})),
        "[xy]".prop_map(|v| json!({"http.header.h": {"equals": v}})),
        "[xy]".prop_map(|v| json!({"http.header.h": {"not_equals": v}})),
        prop::sample::select(vec!["127.0.0.0/8", "10.0.0.0/8"]).prop_map(|n| json!({"remote.ip": {"cidr": n}})),
    ]
}

/// What many rules ask: alike, as what shortcuts are made for, or not.
fn many() -> impl Strategy<Value = Vec<Json>> {
    let path = || {
        prop_oneof![
            "/[ab]{0,3}".prop_map(|p| json!({"http.uri.path": {"prefix": p}})),
            "/[ab]{0,3}".prop_map(|p| json!({"http.uri.path": {"equals": p}})),
            prop::collection::vec("/[ab]{1,3}", 1..3).prop_map(|p| json!({"http.uri.path": {"in": p}})),
        ]
    };
    let name = || "[xyz]".prop_map(|v| json!({"http.header.h": {"equals": v}}));
    let both = || (name(), path()).prop_map(|(name, path)| json!({"all_of": [name, path]}));
    let two = || prop::collection::vec(path(), 2);
    let mixed = prop_oneof![
        path(),
        name(),
        both(),
        two().prop_map(|v| json!({"any_of": v})),
        two().prop_map(|v| json!({"all_of": v})),
        path().prop_map(|v| json!({"not": v})),
        check(),
    ];
    prop_oneof![
        prop::collection::vec(path(), 1..60),
        prop::collection::vec(both(), 1..60),
        prop::collection::vec(two().prop_map(|v| json!({"all_of": v})), 1..60),
        prop::collection::vec(mixed, 1..60),
    ]
}

fn predicate() -> impl Strategy<Value = Json> {
    check().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|v| json!({"all_of": v})),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|v| json!({"any_of": v})),
            inner.prop_map(|v| json!({"not": v})),
        ]
    })
}

/// The meaning of a `match`, straight from its JSON.
fn means(value: &Json, request: &Request) -> bool {
    value.as_object().unwrap().iter().all(|(key, value)| match key.as_str() {
        "all_of" => value.as_array().unwrap().iter().all(|v| means(v, request)),
        "any_of" => value.as_array().unwrap().iter().any(|v| means(v, request)),
        "not" => !means(value, request),
        "http.uri.path" => {
            let (operator, value) = value.as_object().unwrap().iter().next().unwrap();
            match operator.as_str() {
                "prefix" => request.path.starts_with(value.as_str().unwrap()),
                "equals" => *value == request.path,
                "not_equals" => *value != request.path,
                "in" => value.as_array().unwrap().iter().any(|path| *path == request.path),
                other => unreachable!("{other}"),
            }
        }
        "http.method" => value["equals"] == request.method,
        "http.header.h" => match (value["equals"].as_str(), value["not_equals"].as_str()) {
            (Some(want), _) => request.headers.iter().any(|(_, v)| v == want),
            (_, Some(no)) => !request.headers.is_empty() && request.headers.iter().all(|(_, v)| v != no),
            _ => unreachable!(),
        },
        "remote.ip" => (value["cidr"] == "127.0.0.0/8") == request.ip.is_loopback(),
        other => unreachable!("{other}"),
    })
}

/// One rule for each `match`, named by its place.
fn graph_of(predicates: &[Json]) -> Graph {
    let rules: Vec<Json> =
        predicates.iter().enumerate().map(|(i, p)| rule(&i.to_string(), p.clone(), fixed())).collect();
    graph(json!(rules))
}

/// The first of these rules whose `match` holds, else what answers where none does.
fn first<'r>(rules: &'r [String], predicates: &[Json], request: &Request) -> &'r str {
    let holds = |name: &&String| means(&predicates[name.parse::<usize>().unwrap()], request);
    rules.iter().find(holds).map_or("static", String::as_str)
}

proptest! {
    #[test]
    fn a_walk_finds_the_first_rule_that_holds(
        predicates in prop::collection::vec(predicate(), 1..6),
        path in "/[ab]{0,2}",
        post in any::<bool>(),
        loopback in any::<bool>(),
        headers in prop::collection::vec("[xyz]", 0..3),
    ) {
        let g = graph_of(&predicates);
        let request = Request {
            ip: if loopback { [127, 0, 0, 1] } else { [10, 0, 0, 1] }.into(),
            method: if post { "POST" } else { "GET" },
            path,
            headers: headers.into_iter().map(|v| ("h", v)).collect(),
            ..Default::default()
        };
        let listener = &g.listeners[0];
        let expected = first(&listener.rules, &predicates, &request);
        let (found, _) = walk(&g, listener.entry, &request);
        prop_assert_eq!(found.as_str(), expected);
    }

    #[test]
    fn shortcuts_lead_where_trying_each_check_leads(
        predicates in many(),
        path in "/[ab]{0,4}",
        post in any::<bool>(),
        headers in prop::collection::vec("[wxyz]", 0..3),
    ) {
        let g = graph_of(&predicates);
        let request = Request {
            method: if post { "POST" } else { "GET" },
            path,
            headers: headers.into_iter().map(|v| ("h", v)).collect(),
            ..Default::default()
        };
        let listener = &g.listeners[0];
        let expected = first(&listener.rules, &predicates, &request);
        let (found, phases, tried) = walk_with(&g, &Shortcuts::of(&g), listener.entry, &request);
        prop_assert_eq!(found.as_str(), expected);
        let (_, plain, all) = walk_with(&g, &Shortcuts::default(), listener.entry, &request);
        prop_assert_eq!(phases, plain);
        prop_assert!(tried <= all);
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in ".{0,200}", toml in any::<bool>()) {
        let name = if toml { "a.toml" } else { "a.json" };
        let _ = compile(&[Source::new(name, text)]);
    }

    #[test]
    fn no_value_in_a_rule_makes_the_compiler_panic(
        field in prop::sample::select(vec!["name", "listen", "match", "middleware_chain", "tls", "terminate", "args", "preset"]),
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!([])), Just(json!({})), Just(json!("")), Just(json!([{}])),
            Just(json!([":1", 2])), Just(json!({"http.header.": {"in": 1}})), predicate(),
            Just(json!("reverse_proxy")), Just(json!({"upstream": "[::1]:1", "websocket": []})),
        ],
    ) {
        let mut entry = rule("a", json!({}), fixed());
        entry[field] = value;
        if let Err(problems) = compile(&[Source::new("a.json", json!({"rules": [entry]}).to_string())]) {
            prop_assert!(!problems.0.is_empty());
        }
    }
}

#[test]
fn a_redirect_and_a_proxy_keep_their_rule_names() {
    let g = graph(json!([
        {"preset": "reverse_proxy", "name": "web", "listen": [":80"], "args": {"upstream": "a:1", "websocket": true}},
        {"preset": "redirect_https", "name": "up", "listen": [":81"]},
    ]));
    let names: Vec<&str> = g.terminators.iter().map(|t| t.rule.as_str()).filter(|n| !n.is_empty()).collect();
    assert_eq!(names.len(), 3);
    for name in ["web.ws", "web.main", "up"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(g.terminators.iter().any(|t| matches!(&t.terminator, Terminator::HttpProxy(p) if p.websocket)));
}

#[test]
fn http_on_udp_is_http3_and_needs_a_certificate_and_its_address_alone() {
    let tls = json!({"cert_file": "/c", "key_file": "/k"});
    let compile = |rules: Json| compile(&[Source::new("a.json", json!({"rules": rules}).to_string())]);
    let http = json!({"name": "web", "listen": ["127.0.0.1:443", "udp:127.0.0.1:443"], "tls": tls,
        "terminate": {"type": "static", "status": 200}});
    let graph = compile(json!([http])).unwrap();
    let kinds: Vec<_> = graph.listeners.iter().map(|l| (l.listen.transport.name(), l.tls.is_some())).collect();
    assert_eq!(kinds, [("tcp", true), ("quic", true)]);
    let told = serde_json::to_string(&graph).unwrap();
    assert!(told.contains(r#""alt-svc","h3=\":443\"; ma=86400""#), "{told}");

    let mut plain = http.clone();
    plain.as_object_mut().unwrap().remove("tls");
    assert!(compile(json!([plain])).unwrap_err().to_string().contains("HTTP/3"));
    let forward = json!({"name": "dns", "listen": ["udp:127.0.0.1:443"],
        "terminate": {"type": "udp_forward", "upstream": "10.0.0.1:53"}});
    assert!(compile(json!([http, forward])).unwrap_err().to_string().contains("\"dns\""));
    let unix = json!({"name": "u", "listen": ["127.0.0.1:80"],
        "terminate": {"type": "http3_proxy", "upstream": "unix:/run/x"}});
    assert!(compile(json!([unix])).unwrap_err().to_string().contains("HTTP/3"));
}
