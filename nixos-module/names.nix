# The services, by the one name that their unit, binary, bus name, policy and section of the configuration share.
[
  "machines"
  "plugins"
  "proxy"
  "workspaces"
]
