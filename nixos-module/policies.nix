# What each service may still reach once it has confined itself.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  toml = pkgs.formats.toml { };
  names = import ./names.nix;

  own = lib.filterAttrs (_: policy: policy != null) cfg.policies.landlock;
  # Services read one folder of policies, so what is not replaced here is copied into it.
  folder = pkgs.runCommand "shipote-policies" { } ''
    cp -r --no-preserve=mode ${cfg.package}/share/shipote/policies $out
    ${lib.concatStrings (
      lib.mapAttrsToList (name: policy: ''
        cp --no-preserve=mode ${toml.generate "${name}.toml" policy} $out/landlock/${name}.toml
      '') own
    )}
  '';
in
{
  options.services.shipote.policies.landlock = lib.genAttrs names (
    name:
    lib.mkOption {
      type = lib.types.nullOr toml.type;
      default = null;
      example = {
        read = [
          "\${CONFIG}"
          "/proc"
          "/nix/store"
        ];
        write = [
          "\${STATE}"
          "\${RUNTIME}"
        ];
      };
      description = ''
        The landlock policy of `shipote-${name}`, instead of the package's
        (`share/shipote/policies/landlock/${name}.toml`, which shows the keys). Whatever it does not name is denied.
      '';
    }
  );

  config = lib.mkIf (cfg.enable && own != { }) {
    systemd.services = lib.mapAttrs' (
      name: _: lib.nameValuePair "shipote-${name}" { environment.SHIPOTE_POLICY_DIR = toString folder; }
    ) (lib.filterAttrs (name: _: cfg.services.${name}.enable) own);
  };
}
