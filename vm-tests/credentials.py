# A certificate's key that root alone may read: systemd hands it to the proxy, and to nobody else. And one by ACME: a unit of
# its own keeps it, which may have it served and authorities answered, and nothing else.

import json

# For site.test, signed by itself, valid for a hundred years; of use for nothing else.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUdG/PwUMaZ6mT6GF1yfmOwx5uUWIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJc2l0ZS50ZXN0MCAXDTI2MTEyOTEwMDExMVoYDzIxMjYxMTA1
MTAwMTExWjAUMRIwEAYDVQQDDAlzaXRlLnRlc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASirTH44c51A2NHmDleJmF6ci5yI/izIq474VaSOR4C5xQskfXYdsCO
YnKH8PHRJ18LclppTdCkEZ0jyMJ8AVnJo2kwZzAdBgNVHQ4EFgQUdEdY8NlVfLQp
J/oUJ3nwozWfXKEwHwYDVR0jBBgwFoAUdEdY8NlVfLQpJ/oUJ3nwozWfXKEwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglzaXRlLnRlc3QwCgYIKoZIzj0EAwID
RwAwRAIgNj1DFhS5DUpwcWV9R49YqbYO1PT4Y6Ru2O4Aif8wGSwCIDgCX7bpd+g3
lNNC1JaVtXntCCJJObnZvpWidc6D+nvs
-----END CERTIFICATE-----
"""
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg63VuT6GS5W4AS+BG
9IaonOaFSIK/3J1m7Jh78NrOOTWhRANCAASirTH44c51A2NHmDleJmF6ci5yI/iz
Iq474VaSOR4C5xQskfXYdsCOYnKH8PHRJ18LclppTdCkEZ0jyMJ8AVnJ
-----END PRIVATE KEY-----
"""
UNIT = "shipote-proxy.service"
STORED = "/etc/credstore/shipote-proxy.site.key"
HANDED = f"/run/credentials/{UNIT}/shipote-proxy.site.key"
CURL = "curl -sS --fail --max-time 60 --cacert /tmp/site.pem --resolve site.test:8443:127.0.0.1 https://site.test:8443/"


