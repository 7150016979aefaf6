# Configurations that must evaluate, and what has to hold of the systems they make.
{ lib, on }:
let
  text = config: unit: config.systemd.units.${unit}.text;
  masked = config: unit: !config.systemd.units.${unit}.enable;
  wanted = config: unit: lib.elem "multi-user.target" config.systemd.units.${unit}.wantedBy;
in
{
  off = {
    config = { };
    holds = config: {
      "no unit is ours" =
        lib.filter (lib.hasPrefix "shipote") (lib.attrNames config.systemd.units) == [ ];
      "no user is ours" = lib.filter (lib.hasPrefix "shipote") (lib.attrNames config.users.users) == [ ];
    };
  };

  plain = {
    config = on { };
    holds = config: {
      "the proxy starts at boot, the others with the first call to their name" = lib.all (
        name:
        wanted config "shipote-${name}.service" == (name == "proxy") && !masked config "shipote-${name}.service"
      ) (import ../names.nix);
      "the workspaces' socket waits for whoever connects" =
        lib.elem "sockets.target" config.systemd.units."shipote-workspaces.socket".wantedBy;
      "the units are the package's, with drop-ins" =
        config.systemd.units."shipote-proxy.service".overrideStrategy == "asDropinIfExists"
        && !lib.hasInfix "ExecStart" (text config "shipote-proxy.service");
      "each service has a user and a group of its own" = lib.all (
        name:
        config.users.users."shipote-${name}".group == "shipote-${name}"
        && config.users.groups ? "shipote-${name}"
      ) (import ../names.nix);
      "the workspaces service may open its socket to the group" =
        config.users.users.shipote-workspaces.extraGroups == [ "shipote" ];
      "polkit decides" = config.security.polkit.enable;
      "there is a configuration" = config.environment.etc ? "shipote/shipote.toml";
      "machines are started with an image of the store" =
        config.nixpkgs.hostPlatform.isx86_64
        -> lib.hasInfix "SHIPOTE_MACHINE_IMAGE=${builtins.storeDir}/" (text config "shipote-machines.service");
    };
  };

  some-services = {
    config = on {
      services.proxy.enable = false;
      services.plugins.enable = false;
      services.machines.atBoot = true;
    };
    holds = config: {
      "what is off is masked" =
        masked config "shipote-proxy.service" && masked config "shipote-plugins.service";
      "the others are not" =
        !(masked config "shipote-workspaces.service" || masked config "shipote-workspaces.socket");
      "they start when they are told to" =
        wanted config "shipote-machines.service" && !wanted config "shipote-workspaces.service";
    };
  };

  workspaces-and-pipelines = {
    config = on {
      workspaces.build = {
        strict = true;
        graceMilliseconds = 0;
        spec.permissions.networking = "loopback";
      };
      pipelines.largest = {
        workspace = "build";
        tap = true;
        startAt = "daily";
        variables.DIR = "/usr/share with blank";
        spec = {
          nodes = [
            {
              label = "list";
              command = [
                "ls"
                "\${DIR}"
              ];
            }
            {
              label = "sort";
              command = [ "sort" ];
            }
          ];
          edges = [
            {
              from = "list";
              to = 1;
            }
          ];
        };
      };
    };
    holds = config: {
      "a workspace ends with its service" = lib.hasInfix "PartOf=shipote-workspaces.service" (
        text config "shipote-workspace-build.service"
      );
      "a workspace is strict where asked" = lib.hasInfix "\"--strict\"" (
        text config "shipote-workspace-build.service"
      );
      "a pipeline waits for its workspace" =
        lib.hasInfix "Requires=shipote-workspaces.service shipote-workspace-build.service" (
          text config "shipote-pipeline-largest.service"
        );
      "a blank in a variable stays" = lib.hasInfix "\"DIR=/usr/share with blank\"" (
        text config "shipote-pipeline-largest.service"
      );
      "a timer starts it, not the boot" =
        config.systemd.timers ? shipote-pipeline-largest
        && !wanted config "shipote-pipeline-largest.service";
    };
  };

  machines = {
    config = on {
      services.machines.image = "/srv/image";
      services.machines.volumes = [ "/srv/data" ];
    };
    holds = config: {
      "the image stays where it is" = lib.hasInfix "SHIPOTE_MACHINE_IMAGE=/srv/image\"" (
        text config "shipote-machines.service"
      );
      "what machines may share can be written by the service, and it is told" =
        lib.hasInfix "ReadWritePaths=-/srv/data" (text config "shipote-machines.service")
        && config.services.shipote.settings.machines.volumes == [ "/srv/data" ];
      "QEMU is on the path" = lib.hasInfix "qemu" (text config "shipote-machines.service");
      "so is what makes file systems" = lib.hasInfix "e2fsprogs" (text config "shipote-machines.service");
      "the service's user is in the group of /dev/kvm" =
        config.users.users.shipote-machines.extraGroups == [ "kvm" ];
    };
  };

  machines-without-an-image = {
    config = on { services.machines.image = null; };
    holds = config: {
      "none is named" = !lib.hasInfix "SHIPOTE_MACHINE_IMAGE" (text config "shipote-machines.service");
    };
  };

  proxy = {
    config = on {
      services.proxy = {
        openFirewall = true;
        rules.site.rules = [
          {
            name = "hello";
            listen = [
              ":80"
              "127.0.0.1:81"
              "[::1]:82"
              "192.0.2.1:83"
              "tcp:84"
              "udp:127.0.0.1:85"
              "udp:53"
            ];
            terminate = {
              type = "static";
              status = 200;
            };
          }
        ];
      };
    };
    holds = config: {
      "the rules are there" = config.environment.etc ? "shipote/proxy/rules";
      "a change of them is a reload" = config.systemd.services.shipote-proxy.reloadTriggers != [ ];
      "what others can reach is let through" =
        config.networking.firewall.allowedTCPPorts == [
          80
          83
          84
        ]
        && config.networking.firewall.allowedUDPPorts == [ 53 ];
    };
  };

  acme = {
    config = on {
      services.proxy.acme.enable = true;
      settings.proxy.acme.agree_to_terms = true;
    };
    holds = config: {
      "it is renewed by a timer" = lib.elem "timers.target" config.systemd.timers.shipote-acme.wantedBy;
      "and fetched at boot" = lib.elem "shipote-proxy.service" config.systemd.services.shipote-acme.wantedBy;
    };
  };

  firewall-closed = {
    config = on {
      services.proxy.rules.site.rules = [
        {
          name = "hello";
          listen = [ ":80" ];
          terminate.type = "static";
        }
      ];
    };
    holds = config: {
      "nothing is let through unasked" = config.networking.firewall.allowedTCPPorts == [ ];
    };
  };

  plugins = {
    config = on { policies.plugins.geo.http.allowed_hosts = [ "api.example.com" ]; };
    holds = config: {
      "the policy is there" = config.environment.etc ? "shipote/plugins/policy.toml";
      "a change of it is a reload" = config.systemd.services.shipote-plugins.reloadTriggers != [ ];
    };
  };

  policies = {
    config = on {
      policies.landlock.proxy = {
        read = [ "/proc" ];
        bind_tcp = [ 8080 ];
      };
    };
    holds = config: {
      "the proxy reads its policy from the folder that has it" = lib.hasInfix "SHIPOTE_POLICY_DIR=" (
        text config "shipote-proxy.service"
      );
      "the others keep the package's" =
        !lib.hasInfix "SHIPOTE_POLICY_DIR=" (text config "shipote-plugins.service");
    };
  };

  settings = {
    config = on {
      settings.audit.mode = "required";
      settings.cli = { };
    };
    holds = config: {
      "the mode is passed on" = config.services.shipote.settings.audit.mode == "required";
    };
  };
}
