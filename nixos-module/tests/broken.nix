# Configurations that must be refused, each with words that its message has; by its type alone where there are none.
{ on }:
let
  node = {
    label = "a";
    command = [ "true" ];
  };
in
{
  unknown-section = {
    config = on { settings.prxy.listen = 80; };
    says = "no service reads the section `prxy`";
  };
  audit-without-journal = {
    config =
      { options, ... }:
      {
        imports = [ (on { settings.audit.mode = "required"; }) ];
        services.journald =
          if options.services.journald ? settings then
            { settings.Journal.Storage = "none"; }
          else
            { storage = "none"; };
      };
    says = "it takes the records and drops them";
  };
  misspelt-mode.config = on { settings.audit.mode = "requierd"; };
  misspelt-option.config = on { setings = { }; };
  misspelt-service.config = on { services.prxy.enable = false; };
  everything-off = {
    config = on {
      services = {
        machines.enable = false;
        plugins.enable = false;
        proxy.enable = false;
        workspaces.enable = false;
      };
    };
    says = "with every service off";
  };
  no-user-namespaces = {
    config = {
      imports = [ (on { }) ];
      security.allowUserNamespaces = false;
    };
    says = "security.allowUserNamespaces is false";
  };
  no-usr = {
    config = {
      imports = [ (on { }) ];
      environment.usrbinenv = null;
    };
    says = "without environment.usrbinenv";
  };
  workspace-without-service = {
    config = on {
      services.workspaces.enable = false;
      workspaces.build = { };
    };
    says = "`build` would run in the service";
  };
  rules-without-proxy = {
    config = on {
      services.proxy.enable = false;
      services.proxy.rules.site.rules = [ { name = "a"; } ];
    };
    says = "has the rules `site`, but enable is false";
  };
  rules-without-a-rule = {
    config = on { services.proxy.rules.site.rule = [ { name = "a"; } ]; };
    says = "`site` has no rule";
  };
  acme-without-terms = {
    config = on { services.proxy.acme.enable = true; };
    says = "the authority's terms have to be agreed to";
  };
  firewall-without-rules = {
    config = on { services.proxy.openFirewall = true; };
    says = "which ports to open is read from";
  };
  misspelt-policy = {
    config = on { policies.plugins.geo.https.allowed_hosts = [ "*" ]; };
    says = "policies.plugins.geo: a policy has no `https`";
  };
  policy-without-registry = {
    config = on {
      services.plugins.enable = false;
      policies.plugins.geo = { };
    };
    says = "services.shipote.services.plugins.enable switches off";
  };
  odd-name = {
    config = on { workspaces."a b" = { }; };
    says = "`a b` cannot name a workspace";
  };
  contradictory-label = {
    config = on { workspaces.build.spec.label = "other"; };
    says = "but the workspace is called `build`";
  };
  pipeline-without-spec = {
    config = on { pipelines.empty = { }; };
    says = "spec.nodes is empty";
  };
  pipeline-without-nodes = {
    config = on { pipelines.empty.spec = { }; };
    says = "spec.nodes is empty";
  };
  edge-to-nowhere = {
    config = on {
      pipelines.lost.spec = {
        nodes = [ node ];
        edges = [
          {
            from = "a";
            to = "b";
          }
        ];
      };
    };
    says = "there is no node `b`";
  };
  undeclared-workspace = {
    config = on {
      pipelines.lost = {
        workspace = "missing";
        spec.nodes = [ node ];
      };
    };
    says = "none of services.shipote.workspaces";
  };
  workspace-in-the-spec = {
    config = on {
      pipelines.twice.spec = {
        workspace = "build";
        nodes = [ node ];
      };
    };
    says = "so that the unit waits for the workspace";
  };
  spec-that-is-no-table.config = on { workspaces.build.spec = "label"; };
  policy-of-nobody.config = on { policies.landlock.prxy = { }; };
  negative-grace.config = on { workspaces.build.graceMilliseconds = -1; };
}