def serve_with(key):
    rules = {
        "rules": [
            {
                "name": "site",
                "listen": ["127.0.0.1:8443"],
                "tls": {"cert_file": "/etc/shipote/proxy/site.pem", "key_file": key},
                "terminate": {"type": "static", "status": 200, "text": "sealed"},
            }
        ]
    }
    machine.succeed(f"cat > /etc/shipote/proxy/rules/site.json <<'EOF'\n{json.dumps(rules)}\nEOF")


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit(UNIT, timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed(
    "mkdir -p /etc/shipote/proxy/rules && install -d -m 0700 /etc/credstore",
    f"cat > /tmp/site.pem <<'EOF'\n{CERTIFICATE}EOF",
    f"(umask 077 && cat > {STORED} <<'EOF'\n{KEY}EOF\n)",
    "install -m 0644 /tmp/site.pem /etc/shipote/proxy/site.pem",
)

with subtest("where it lies the service cannot read it, and says so"):
    serve_with(STORED)
    refusal = machine.fail("shipote proxy reload 2>&1")
    assert STORED in refusal and "ermission denied" in refusal, refusal

with subtest("as the unit hands it over it can"):
    serve_with(HANDED)
    machine.succeed(f"systemctl restart {UNIT}")
    machine.wait_until_succeeds(f"{CURL} | grep -x sealed", timeout=60)

with subtest("nobody else can"):
    machine.succeed(f"test -s {HANDED}")
    for user in ("mallory", "nobody", "shipote-workspaces"):
        machine.fail(f"runuser -u {user} -- cat {HANDED}")
    machine.fail(f"shipote run -- cat {HANDED}")

BUS = "busctl call org.shipote.Proxy1 /org/shipote/Proxy1 org.shipote.Proxy1"
CHALLENGE = f"{BUS}.Certificates AnswerChallenge 'ssa{{sv}}' token token.thumbprint 0"
FOLDER = "/var/lib/shipote/acme"
BY_ACME = {
    "rules": [
        {
            "name": "plain",
            "listen": ["127.0.0.1:8080"],
            "terminate": {"type": "static", "status": 200, "text": "plain"},
        },
        {
            "name": "acme",
            "listen": ["127.0.0.1:8443"],
            "tls": {"acme": ["site.test"]},
            "terminate": {"type": "static", "status": 200, "text": "sealed"},
        },
    ]
}

with subtest("an authority that is not there is said, and rules are served without its certificate"):
    machine.succeed(
        "mkdir -p /etc/shipote/shipote.toml.d",
        "printf '[proxy.acme]\\ndirectory = \"https://127.0.0.1:1/dir\"\\nagree_to_terms = true\\n'"
        " > /etc/shipote/shipote.toml.d/acme.toml",
        f"cat > /etc/shipote/proxy/rules/site.json <<'EOF'\n{json.dumps(BY_ACME)}\nEOF",
        f"systemctl restart {UNIT}",
    )
    machine.wait_until_succeeds("curl -sS --fail http://127.0.0.1:8080/ | grep -x plain", timeout=60)
    machine.fail(CURL)
    machine.fail("systemctl start shipote-acme.service")
    cert = json.loads(machine.succeed("shipote proxy certs --json"))["certs"][0]
    assert "onnection refused" in cert["error"] and cert["next_try"] > 0, cert
    assert machine.succeed(f"stat -c '%U:%G %a' {FOLDER}/certs").strip() == "shipote-acme:shipote-proxy 750"
    # it looks again, and leaves the authority alone for a while
    machine.succeed("systemctl start shipote-acme.service", "systemctl start shipote-acme.timer")
    machine.succeed("systemctl stop shipote-acme.timer")

with subtest("its unit has a low exposure"):
    unit = machine.succeed("systemctl show -P FragmentPath shipote-acme.service").strip()
    machine.succeed(f"systemd-analyze security --no-pager --offline=true --threshold=15 {unit}")

with subtest("who fetches certificates has authorities answered, and changes no rules; others do neither"):
    machine.succeed(f"runuser -u shipote-acme -- {CHALLENGE}")
    asked = machine.succeed("curl -sS --fail http://127.0.0.1:8080/.well-known/acme-challenge/token")
    assert asked == "token.thumbprint", asked
    machine.succeed(f"runuser -u shipote-acme -- {BUS}.Certificates ForgetChallenge 'sa{{sv}}' token 0")
    machine.fail(f"runuser -u shipote-acme -- {BUS}.Manager Reload 'a{{sv}}' 0")
    for user in ("mallory", "shipote-workspaces"):
        refusal = machine.fail(f"runuser -u {user} -- {CHALLENGE} 2>&1")
        assert "org.shipote.proxy.certify" in refusal, refusal

with subtest("a certificate that it keeps is served, and its key is nobody else's"):
    kept = f"{FOLDER}/certs/site.test.pem"
    machine.succeed(
        f"install -o shipote-acme -g shipote-proxy -m 0640 /dev/null {kept} && cat > {kept} <<'EOF'\n{KEY}{CERTIFICATE}EOF",
        f"runuser -u shipote-acme -- {BUS}.Certificates Renewed 'sa{{sv}}' site.test 0",
    )
    assert machine.succeed(CURL) == "sealed"
    for user in ("mallory", "nobody", "shipote-workspaces"):
        machine.fail(f"runuser -u {user} -- cat {kept}")
    machine.succeed(f"rm -r {FOLDER}/certs/site.test.*", "rm /etc/shipote/shipote.toml.d/acme.toml")

machine.succeed(f"rm /etc/shipote/proxy/rules/site.json {STORED}", "shipote proxy reload", f"systemctl restart {UNIT}")
