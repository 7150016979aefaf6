# The tests of the libraries that ask nothing of the system they run on: parsers, codecs, rules, links, state formats.
# All others want buses, cgroups and user namespaces, which a build has not; `cargo xtask test` and the VM tests run them.
{ lib, callPackage }:
let
  packages = [
    "shipote-agent-protocol"
    "shipote-config"
    "shipote-discern"
    "shipote-egress"
    "shipote-framing"
    "shipote-link"
    "shipote-metrics"
    "shipote-plugin-abi"
    "shipote-rules"
    "shipote-state"
    "shipote-units"
    "shipote-workspace-protocol"
  ];
in
callPackage ./check.nix {
  name = "tests";
  command = "cargo test --locked --tests ${lib.concatMapStringsSep " " (name: "--package ${name}") packages}";
}
