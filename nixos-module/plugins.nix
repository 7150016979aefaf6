# What plugins may do: `/etc/shipote/plugins/policy.toml`. Without an entry, a plugin may do nothing.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  toml = pkgs.formats.toml { };
  file = toml.generate "policy.toml" { inherit (cfg.policies) plugins; };
in
{
  options.services.shipote.policies.plugins = lib.mkOption {
    type = lib.types.attrsOf (lib.types.attrsOf toml.type);
    default = { };
    example.geo.http.allowed_hosts = [ "api.example.com" ];
    description = ''
      What each plugin may do, by its name, or by `sha256:…` for one exact component: `deadline_ms`, `memory_bytes`,
      `instances`, `fuel`, `wasi_stubs`, `state_bytes`, `signed_by`, `sockets`, `canary`, `limits` and `http`. What is not said has the default of the registry, which denies
      every host. A change is a reload.
    '';
  };

  config = lib.mkIf (cfg.enable && cfg.services.plugins.enable && cfg.policies.plugins != { }) {
    environment.etc."shipote/plugins/policy.toml".source = file;
    systemd.services.shipote-plugins.reloadTriggers = [ file ];
  };
}
