# `journalctl -x` explains the audit records.
#
# NixOS compiles journald's catalogue from systemd's own files alone, so it is compiled again with ours beside them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  systemd = config.systemd.package;
  catalogues = pkgs.buildEnv {
    name = "journal-catalogues";
    paths = [
      systemd
      cfg.package
    ];
    pathsToLink = [ "/lib/systemd/catalog" ];
  };
in
{
  config = lib.mkIf cfg.enable {
    systemd.services.shipote-catalogue = {
      description = "Explanations of Shipote's audit records for journalctl -x";
      documentation = [ "man:journalctl(1)" ];
      wantedBy = [ "multi-user.target" ];
      after = [ "systemd-journal-catalog-update.service" ];
      environment.SYSTEMD_CATALOG_SOURCES = "${catalogues}/lib/systemd/catalog";
      serviceConfig = import ./confined.nix // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${systemd}/bin/journalctl --update-catalog";
        ReadWritePaths = [ "/var/lib/systemd/catalog" ];
        PrivateNetwork = true;
      };
    };
  };
}
