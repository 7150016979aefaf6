# The proxy's rules: `/etc/shipote/proxy/rules`, compiled once while the system is built, so that rules which the proxy
# would refuse never reach it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  own = cfg.services.proxy;
  toml = pkgs.formats.toml { };

  checked = pkgs.runCommand "shipote-proxy-rules" { } ''
    mkdir $out
    ${lib.concatStrings (
      lib.mapAttrsToList (name: file: ''
        cp ${toml.generate "${name}.toml" file} $out/${name}.toml
      '') own.rules
    )}
    ${lib.getExe cfg.package} proxy compile $out
  '';

  # `:443`, `127.0.0.1:80`, `[::1]:80`, `tcp:443`, `udp:127.0.0.1:53`
  listen = lib.concatMap (file: lib.concatMap (rule: rule.listen or [ ]) (file.rules or [ ])) (
    lib.attrValues own.rules
  );
  address =
    text:
    let
      parts = builtins.match "(tcp:|udp:)?(.*:)?([0-9]+)" text;
      host = lib.elemAt parts 1;
    in
    lib.optional (parts != null) {
      udp = lib.elemAt parts 0 == "udp:";
      local = host != null && (lib.hasPrefix "127." host || lib.hasPrefix "[::1]" host);
      port = lib.toIntBase10 (lib.elemAt parts 2);
    };
  open = lib.filter (a: !a.local) (lib.concatMap address listen);
  ports = udp: lib.unique (map (a: a.port) (lib.filter (a: a.udp == udp) open));
in
{
  options.services.shipote.services.proxy = {
    rules = lib.mkOption {
      type = lib.types.attrsOf (lib.types.attrsOf toml.type);
      default = { };
      example = lib.literalExpression ''
        {
          site.rules = [
            {
              name = "hello";
              listen = [ ":80" ];
              match.http.uri.path.prefix = "/hello";
              terminate = { type = "static"; status = 200; text = "hi"; };
            }
          ];
        }
      '';
      description = ''
        The files of `/etc/shipote/proxy/rules`, by name. They are compiled while the system is built
        (`shipote proxy compile`), and a change of them is a reload: open connections go on.
        They lie in the world-readable store; name keys by path, and keep those out of it.
      '';
    };

    credentials = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      example."site.key" = "/var/lib/secrets/site.key";
      description = ''
        Files that only root can read, such as the keys of certificates, by name: systemd hands them to the service
        when it starts, and the rules name them by path, `/run/credentials/shipote-proxy.service/NAME`. A path is a
        string, so that the file does not get into the store. A file that has changed is read at the next restart.
      '';
    };

    acme.enable = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether certificates that rules want by ACME (`tls.acme`) are fetched and renewed: at boot, and by
        `shipote-acme.timer`, which looks every hour; `systemctl start shipote-acme` fetches what new rules want at once. From whom is the section `proxy.acme` of `services.shipote.settings`, whose
        `agree_to_terms` has to be true.
      '';
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether the firewall lets through what the rules listen on, other than the loopback addresses.";
    };
  };

  config = lib.mkIf (cfg.enable && own.enable) (
    lib.mkMerge [
      {
        systemd.services.shipote-proxy.serviceConfig.LoadCredential = lib.mkIf (own.credentials != { }) (
          lib.mapAttrsToList (name: path: "${name}:${path}") own.credentials
        );
      }
      (lib.mkIf own.acme.enable {
        systemd.timers.shipote-acme.wantedBy = [ "timers.target" ];
        # Not by multi-user.target, which would wait for the authority.
        systemd.services.shipote-acme.wantedBy = [ "shipote-proxy.service" ];
      })
      (lib.mkIf (own.rules != { }) {
        environment.etc."shipote/proxy/rules".source = checked;
        systemd.services.shipote-proxy.reloadTriggers = [ checked ];
        networking.firewall = lib.mkIf own.openFirewall {
          allowedTCPPorts = ports false;
          allowedUDPPorts = ports true;
        };
      })
    ]
  );
}
