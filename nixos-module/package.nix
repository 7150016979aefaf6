# Whether the appliance is on, and from which package: units, bus files, polkit actions, folders.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
in
{
  options.services.shipote = {
    enable = lib.mkEnableOption "Shipote: sandboxed workspaces, microVMs, a proxy and its plugins, on D-Bus";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ../services/package.nix { };
      defaultText = lib.literalMD "the services of this flake, built with the system's `pkgs`";
      example = lib.literalExpression "inputs.shipote.packages.\${pkgs.stdenv.hostPlatform.system}.shipote";
      description = "The package with the services, the command line, their units and their policies.";
    };
  };

  config = lib.mkIf cfg.enable {
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    services.dbus.packages = [ cfg.package ];
    # polkit finds actions and rules in the system's profile; who may do what is its decision.
    environment.systemPackages = [ cfg.package ];
    security.polkit.enable = true;
  };
}
