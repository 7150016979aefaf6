# The services and the command line with all that belongs to an installation (units, D-Bus and polkit policies, users,
# folders, landlock policies, catalogue). `cargo xtask install` lays it out, as it does for every other distribution;
# only the paths that name /usr are changed here.
{
  lib,
  rustPlatform,
}:
rustPlatform.buildRustPackage {
  pname = "shipote";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = import ./source.nix { inherit lib; };
  cargoLock.lockFile = ../Cargo.lock;

  buildPhase = ''
    runHook preBuild
    export CARGO_BUILD_JOBS=$NIX_BUILD_CORES
    cargo xtask install --release --destdir "$NIX_BUILD_TOP/installation"
    runHook postBuild
  '';

  installPhase = ''
    runHook preInstall
    mv "$NIX_BUILD_TOP/installation/usr" "$out"
    for unit in "$out"/lib/systemd/system/*.service; do
      substituteInPlace "$unit" --replace-fail "ExecStart=/usr/bin/" \
        "Environment=SHIPOTE_POLICY_DIR=$out/share/shipote/policies
    ExecStart=$out/bin/"
    done
    runHook postInstall
  '';

  # Completions and manual pages are part of the installation; Nix has zsh look elsewhere.
  postInstall = ''
    mkdir -p "$out/share/zsh/site-functions"
    mv "$out"/share/zsh/vendor-completions/* "$out/share/zsh/site-functions/"
    rmdir "$out/share/zsh/vendor-completions"
  '';

  # The tests want a system of their own (buses, user namespaces, cgroups); `cargo xtask test` and the VM tests run them.
  doCheck = false;

  # What a unit starts has to be here, and nothing may still name /usr.
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    "$out/bin/shipote" --version
    if grep -rn "=/usr/" "$out/lib/systemd/system"; then
      echo "a unit still names /usr" >&2
      exit 1
    fi
    for unit in "$out"/lib/systemd/system/*.service; do
      program=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$unit")
      test -x "$program" || { echo "$unit: no program $program" >&2; exit 1; }
      service=$(basename "$program" | sed s/^shipote-//)
      test -f "$out/share/shipote/policies/landlock/$service.toml" || { echo "$unit: no landlock policy" >&2; exit 1; }
    done
    runHook postInstallCheck
  '';

  meta = {
    description = "Sandboxed workspaces, microVMs, a proxy and its plugins, as small services on D-Bus";
    license = with lib.licenses; [
      asl20
      mit
    ];
    mainProgram = "shipote";
    platforms = lib.platforms.linux;
  };
}
