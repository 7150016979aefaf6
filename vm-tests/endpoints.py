# Services joined: a published port is reached through the proxy by the workspace's name, and a workspace reaches what its
# list says by the proxy, and nothing else. Under the units' own hardening: the workspaces service has no network at all.

import json

SERVER = r"""
use IO::Socket::INET;
my ($port, $page) = @ARGV;
my $listening = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 64, ReuseAddr => 1) or die $!;
while (my $client = $listening->accept) {
    while (<$client>) { last if /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($page) . "\r\nConnection: close\r\n\r\n$page";
    close $client;
}
"""
# Which method it is asked by, and which user it is.
PROGRAM = 'print "Content-Type: text/plain\\n\\n$ENV{REQUEST_METHOD} $<\\n"'
RULES = {
    "rules": [
        {
            "name": "web",
            "listen": ["127.0.0.1:8000"],
            "terminate": {"type": "http_proxy", "upstream": "workspace:web:8080"},
        },
        {
            "name": "program",
            "listen": ["127.0.0.1:8001"],
            "terminate": {"type": "cgi", "workspace": "app", "command": ["/usr/bin/env", "perl", "-e", PROGRAM]},
        },
    ]
}
# localhost is a host like any other here
CURL = "curl -sS --max-time 60 --noproxy ''"


