# Workspaces that exist from boot on, each a unit: made when it starts, ended with every command in it when it stops.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.shipote;
  toml = pkgs.formats.toml { };
  systemctl = "${config.systemd.package}/bin/systemctl";

  unit = name: workspace: {
    description = "Shipote workspace ${name}";
    documentation = [ "man:shipote(1)" ];
    wantedBy = [
      "shipote-workspaces.service"
    ]
    ++ lib.optional (!cfg.services.workspaces.atBoot) "multi-user.target";
    # Workspaces end with the service, so they follow it when it restarts.
    partOf = [ "shipote-workspaces.service" ];
    requires = [ "shipote-workspaces.service" ];
    after = [ "shipote-workspaces.service" ];
    environment.SHIPOTE_BUS_ADDRESS = "unix:path=/run/dbus/system_bus_socket";
    serviceConfig = import ./confined.nix // {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = utils.escapeSystemdExecArgs (
        [
          (lib.getExe cfg.package)
          "workspace"
          "create"
          name
          "--file"
          (toml.generate "workspace-${name}.toml" workspace.spec)
        ]
        ++ lib.optional workspace.strict "--strict"
      );
      # It may be gone already: ended by hand, by its own limit of time, or with the service. Where the service is not
      # there, asking for it would start it, and wait for the very job that waits for this one.
      ExecStop = "-${pkgs.writeShellScript "stop-workspace" ''
        if ${systemctl} --quiet is-active shipote-workspaces.service; then
          exec ${
            lib.escapeShellArgs [
              (lib.getExe cfg.package)
              "workspace"
              "stop"
              name
              "--grace"
              (toString workspace.graceMilliseconds)
            ]
          }
        fi
      ''}";
    };
  };
in
{
  options.services.shipote.workspaces = lib.mkOption {
    default = { };
    example = lib.literalExpression ''
      {
        build.spec = {
          scratch_bytes = 4294967296;
          permissions.networking = "loopback";
          paths = [ { path = "/srv/source"; access = "read"; } ];
        };
      }
    '';
    description = "Workspaces that exist from boot on, by name; each is a unit, `shipote-workspace-NAME.service`.";
    type = lib.types.attrsOf (
      lib.types.submodule {
        options = {
          spec = lib.mkOption {
            type = lib.types.attrsOf toml.type;
            default = { };
            description = "The specification, as `shipote workspace create -f` takes it.";
          };
          strict = lib.mkOption {
            type = lib.types.bool;
            default = false;
            description = "Whether to refuse the workspace where a mechanism of isolation is degraded or missing.";
          };
          graceMilliseconds = lib.mkOption {
            type = lib.types.ints.unsigned;
            default = 1000;
            description = "Time between SIGTERM and SIGKILL when the workspace is ended; 0 kills at once.";
          };
        };
      }
    );
  };

  config = lib.mkIf cfg.enable {
    systemd.services = lib.mapAttrs' (
      name: workspace: lib.nameValuePair "shipote-workspace-${name}" (unit name workspace)
    ) cfg.workspaces;
  };
}
