# Users and groups: those of the package's sysusers.d file, read from it so that there is one list only.
{ config, lib, ... }:
let
  cfg = config.services.shipote;

  lines = lib.splitString "\n" (builtins.readFile ../policies/sysusers.d/shipote.conf);
  # Each kind of line (sysusers.d(5)) is its letter and fields.
  entries =
    letter: fields: lib.filter (x: x != null) (map (builtins.match "${letter} +${fields} *") lines);
  groups = map lib.head (entries "g" "([^ ]+) +-");
  users = entries "u" ''([^ ]+) +- +"([^"]*)" +([^ ]+)'';
  members = entries "m" "([^ ]+) +([^ ]+)";

  user = fields: {
    name = lib.elemAt fields 0;
    value = {
      isSystemUser = true;
      group = lib.elemAt fields 0;
      description = lib.elemAt fields 1;
      home = lib.elemAt fields 2;
      extraGroups = map lib.last (lib.filter (member: lib.head member == lib.elemAt fields 0) members);
    };
  };

  # A line that is none of these would be lost in silence.
  understood = lib.length groups + lib.length users + lib.length members;
  written = lib.length (lib.filter (line: line != "" && !lib.hasPrefix "#" line) lines);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = understood == written;
        message = "policies/sysusers.d/shipote.conf: ${
          toString (written - understood)
        } lines are of a kind that nixos-module/users.nix does not read; teach it to.";
      }
    ];
    users.users = lib.listToAttrs (map user users);
    users.groups = lib.genAttrs (groups ++ map lib.head users) (_: { });
  };
}
