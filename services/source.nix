# What the packages are built from: a change of anything else builds nothing anew.
{ lib }:
lib.fileset.toSource {
  root = ../.;
  fileset = lib.fileset.unions [
    ../.cargo
    ../Cargo.lock
    ../Cargo.toml
    ../policies
    ../wit
    (lib.fileset.fileFilter (file: !file.hasExt "nix") ./.)
  ];
}
