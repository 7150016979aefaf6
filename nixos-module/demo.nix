# `nix run .#demo`: the services as the calling user, one tapped pipeline over real input, and nothing left behind.
#
# The input is the registration of a closure (nix-store(1), --dump-db): what this package needs to run. The pipeline
# ranks it by size.
{
  closureInfo,
  coreutils,
  dbus,
  gawk,
  gnused,
  shipote,
  writers,
  writeShellApplication,
}:
let
  node = label: command: { inherit label command; };
  edge = from: to: { inherit from to; };
  pipeline = writers.writeTOML "largest.toml" {
    label = "largest";
    nodes = [
      # A record is: path, hash, size, deriver, number of references, references.
      (node "sizes" [
        "${gawk}/bin/awk"
        "{ path = $0; getline; getline; size = $0; getline; getline; for (n = $0; n > 0; n--) getline; print size, path }"
      ])
      (node "names" [
        "${gnused}/bin/sed"
        "-E"
        "s|/nix/store/[^-]*-||"
      ])
      (node "rank" [
        "${coreutils}/bin/sort"
        "-rn"
      ])
      (node "top" [
        "${coreutils}/bin/head"
        "-n"
        "10"
      ])
      (node "table" [
        "${gawk}/bin/awk"
        ''{ printf "%8.1f MiB  %s\n", $1 / 1048576, $2 }''
      ])
    ];
    edges = [
      (edge "sizes" "names")
      (edge "names" "rank")
      (edge "rank" "top")
      (edge "top" "table")
    ];
  };
in
writeShellApplication {
  name = "shipote-demo";
  runtimeInputs = [
    coreutils
    dbus
    shipote
  ];
  text = ''
    work=$(mktemp -d)
    finish() {
      if [ -n "''${up-}" ]; then
        kill "$up" 2>/dev/null || true
        wait "$up" 2>/dev/null || true
      fi
      rm -rf "$work"
    }
    trap finish EXIT

    # Folders of its own: an appliance that the user runs already is left alone.
    export XDG_STATE_HOME="$work/state" XDG_RUNTIME_DIR="$work/run" XDG_CONFIG_HOME="$work/config"
    mkdir -m 0700 "$work/run"
    mkfifo "$work/said"
    shipote up >"$work/said" &
    up=$!
    # Open to the end: a line that is written after `ready` must find a reader.
    exec 3<"$work/said"
    ready=
    while [ -z "$ready" ] && read -r line <&3; do
      [ "$line" != ready ] || ready=yes
    done
    [ -n "$ready" ] || { echo "shipote-demo: start the services: see the lines above" >&2; exit 1; }

    shipote status
    echo
    shipote pipeline run --tap ${pipeline} <${closureInfo { rootPaths = [ shipote ]; }}/registration
    echo
    shipote audit
  '';
}
