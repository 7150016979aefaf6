# Which of the services run.
{ config, lib, ... }:
let
  cfg = config.services.shipote;
  names = import ./names.nix;

  unit =
    name:
    if cfg.services.${name}.enable then
      {
        wantedBy = lib.mkIf cfg.services.${name}.atBoot [ "multi-user.target" ];
        # Read at the start only.
        restartTriggers = [ config.environment.etc."shipote/shipote.toml".source ];
        # A stop in between would empty the descriptor store, which a restart keeps.
        stopIfChanged = false;
      }
    else
      # Masked: the first call on the bus would start it otherwise.
      { enable = false; };
in
{
  options.services.shipote.services = lib.genAttrs names (name: {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = "Whether `shipote-${name}.service` runs. Off, it is masked, so that no call on the bus starts it.";
    };
    atBoot = lib.mkOption {
      type = lib.types.bool;
      # It listens.
      default = name == "proxy";
      example = true;
      description = ''
        Whether `shipote-${name}.service` starts at boot, instead of with the first call to its name on the bus (the workspaces
        also with the first connection to `shipote.sock`).
      '';
    };
  });

  config = lib.mkIf cfg.enable {
    systemd.services = lib.listToAttrs (
      map (name: lib.nameValuePair "shipote-${name}" (unit name)) names
    );
    systemd.sockets.shipote-workspaces =
      if cfg.services.workspaces.enable then
        { wantedBy = [ "sockets.target" ]; }
      else
        { enable = false; };
  };
}
