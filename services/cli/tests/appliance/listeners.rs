//! Nobody who connects is refused while the proxy is down: its listening sockets are kept, and the next instance answers
//! who waits.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;

use crate::endpoints::get;
use crate::support::{Appliance, eventually, free_port};

fn fixed(appliance: &Appliance, ports: &[u16]) {
    let folder = appliance.config().join("proxy/rules");
    std::fs::create_dir_all(&folder).unwrap();
    let rules: Vec<_> = ports
        .iter()
        .map(|port| {
            json!({"name": format!("at-{port}"), "listen": [format!("127.0.0.1:{port}")],
                "terminate": {"type": "static", "status": 200, "text": format!("port {port}")}})
        })
        .collect();
    std::fs::write(folder.join("fixed.json"), json!({"rules": rules}).to_string()).unwrap();
}

/// Ends the proxy and waits until its process is gone.
fn end(appliance: &Appliance, signal: Signal) -> Pid {
    let before = appliance.service("proxy");
    kill_process(before, signal).unwrap();
    eventually("the proxy is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", before.as_raw_nonzero())).unwrap_or_default();
        // a zombie has closed what it had
        test_kill_process(before).is_err() || stat.contains(") Z ")
    });
    before
}

#[test]
fn connections_wait_for_the_next_instance_and_none_is_refused() {
    let appliance = Appliance::start();
    let (kept, dropped) = (free_port(), free_port());
    fixed(&appliance, &[kept, dropped]);
    appliance.ok(&["proxy", "reload"]);
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let answer = format!("port {kept}");
        eventually("the rules are served", || get(kept) == Some((200, answer.clone())));
        let before = end(&appliance, signal);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| get(kept))).collect();
            for client in clients {
                assert_eq!(client.join().unwrap(), Some((200, answer.clone())), "after {signal:?}");
            }
        });
        assert_ne!(appliance.service("proxy"), before);
    }
    // what no rule names any more is closed, also if it was kept
    fixed(&appliance, &[kept]);
    appliance.ok(&["proxy", "reload"]);
    eventually("it is closed", || get(dropped).is_none());
    end(&appliance, Signal::KILL);
    assert_eq!(get(kept), Some((200, format!("port {kept}"))));
    assert_eq!(get(dropped), None);
}
