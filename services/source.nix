# What the packages are built from: a change of anything else builds nothing anew. `also` is what a check reads besides.
{
  lib,
  also ? [ ],
}:
lib.fileset.toSource {
  root = ../.;
  fileset = lib.fileset.unions (
    [
      ../.cargo
      ../Cargo.lock
      ../Cargo.toml
      ../policies
      ../wit
      (lib.fileset.fileFilter (file: !file.hasExt "nix") ./.)
    ]
    ++ also
  );
}
