# What cannot work is refused before it is built, with what to do about it.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.services.shipote;
  names = import ./names.nix;
  sections = names ++ [
    "audit"
    "cli"
  ];

  enabled = lib.filter (name: cfg.services.${name}.enable) names;
  declared = lib.attrNames cfg.workspaces ++ lib.attrNames cfg.pipelines;
  rules = lib.attrNames cfg.services.proxy.rules;
  # The option moved when journald's came to mirror journald.conf(5).
  journal =
    if options.services.journald ? settings then
      config.services.journald.settings.Journal.Storage or "persistent"
    else
      config.services.journald.storage;

  listed = xs: lib.concatMapStringsSep ", " (x: "`${x}`") xs;

  # Names become parts of unit names and arguments, so they are held to what is plain in both.
  plain = name: builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}" name != null;
  odd = lib.filter (name: !plain name) (declared ++ rules);

  forSettings =
    let
      unknown = lib.subtractLists sections (lib.attrNames cfg.settings);
    in
    [
      {
        assertion = unknown == [ ];
        message = "services.shipote.settings: no service reads the section ${listed unknown}, and each would refuse to start; known sections are ${listed sections}.";
      }
      {
        assertion = cfg.settings.audit.mode == "required" -> journal != "none";
        message = ''services.shipote.settings.audit.mode is "required", but journald's storage is "none": it takes the records and drops them; set it to "persistent".'';
      }
    ];

  forServices = [
    {
      assertion = enabled != [ ];
      message = "services.shipote is enabled with every service off; switch one of services.shipote.services.{${lib.concatStringsSep "," names}}.enable on, or services.shipote.enable off.";
    }
    {
      # PrivateTmp=disconnected and ProtectControlGroups=strict came with 257; older ones pass over them with a warning.
      assertion = lib.versionAtLeast config.systemd.package.version "257";
      message = "services.shipote: the units are hardened with what systemd ${config.systemd.package.version} does not know yet; use a nixpkgs with systemd 257 or newer.";
    }
  ];

  forWorkspaces = [
    {
      assertion = cfg.services.workspaces.enable -> config.security.allowUserNamespaces;
      message = "services.shipote: workspaces are made of user namespaces, but security.allowUserNamespaces is false; set it to true, or services.shipote.services.workspaces.enable to false.";
    }
    {
      assertion =
        cfg.services.workspaces.enable || cfg.services.machines.enable
        -> config.environment.usrbinenv != null;
      message = "services.shipote: workspaces and machines are given the host's /usr, but without environment.usrbinenv there is none; set it, or switch services.shipote.services.{machines,workspaces}.enable off.";
    }
    {
      assertion = declared != [ ] -> cfg.services.workspaces.enable;
      message = "services.shipote: ${listed declared} would run in the service that services.shipote.services.workspaces.enable switches off; switch it on, or remove them.";
    }
    {
      assertion = odd == [ ];
      message = "services.shipote: ${listed odd} cannot name a workspace, pipeline or rule file here; use up to 63 letters, digits, `_`, `.` and `-`, the first a letter or digit.";
    }
  ];

  forProxy =
    let
      proxy = cfg.services.proxy;
      empty = lib.attrNames (lib.filterAttrs (_: file: (file.rules or [ ]) == [ ]) proxy.rules);
    in
    [
      {
        assertion = rules != [ ] -> proxy.enable;
        message = "services.shipote.services.proxy has the rules ${listed rules}, but enable is false; set it to true, or remove them.";
      }
      {
        assertion = empty == [ ];
        message = "services.shipote.services.proxy.rules: ${listed empty} has no rule; write it as { rules = [ { name = …; listen = [ … ]; terminate = { … }; } ]; }.";
      }
      {
        assertion = proxy.acme.enable -> (cfg.settings.proxy.acme.agree_to_terms or false);
        message = "services.shipote.services.proxy.acme: the authority's terms have to be agreed to; read them, and set services.shipote.settings.proxy.acme.agree_to_terms = true.";
      }
      {
        assertion = proxy.openFirewall -> rules != [ ];
        message = "services.shipote.services.proxy.openFirewall: which ports to open is read from services.shipote.services.proxy.rules, and there are none; write the rules there, or open the ports with networking.firewall.";
      }
    ];

  forPlugins =
    let
      # What the registry reads of an entry; it does not start with any other.
      keys = [
        "canary"
        "deadline_ms"
        "fuel"
        "http"
        "instances"
        "limits"
        "memory_bytes"
        "signed_by"
        "sockets"
        "state_bytes"
        "wasi_stubs"
      ];
    in
    lib.mapAttrsToList (
      name: policy:
      let
        unknown = lib.subtractLists keys (lib.attrNames policy);
      in
      {
        assertion = unknown == [ ];
        message = "services.shipote.policies.plugins.${name}: a policy has no ${listed unknown}; it has ${listed keys}.";
      }
    ) cfg.policies.plugins
    ++ [
      {
        assertion = cfg.policies.plugins != { } -> cfg.services.plugins.enable;
        message = "services.shipote.policies.plugins is for the service that services.shipote.services.plugins.enable switches off; switch it on, or remove the policies.";
      }
    ];

  forEachWorkspace = lib.concatLists (
    lib.mapAttrsToList (name: workspace: [
      {
        assertion = (workspace.spec.label or name) == name;
        message = "services.shipote.workspaces.${name}.spec.label is `${workspace.spec.label or ""}`, but the workspace is called `${name}`; leave the label out.";
      }
    ]) cfg.workspaces
  );

  forEachPipeline = lib.concatLists (
    lib.mapAttrsToList (
      name: pipeline:
      let
        option = "services.shipote.pipelines.${name}";
        nodes = pipeline.spec.nodes or [ ];
        labels = map (node: node.label or "") nodes;
        # An edge names a node by label, or by position from 0.
        known = end: if lib.isInt end then end >= 0 && end < lib.length nodes else lib.elem end labels;
        ends = lib.concatMap (edge: [
          (edge.from or "")
          (edge.to or "")
        ]) (pipeline.spec.edges or [ ]);
        lost = lib.unique (map toString (lib.filter (end: !known end) ends));
      in
      [
        {
          assertion = nodes != [ ];
          message = "${option}.spec.nodes is empty; a pipeline has at least one node, { label = …; command = [ … ]; }.";
        }
        {
          assertion = lost == [ ];
          message = "${option}.spec.edges: there is no node ${listed lost}; the nodes are ${listed labels}.";
        }
        {
          assertion = pipeline.workspace != null -> cfg.workspaces ? ${pipeline.workspace};
          message = "${option}.workspace is `${toString pipeline.workspace}`, which is none of services.shipote.workspaces (${listed (lib.attrNames cfg.workspaces)}); declare it there, or leave it out for a workspace of the pipeline's own.";
        }
        {
          assertion = !(pipeline.spec ? workspace);
          message = "${option}.spec.workspace: say it in ${option}.workspace instead, so that the unit waits for the workspace.";
        }
      ]
    ) cfg.pipelines
  );
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      forSettings
      ++ forServices
      ++ forWorkspaces
      ++ forProxy
      ++ forPlugins
      ++ forEachWorkspace
      ++ forEachPipeline;
  };
}
