//! A method of the bus that nobody has said who may call is told here, before the virtual machine tells it
//! (`vm-tests/hostile_user.py`, which tries each).

use std::fs;
use std::path::Path;

/// Of the embedded appliance, which is no service on the system bus.
const EMBEDDED: &str = "org.shipote.Appliance1.";

fn attribute<'a>(line: &'a str, element: &str) -> Option<&'a str> {
    line.trim().strip_prefix(element)?.strip_prefix(" name=\"")?.split('"').next()
}

#[test]
fn every_method_has_a_row_in_the_table_of_hostile_users() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let table = fs::read_to_string(root.join("vm-tests/hostile_user.py")).unwrap();
    let mut missing = Vec::new();
    let mut methods = 0;
    for entry in fs::read_dir(root.join("services/shared/bus/interfaces")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut interface = "";
        for line in text.lines() {
            interface = attribute(line, "<interface").unwrap_or(interface);
            let Some(method) = attribute(line, "<method") else { continue };
            if interface.starts_with(EMBEDDED) {
                continue;
            }
            methods += 1;
            // `org.shipote.Workspaces1.Manager`, of which the table says `WORKSPACES, "Manager.Run"`
            let (service, part) =
                interface.trim_start_matches("org.shipote.").split_once('.').unwrap_or(("", "Service1"));
            let service = service.trim_end_matches('1').to_uppercase();
            let row = if service.is_empty() { "(service, " } else { &format!("({service}, ") };
            if !table.contains(&format!("{row}\"{part}.{method}\"")) {
                missing.push(format!("{interface}.{method}"));
            }
        }
    }
    assert!(methods > 50, "only {methods} methods were found");
    assert!(missing.is_empty(), "no row in vm-tests/hostile_user.py says who may call {missing:?}");
}