def curl(url, *arguments):
    """What a command of the workspace gets, by the way that its environment names."""
    return machine.execute(f"shipote run -w web -- {CURL} {' '.join(arguments)} {url} 2>&1")[1]


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("shipote-proxy.service", timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed(
    f"cat > /tmp/server.pl <<'EOF'\n{SERVER}\nEOF",
    f"mkdir -p /etc/shipote/proxy/rules && cat > /etc/shipote/proxy/rules/web.json <<'EOF'\n{json.dumps(RULES)}\nEOF",
    "shipote proxy reload",
)

with subtest("a published port is reached by name"):
    machine.succeed("shipote workspace create web --publish 8080 --egress 127.0.0.1:9000")
    machine.succeed("shipote run -w web --detach -- perl -e \"$(cat /tmp/server.pl)\" 8080 inside")
    machine.wait_until_succeeds("curl -sS --fail http://127.0.0.1:8000/ | grep -x inside", timeout=120)

with subtest("a program in a workspace answers a request, as a user of the workspace's"):
    machine.succeed("shipote workspace create app --serve /usr/bin/env")
    method, user = machine.succeed("curl -sS --fail --max-time 60 http://127.0.0.1:8001/").split()
    assert method == "GET", method
    assert user == machine.succeed("shipote run -w app -- id -u").strip(), user
    # one that the workspace does not list is not run
    refused = json.loads(json.dumps(RULES["rules"][1]))
    refused["terminate"]["command"] = ["/usr/bin/id"]
    machine.succeed(
        f"cat > /etc/shipote/proxy/rules/web.json <<'EOF'\n{json.dumps({'rules': [RULES['rules'][0], refused]})}\nEOF",
        "shipote proxy reload",
    )
    answered = machine.succeed("curl -sS --max-time 60 -o /tmp/refused -w '%{http_code}' http://127.0.0.1:8001/")
    assert answered != "200" and "uid=" not in machine.succeed("cat /tmp/refused"), answered

with subtest("a flow is a record of the journal, with a field for each thing, where that is asked for"):
    machine.succeed(
        "mkdir -p /etc/shipote/shipote.toml.d",
        "printf '[proxy]\\nflow_log = \"journal\"\\n' > /etc/shipote/shipote.toml.d/flows.toml",
        "systemctl restart shipote-proxy.service",
    )
    machine.wait_until_succeeds("curl -sS --fail 'http://127.0.0.1:8000/seen?by=all' | grep -x inside", timeout=120)
    look = "journalctl -q -b -u shipote-proxy.service -o json F_RULE=web F_PATH=/seen"
    machine.wait_until_succeeds(f"{look} | grep -q F_STATUS", timeout=60)
    flow = json.loads(machine.succeed(f"{look} -n 1"))
    assert (flow["F_STATUS"], flow["F_METHOD"], flow["F_CLIENT"]) == ("200", "GET", "127.0.0.1"), flow
    assert flow["F_UPSTREAM"] == "workspace:web:8080" and int(flow["F_DURATION_US"]) > 0, flow
    machine.succeed("rm /etc/shipote/shipote.toml.d/flows.toml", "systemctl restart shipote-proxy.service")
    machine.wait_until_succeeds("curl -sS --fail http://127.0.0.1:8000/ | grep -x inside", timeout=120)

with subtest("a workspace reaches what is on its list"):
    machine.succeed("systemd-run --unit outside perl /tmp/server.pl 9000 outside")
    machine.succeed("systemd-run --unit secret perl /tmp/server.pl 9001 secret")
    machine.wait_until_succeeds("curl -sS http://127.0.0.1:9000/ && curl -sS http://127.0.0.1:9001/", timeout=60)
    for words in ["", "--proxytunnel", "--proxy socks5h://127.0.0.1:3128"]:
        assert curl("http://127.0.0.1:9000/", words) == "outside", words

with subtest("and nothing else: the refusal says what to allow, around the proxy there is nothing"):
    said = curl("http://127.0.0.1:9001/")
    assert "shipote egress allow workspace:web 127.0.0.1:9001" in said, said
    assert "169.254.169.254 is not on the list" in curl("http://169.254.169.254/")
    for words in ["--noproxy '*' http://127.0.0.1:9000/", "--noproxy '*' http://192.0.2.1/"]:
        said = curl(words)
        assert "outside" not in said and "curl: (7)" in said, said
    denials = json.loads(machine.succeed("shipote egress list --denials --json"))["denials"]
    assert any("127.0.0.1:9001" in denial["reason"] for denial in denials), denials

with subtest("the list changes while it runs, by whoever may"):
    status, said = machine.execute("runuser -u mallory -- shipote egress allow workspace:web 127.0.0.1:9001 2>&1")
    assert status == 1 and "org.shipote.workspaces.egress" in said, said
    assert curl("http://127.0.0.1:9001/") != "secret"
    machine.succeed("shipote egress allow workspace:web 127.0.0.1:9001")
    machine.wait_until_succeeds(f"shipote run -w web -- {CURL} http://127.0.0.1:9001/ | grep -x secret", timeout=60)
    machine.succeed("shipote egress deny workspace:web 127.0.0.1:9001")

for unit in ["shipote-proxy", "shipote-workspaces"]:
    with subtest(f"the way out outlives {unit}"):
        machine.succeed(f"systemctl kill --kill-whom=main -s KILL {unit}")
        machine.wait_until_succeeds(f"systemctl is-active {unit} && shipote ps", timeout=60)
        machine.wait_until_succeeds(f"shipote run -w web -- {CURL} http://127.0.0.1:9000/ | grep -x outside", timeout=60)
        assert "shipote egress allow workspace:web 127.0.0.1:9001" in curl("http://127.0.0.1:9001/")
        machine.wait_until_succeeds("curl -sS --fail http://127.0.0.1:8000/ | grep -x inside", timeout=60)

with subtest("a workspace that nobody needs sleeps, gives memory back, and is woken by the first request"):
    machine.succeed("shipote workspace create idle --publish 8080 --idle 2")
    machine.succeed("shipote run -w idle --detach -- perl -e \"$(cat /tmp/server.pl)\" 8080 awake")
    rule = {"name": "idle", "listen": ["127.0.0.1:8001"], "terminate": {"type": "http_proxy", "upstream": "workspace:idle:8080"}}
    machine.succeed(
        f"cat > /etc/shipote/proxy/rules/idle.json <<'EOF'\n{json.dumps({'rules': [rule]})}\nEOF", "shipote proxy reload"
    )
    machine.wait_until_succeeds("shipote workspace list | grep -w idle | grep sleeping", timeout=120)
    machine.wait_until_succeeds("curl -sS --fail http://127.0.0.1:8001/ | grep -x awake", timeout=120)
    woken = json.loads(machine.succeed("shipote workspace list --json"))["workspaces"]
    woken = next(one for one in woken if one["name"] == "idle")
    assert woken["sleeps"] >= 1 and woken["wake_usec"] > 0, woken
    print(f"waking took {woken['wake_usec']} us")
    records = machine.succeed("shipote audit --object idle")
    assert "workspace.freeze" in records and "workspace.thaw" in records, records
    machine.succeed("shipote workspace stop idle")
    said = machine.succeed("curl -sS -w '%{http_code}' http://127.0.0.1:8001/")
    assert said.endswith("503") and "does not exist" in said, said
    machine.succeed("rm /etc/shipote/proxy/rules/idle.json", "shipote proxy reload")

with subtest("it ends with the workspace"):
    machine.succeed("shipote workspace stop web", "shipote workspace stop app", "systemctl stop outside secret")
    machine.succeed("rm /etc/shipote/proxy/rules/web.json")
    machine.wait_until_fails("shipote egress list | grep workspace:web", timeout=60)
    machine.succeed("shipote proxy reload")
    changes = machine.succeed("shipote audit --action egress.change --object workspace:web").splitlines()
    assert len([line for line in changes if "ok" in line]) == 2, changes
