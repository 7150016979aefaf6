# Pipelines that run as units: from boot on, or when a timer says so. What they write goes to the journal.
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

  unit =
    name: pipeline:
    let
      needed = [
        "shipote-workspaces.service"
      ]
      ++ lib.optional (pipeline.workspace != null) "shipote-workspace-${pipeline.workspace}.service";
    in
    {
      description = "Shipote pipeline ${name}";
      documentation = [ "man:shipote(1)" ];
      wantedBy = lib.mkIf (pipeline.startAt == [ ]) [ "multi-user.target" ];
      inherit (pipeline) startAt;
      requires = needed;
      after = needed;
      environment.SHIPOTE_BUS_ADDRESS = "unix:path=/run/dbus/system_bus_socket";
      serviceConfig = import ./confined.nix // {
        # The command line stays for as long as the pipeline runs, and passes its exit status and signals on.
        Type = "exec";
        ExecStart = utils.escapeSystemdExecArgs (
          [
            (lib.getExe cfg.package)
            "pipeline"
            "run"
            (toml.generate "pipeline-${name}.toml" ({ label = name; } // pipeline.spec))
          ]
          ++ lib.optionals (pipeline.workspace != null) [
            "--workspace"
            pipeline.workspace
          ]
          ++ lib.concatLists (
            lib.mapAttrsToList (key: value: [
              "--var"
              "${key}=${value}"
            ]) pipeline.variables
          )
          ++ lib.optional pipeline.tap "--tap"
          ++ lib.optional pipeline.strict "--strict"
        );
      };
    };
in
{
  options.services.shipote.pipelines = lib.mkOption {
    default = { };
    example = lib.literalExpression ''
      {
        largest = {
          startAt = "daily";
          tap = true;
          variables.DIR = "/usr";
          spec = {
            nodes = [
              { label = "list"; command = [ "ls" "-lR" "''${DIR}" ]; }
              { label = "sort"; command = [ "sort" "-k5n" ]; }
            ];
            edges = [ { from = "list"; to = "sort"; } ];
          };
        };
      }
    '';
    description = "Pipelines that run as units, `shipote-pipeline-NAME.service`, by name.";
    type = lib.types.attrsOf (
      lib.types.submodule {
        options = {
          spec = lib.mkOption {
            type = lib.types.attrsOf toml.type;
            description = "The specification, as `shipote pipeline run` takes it; its label is the name by default.";
          };
          workspace = lib.mkOption {
            type = lib.types.nullOr lib.types.str;
            default = null;
            description = ''
              One of {option}`services.shipote.workspaces` to run in; without it, the pipeline gets a workspace of its
              own that ends with it.
            '';
          };
          variables = lib.mkOption {
            type = lib.types.attrsOf lib.types.str;
            default = { };
            description = "What stands for `\${KEY}` in the specification.";
          };
          tap = lib.mkOption {
            type = lib.types.bool;
            default = false;
            description = "Whether every edge is sampled, metered and offered (`shipote flow ls`).";
          };
          strict = lib.mkOption {
            type = lib.types.bool;
            default = false;
            description = "Whether to refuse to run where a mechanism of isolation is degraded or missing.";
          };
          startAt = lib.mkOption {
            type = lib.types.coercedTo lib.types.str lib.singleton (lib.types.listOf lib.types.str);
            default = [ ];
            example = "hourly";
            description = "When it runs, as {manpage}`systemd.time(7)` spells it; empty: once, at boot.";
          };
        };
      }
    );
  };

  config = lib.mkIf cfg.enable {
    systemd.services = lib.mapAttrs' (
      name: pipeline: lib.nameValuePair "shipote-pipeline-${name}" (unit name pipeline)
    ) cfg.pipelines;
  };
}
