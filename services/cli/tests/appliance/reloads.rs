//! What a reload takes over, what it refuses, and that it says so.

use rustix::process::{Signal, kill_process};

use crate::support::{Appliance, eventually, text};

/// All services, and what of each a misspelt key is refused with.
const SERVICES: [(&str, &str, &str); 4] = [
    ("workspaces", "admn", "did you mean `admin`?"),
    ("machines", "strt_s", "did you mean `start_s`?"),
    ("proxy", "worker", "did you mean `workers`?"),
    ("plugins", "policy", "unknown key `policy`"),
];

fn hang_up(shipote: &Appliance, service: &str) {
    kill_process(shipote.service(service), Signal::HUP).unwrap();
}

/// Lines of the log that have all of these.
fn said(shipote: &Appliance, parts: &[&str]) -> usize {
    shipote.log().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn a_configuration_that_a_start_would_refuse_is_not_reloaded() {
    let shipote = Appliance::start_with(|_| ());
    let write = |text: &str| std::fs::write(shipote.config().join("shipote.toml"), text).unwrap();
    for (service, key, hint) in SERVICES {
        write(&format!("[{service}]\n{key} = 1\n"));
        hang_up(&shipote, service);
        let place = format!("shipote.toml:2:1: {service}.{key}");
        eventually("the reload is refused", || said(&shipote, &["reload refused", &place, hint]) > 0);
    }
    write("[proxi]\nworkers = 1\n");
    for (service, _, _) in SERVICES {
        hang_up(&shipote, service);
    }
    let parts = ["reload refused", "unknown section `proxi`; did you mean `proxy`?"];
    eventually("every service refuses the section", || said(&shipote, &parts) == SERVICES.len());
    let refused = shipote.run(&["proxy", "reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("did you mean `proxy`?"), "{}", text(&refused.stderr));
    assert_eq!(said(&shipote, &["configuration reloaded"]), 0, "{}", shipote.log());
    write("[proxy.egress.\"workspace:web\"]\nallow = [\"http://x\"]\n");
    let refused = shipote.run(&["proxy", "reload"]);
    assert!(text(&refused.stderr).contains("http://x"), "{}", text(&refused.stderr));
    write("");
    hang_up(&shipote, "plugins");
    eventually("what is right is reloaded", || said(&shipote, &["configuration reloaded"]) == 1);
}

#[test]
fn a_setting_that_is_read_at_the_start_is_not_silently_left_as_it_was() {
    let shipote = Appliance::start_with(|_| ());
    std::fs::write(shipote.config().join("shipote.toml"), "[proxy]\nhead_bytes = 4096\n").unwrap();
    let reloaded = shipote.run(&["proxy", "reload"]);
    let note = "hold from the next start of shipote-proxy on: proxy.head_bytes";
    assert!(reloaded.status.success() && text(&reloaded.stderr).contains(note), "{}", text(&reloaded.stderr));
    hang_up(&shipote, "proxy");
    eventually("the service says so", || said(&shipote, &["configuration reloaded", note]) > 0);
}
