# What `cargo` finds wrong with the workspace, of which nothing is kept: `command` runs on the sources and has to succeed.
{
  lib,
  rustPlatform,
  name,
  command,
  tools ? [ ],
}:
rustPlatform.buildRustPackage {
  pname = "shipote-${name}";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = import ./source.nix {
    inherit lib;
    # Tests read these.
    also = [
      ../README.md
      ../clippy.toml
      ../docs
      ../nixos-module/assertions.nix
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = tools;

  buildPhase = ''
    runHook preBuild
    export CARGO_BUILD_JOBS=$NIX_BUILD_CORES
    ${command}
    runHook postBuild
  '';

  installPhase = ''
    runHook preInstall
    touch "$out"
    runHook postInstall
  '';

  doCheck = false;
  # There is nothing to strip or patch.
  dontFixup = true;
}
