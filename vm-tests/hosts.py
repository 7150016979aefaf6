# Two hosts with the appliance: the proxy of one is the only way to the workspaces on it, and the list of a workspace on the
# other is all that it reaches.
# machines: client gateway
# minutes: 5

import json

# On NixOS the module writes what the firewall lets through (vm-tests/default.nix); a name is resolved by the client's proxy.
PORT = 8000
SERVER = r"""
use IO::Socket::INET;
my $listening = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8080, Listen => 64, ReuseAddr => 1) or die $!;
while (my $client = $listening->accept) {
    while (<$client>) { last if /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ninside\n";
    close $client;
}
"""
RULES = {
    "rules": [
        {
            "name": "web",
            "listen": [f":{PORT}"],
            "terminate": {"type": "http_proxy", "upstream": "workspace:web:8080"},
        }
    ]
}
CURL = "curl -sS --max-time 60"


start_all()
for host in machines:
    host.wait_for_unit("multi-user.target")
    host.wait_for_unit("shipote-proxy.service", timeout=240)

with subtest("what a workspace publishes is reached from another host, by the proxy"):
    gateway.succeed(
        f"cat > /tmp/server.pl <<'EOF'\n{SERVER}\nEOF",
        f"mkdir -p /etc/shipote/proxy/rules && cat > /etc/shipote/proxy/rules/web.json <<'EOF'\n{json.dumps(RULES)}\nEOF",
        # its power is cut below
        "sync",
        "shipote proxy reload",
        "shipote workspace create web --publish 8080",
        "shipote run -w web --detach -- perl -e \"$(cat /tmp/server.pl)\"",
    )
    client.wait_until_succeeds(f"{CURL} --fail http://gateway:{PORT}/ | grep -x inside", timeout=120)

with subtest("and by nothing else"):
    # the port is open in the workspace's own network, and nowhere on the host
    client.fail(f"{CURL} --max-time 10 http://gateway:8080/")
    gateway.fail(f"{CURL} --max-time 10 http://127.0.0.1:8080/")

with subtest("a workspace on the other host reaches it where its list says so, and only there"):
    address = client.succeed("getent ahostsv4 gateway | awk 'NR == 1 { print $1 }'").strip()
    client.succeed(f"shipote workspace create worker --egress {address}:{PORT}")
    client.wait_until_succeeds(f"shipote run -w worker -- {CURL} http://{address}:{PORT}/ | grep -x inside", timeout=120)
    client.succeed("shipote workspace create alone --egress 192.0.2.1")
    status, said = client.execute(f"shipote run -w alone -- {CURL} http://{address}:{PORT}/ 2>&1")
    assert "inside" not in said and f"shipote egress allow workspace:alone {address}:{PORT}" in said, (status, said)

with subtest("a host that loses its power is an error that names it, not a hang"):
    gateway.crash()
    status, said = client.execute(f"shipote run -w worker -- {CURL} http://{address}:{PORT}/ 2>&1")
    print(f"     {said.strip()}")
    assert "inside" not in said and (address in said or "curl: (28)" in said), (status, said)

with subtest("it is back with the same rules, and what it publishes is reached again"):
    gateway.start()
    gateway.wait_for_unit("shipote-proxy.service", timeout=240)
    gateway.succeed(
        "shipote workspace create web --publish 8080",
        f"cat > /tmp/server.pl <<'EOF'\n{SERVER}\nEOF",
        "shipote run -w web --detach -- perl -e \"$(cat /tmp/server.pl)\"",
    )
    client.wait_until_succeeds(f"shipote run -w worker -- {CURL} http://{address}:{PORT}/ | grep -x inside", timeout=120)
