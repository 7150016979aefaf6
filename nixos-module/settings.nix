# `/etc/shipote/shipote.toml` (RFC 42: what has no option of its own is passed on as it is).
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  toml = pkgs.formats.toml { };
in
{
  options.services.shipote.settings = lib.mkOption {
    default = { };
    example.audit.mode = "required";
    description = ''
      The configuration, a section for each service and the common `audit`, as `docs/configuration.md` describes it.
      It lies in the world-readable store: secrets belong in a drop-in,
      `/etc/shipote/shipote.toml.d/*.toml`, that is put there by other means.
    '';
    type = lib.types.submodule {
      freeformType = toml.type;
      options.audit = {
        mode = lib.mkOption {
          type = lib.types.enum [
            "best-effort"
            "required"
          ];
          default = "best-effort";
          description = "Whether a change whose record cannot be taken is made (`best-effort`) or refused (`required`).";
        };
        sync = lib.mkOption {
          type = lib.types.bool;
          default = false;
          description = ''
            Whether a record is on the disk before the change is reported as done. It concerns the file that is
            written where there is no journal.
          '';
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    # Always there, even if empty: systemd could not make the folder where /etc is read-only.
    environment.etc."shipote/shipote.toml".source = toml.generate "shipote.toml" cfg.settings;
  };
}
