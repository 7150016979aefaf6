# Clippy finds nothing in the workspace, tests included: the step of this name of `cargo xtask test`.
{ callPackage, clippy }:
callPackage ./check.nix {
  name = "clippy";
  command = "cargo clippy --workspace --all-targets --locked -- -D warnings";
  tools = [ clippy ];
}
