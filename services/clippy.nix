# Clippy finds nothing in the workspace, tests included: the step of this name of `cargo xtask test`.
{
  lib,
  rustPlatform,
  clippy,
}:
rustPlatform.buildRustPackage {
  pname = "shipote-clippy";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = import ./source.nix {
    inherit lib;
    also = [
      ../clippy.toml
      # A test reads it.
      ../nixos-module/assertions.nix
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ clippy ];

  buildPhase = ''
    runHook preBuild
    cargo clippy --workspace --all-targets --locked --jobs "$NIX_BUILD_CORES" -- -D warnings
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
