//! Bad input gets a clear error and changes nothing.

use crate::support::{Appliance, text};

/// What is fed to which command, and what the one line on standard error must say.
#[test]
fn what_is_wrong_is_said_and_nothing_happens() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "taken"]);
    let long = "x".repeat(10_000);
    let too_long: &[&str] = &["workspace", "create", &long];
    let node = "label='p'\n[[nodes]]\nlabel='a'\ncommand=['true']\n";
    let create: &[&str] = &["workspace", "create", "new", "-f", "-"];
    let pipeline: &[&str] = &["pipeline", "run", "-"];
    let table: Vec<(&[&str], Vec<u8>, &[&str])> = vec![
        (&["workspace", "create", "taken"], vec![], &["\"taken\"", "name is taken", "choose another"]),
        (too_long, vec![], &["10000 bytes", "128"]),
        (&["workspace", "create", "a/b"], vec![], &["'/'"]),
        (&["workspace", "create", ""], vec![], &["label", "empty"]),
        (&["workspace", "stop", "nobody"], vec![], &["\"nobody\"", "does not exist", "workspace ls"]),
        (&["workspace", "show", "nobody"], vec![], &["\"nobody\"", "does not exist"]),
        (create, b"lable = 'x'".to_vec(), &["lable", "label"]),
        (create, b"[permissions]\nnetwork = 'none'".to_vec(), &["network", "networking", ":2:"]),
        (create, b"[permissions]\nnetworking = 'some'".to_vec(), &["some", "none"]),
        (create, b"egress = ['example.com']".to_vec(), &["egress", "permissions.networking", "outbound"]),
        (create, b"egress = ['http://x']\npermissions.networking = 'outbound'".to_vec(), &["egress[0]", "http://x"]),
        (&["egress", "allow", "workspace:taken", "example.com"], vec![], &["\"taken\"", "no way out", "--egress"]),
        (&["egress", "allow", "workspace:nobody", "example.com"], vec![], &["\"nobody\"", "does not exist"]),
        (&["egress", "allow", "nobody", "example.com"], vec![], &["\"nobody\"", "workspace:NAME"]),
        (create, b"[permissions]\nipc.allow = ['bus']".to_vec(), &["permissions.ipc.allow[0]", "not absolute"]),
        (create, b"[permissions]\nipc.allow = ['/run/dbus/x']".to_vec(), &["permissions.ipc.allow[0]", "no workspace"]),
        (create, b"[permissions]\nipc.allow = ['/etc/hosts']".to_vec(), &["/etc/hosts", "socket"]),
        (create, b"ttl = 'soon'".to_vec(), &["ttl", ":1:"]),
        (create, b"ttl = ".to_vec(), &[":1:"]),
        (create, b"[[paths]]\npath = 'relative'".to_vec(), &["paths[0].path", "not absolute"]),
        (create, b"[[paths]]\npath = '/no/such/path'".to_vec(), &["/no/such/path"]),
        (create, b"label = '\xff'".to_vec(), &["byte 9", "UTF-8"]),
        (create, vec![b'#'; 100 << 20], &["larger than", "bytes"]),
        (pipeline, b"label='p'".to_vec(), &["nodes", "empty"]),
        (pipeline, b"label='p'\n[[node]]\nlabel='a'".to_vec(), &["node", "nodes"]),
        (pipeline, b"label='p'\n[[nodes]]\nlabel='a'\n".to_vec(), &["nodes[0].command", "missing"]),
        (pipeline, format!("{node}[[edges]]\nfrom='a'\nto='a'\n").into_bytes(), &["cycle", "a -> a"]),
        (
            pipeline,
            format!("{node}[[edges]]\nfrom='a'\nto='b'\n").into_bytes(),
            &["edges[0].to", "\"b\"", "there are a"],
        ),
        (pipeline, format!("{node}{}", &node[10..]).into_bytes(), &["nodes[1].label", "taken"]),
        (&["pipeline", "run", "/no/such/file"], vec![], &["/no/such/file", "No such file"]),
        (&["pipeline", "stop", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], vec![], &["pipeline", "does not exist"]),
        (&["logs", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], vec![], &["01ARZ3NDEKTSV4RRFFQ69G5FAV", "does not exist"]),
        (&["kill", "nothing"], vec![], &["\"nothing\"", "does not exist", "shipote ps"]),
        (&["kill", "--signal", "TREM", "nothing"], vec![], &["TREM", "TERM"]),
        (&["flow", "tail", "/no/such/socket"], vec![], &["/no/such/socket", "flow ls"]),
        (&["discern", "/no/such/file"], vec![], &["discern /no/such/file"]),
    ];
    for (words, input, wanted) in table {
        let output = shipote.fed(words, &input);
        let said = text(&output.stderr);
        let shown: String = words.join(" ").chars().take(80).collect();
        assert_eq!(output.status.code(), Some(1), "{shown}: {said}");
        assert_eq!(text(&output.stdout), "", "{shown}");
        assert!(said.starts_with("shipote: ") && said.trim_end().lines().count() == 1, "{shown}: {said}");
        for word in wanted {
            assert!(said.contains(word), "{shown}: {word:?} in {said:?}");
        }
    }
    // What is wrong with a file is said by the file's name, and nobody has a line of another text.
    let wrong = shipote.path("wrong.toml");
    let file = wrong.to_str().unwrap();
    let unknown = "# a comment\ncolour = 'red'\n";
    let table: &[(&str, &[&str], &str)] = &[
        (unknown, &["workspace", "create", "new", "-f", file], ":2:1: colour: unknown key"),
        ("egress = ['a.example']", &["workspace", "create", "new", "-f", file], ": egress: is for a workspace"),
        (unknown, &["run", "-f", file, "--", "true"], ":2:1: colour: unknown key"),
        ("ttl = 0", &["run", "-f", file, "--", "true"], ": ttl: is 0"),
        (unknown, &["pipeline", "run", file], ":2:1: colour: unknown key"),
        ("label = 'p'", &["pipeline", "run", file], ": nodes: is empty"),
        (unknown, &["pipeline", "save", "p", file], ":2:1: colour: unknown key"),
        (unknown, &["session", "create", "new", "-f", file], ": colour: unknown key"),
        ("label = ", &["session", "create", "new", "-f", file], ":1:"),
        (unknown, &["machine", "create", "new", "-f", file], ":2:1: colour: unknown key"),
        (unknown, &["machine", "create", "new", "-f", file, "--cpus", "2"], ": colour: unknown key"),
    ];
    for (text_of_it, words, wanted) in table {
        std::fs::write(&wrong, text_of_it).unwrap();
        let said = text(&shipote.run(words).stderr);
        assert!(said.contains(&format!("{file}{wanted}")) && said.lines().count() == 1, "{words:?}: {said}");
    }
    let left = shipote.json(&["workspace", "list", "--json"]);
    assert_eq!(left["workspaces"].as_array().unwrap().len(), 1, "a refused call left something: {left}");
    assert_eq!(shipote.json(&["pipeline", "list", "--json"])["pipelines"], serde_json::json!([]));
}

#[test]
fn without_an_appliance_the_way_out_is_named() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_shipote"))
        .args(["ps"])
        .env("SHIPOTE_BUS_ADDRESS", "unix:path=/no/such/bus")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("/no/such/bus") && said.contains("shipote up"), "{said}");
}
