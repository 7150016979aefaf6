//! The interfaces on the bus are what the golden files say: a change of the API is a
//! visible diff. `SHIPOTE_BLESS=1 cargo test -p shipote --test appliance interfaces` writes
//! the files anew.

use std::path::Path;
use std::process::Command;

use crate::support::{Appliance, text};

/// What busctl prints of an object.
fn introspect(shipote: &Appliance, service: &str, path: &str) -> String {
    let address = format!("--address={}", shipote.address());
    let words = [address.as_str(), "introspect", "--xml-interface", service, path];
    let output = Command::new("busctl").args(words).output().expect("busctl is there (package systemd)");
    assert!(output.status.success(), "{service} {path}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The interfaces of ours that an object has: name and XML.
fn interfaces(xml: &str) -> Vec<(String, String)> {
    let ours = |block: &&str| block.starts_with("org.shipote.");
    xml.split("<interface name=\"")
        .skip(1)
        .filter(ours)
        .map(|block| {
            let name = block.split('"').next().unwrap().to_owned();
            let end = block.find("</interface>").unwrap();
            // how deep it is indented depends on the object that it was found below
            let lines: Vec<&str> = block[..end].lines().map(str::trim_start).collect();
            (name, format!("<interface name=\"{}</interface>\n", lines.join("\n")))
        })
        .collect()
}

#[test]
fn every_interface_is_what_its_golden_file_says() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    let spec = shipote.path("p.toml");
    std::fs::write(&spec, "label='p'\nworkspace='demo'\n[[nodes]]\nlabel='a'\ncommand=['sleep','60']\n[[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n").unwrap();
    shipote.ok(&["pipeline", "run", "--tap", "--detach", spec.to_str().unwrap()]);
    let address = format!("--address={}", shipote.address());
    let mut found: Vec<(String, String)> = Vec::new();
    for name in ["Workspaces1", "Machines1", "Proxy1", "Plugins1", "Appliance1"] {
        let service = format!("org.shipote.{name}");
        let tree = Command::new("busctl").args([&address, "tree", "--list", &service]).output().unwrap();
        for path in text(&tree.stdout).lines().filter(|p| p.starts_with("/org/shipote/")) {
            found.extend(interfaces(&introspect(&shipote, &service, path)));
        }
    }
    found.sort();
    found.dedup();
    let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
    for wanted in ["Manager", "Workspace", "Command", "Pipeline", "Flow"] {
        assert!(names.contains(&format!("org.shipote.Workspaces1.{wanted}").as_str()), "{wanted} in {names:?}");
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/bus/interfaces");
    for (name, xml) in &found {
        let file = folder.join(format!("{name}.xml"));
        if std::env::var_os("SHIPOTE_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, xml).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(xml, &golden, "{name} differs from {}; if that is meant, run with SHIPOTE_BLESS=1", file.display());
    }
    // a file without an interface is a promise that nobody keeps
    for entry in std::fs::read_dir(&folder).unwrap() {
        let stem = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(names.contains(&stem.as_str()), "{stem} has a golden file, but nobody serves it");
    }
}

#[test]
fn objects_are_managed() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    let address = format!("--address={}", shipote.address());
    let words = [
        address.as_str(),
        "call",
        "org.shipote.Workspaces1",
        "/org/shipote/Workspaces1",
        "org.freedesktop.DBus.ObjectManager",
        "GetManagedObjects",
    ];
    let output = Command::new("busctl").args(words).output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("/org/shipote/Workspaces1/workspace/") && said.contains("\"demo\""), "{said}");
}
