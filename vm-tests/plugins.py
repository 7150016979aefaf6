# The registry and the proxy as units of their own users on the system bus: a plugin from the file to the request, a canary
# and its way back by itself, and who may do what.

import json

RULES = {
    "rules": [
        {
            "name": "tea",
            "listen": ["127.0.0.1:8018"],
            "middleware_chain": [{"use": "teapot:l7-request"}],
            "terminate": {"type": "static", "status": 200, "text": "through"},
        }
    ]
}


def status():
    return int(machine.succeed("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8018/"))


def variant(version, change):
    """The example in another version, with something else about it changed."""
    machine.succeed(f"sed -e 's/teapot1\\.0\\.0/teapot{version}/' -e '{change}' {EXAMPLE} > /tmp/{version}.wat")
    return f"/tmp/{version}.wat"


def shown():
    return json.loads(machine.succeed("shipote plugin show teapot --json"))


start_all()
machine.wait_for_unit("multi-user.target")
for service in ("proxy", "plugins"):
    machine.wait_for_unit(f"shipote-{service}.service", timeout=120)
EXAMPLE = machine.succeed('echo "$(dirname "$(dirname "$(readlink -f "$(command -v shipote)")")")"').strip()
EXAMPLE += "/share/shipote/examples/teapot.wat"

# An emulated processor takes its time for what a real one does in microseconds.
machine.succeed("mkdir -p /etc/shipote/plugins /etc/shipote/proxy/rules")
machine.succeed("printf '%s\\n' '[plugins.teapot]' 'deadline_ms = 5000' > /etc/shipote/plugins/policy.toml")
machine.succeed("systemctl reload shipote-plugins.service")

with subtest("a plugin is judged, compiled and kept by the confined registry"):
    machine.succeed(f"shipote plugin check {EXAMPLE}")
    machine.succeed(f"shipote plugin add {EXAMPLE}", timeout=300)
    assert shown()["active"] is True

with subtest("the proxy's user takes the code, and requests reach the plugin"):
    machine.succeed(f"echo '{json.dumps(RULES)}' > /etc/shipote/proxy/rules/tea.json")
    machine.succeed("systemctl reload shipote-proxy.service")
    machine.wait_until_succeeds("curl -s -o /dev/null http://127.0.0.1:8018/", timeout=60)
    assert status() == 418, machine.execute("journalctl -b -u shipote-proxy -n 20; shipote proxy tail")

with subtest("another version takes over, and the way back"):
    other = variant("1.1.0", "s/i32.const 418/i32.const 451/")
    machine.succeed(f"shipote plugin add {other}", timeout=300)
    machine.wait_until_succeeds("curl -s -w '%{http_code}' http://127.0.0.1:8018/ | grep -q 451", timeout=60)
    machine.succeed("shipote plugin rollback teapot")
    machine.wait_until_succeeds("curl -s -w '%{http_code}' http://127.0.0.1:8018/ | grep -q 418", timeout=60)

with subtest("a canary has its share, also after both services were killed"):
    machine.succeed("shipote plugin canary teapot@1.1.0 --share 50%")
    machine.wait_until_succeeds("curl -s -w '%{http_code}' http://127.0.0.1:8018/ | grep -q 451", timeout=60)
    for service in ("plugins", "proxy"):
        machine.succeed(f"systemctl kill -s KILL shipote-{service}.service")
        machine.wait_for_unit(f"shipote-{service}.service", timeout=60)
    assert shown()["canary"]["version"] == "1.1.0"
    machine.wait_until_succeeds("curl -s -w '%{http_code}' http://127.0.0.1:8018/ | grep -q 451", timeout=60)
    assert {status() for _ in range(8)} == {418, 451}
    machine.succeed("shipote plugin abort teapot")

with subtest("one that traps goes back by itself, no request fails, and the record names the reason"):
    broken = variant("2.0.0", "s/i32.const 418/unreachable/")
    machine.succeed(f"shipote plugin add --no-activate {broken}", timeout=300)
    machine.succeed("shipote plugin canary teapot@2.0.0 --share 50%")
    assert {status() for _ in range(20)} == {418}
    machine.wait_until_succeeds("shipote plugin show teapot --json | tr -d ' ' | grep -q '\"canary\":null'", timeout=60)
    trail = machine.succeed("shipote audit --action plugin.canary-end --json")
    last = json.loads(trail.strip().splitlines()[-1])
    assert last["object"] == "teapot@2.0.0" and "calls failed" in json.dumps(last), last
    assert machine.succeed("id -u shipote-proxy").strip() == str(last["uid"]), last

with subtest("only the proxy may take code and say that a canary failed"):
    path = "org.shipote.Plugins1 /org/shipote/Plugins1 org.shipote.Plugins1.Manager"
    for user, may in (("nobody", False), ("shipote-workspaces", False), ("shipote-proxy", True)):
        for call in ('Open "sa{sv}" teapot 0', "CanaryFailed sts teapot 1 no"):
            code, answer = machine.execute(f"runuser -u {user} -- busctl call {path} {call} 2>&1")
            assert (code == 0) == may, (user, call, answer)
            assert may or "refused" in answer.lower() or "not authorized" in answer.lower(), answer
    machine.fail(f"runuser -u shipote-proxy -- busctl call {path} Activate 'sa{{sv}}' teapot 0")

with subtest("a hostile component costs its child, not the service"):
    pid = machine.succeed("systemctl show -P MainPID shipote-plugins.service").strip()
    spin = variant("3.0.0", "s/i32.const 1092/loop br 0 end i32.const 1092/")
    answer = machine.fail(f"shipote plugin add {spin} 2>&1", timeout=300)
    assert "did not end within" in answer, answer
    machine.succeed("head -c 1000000 /dev/urandom > /tmp/junk.wasm")
    assert "refused: format" in machine.fail("shipote plugin add /tmp/junk.wasm 2>&1")
    assert machine.succeed("systemctl show -P MainPID shipote-plugins.service").strip() == pid
    assert status() == 418
