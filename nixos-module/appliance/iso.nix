# The appliance on a medium that nobody writes to: `config.system.build.isoImage`, for a stick or a virtual drive.
#
# What it is started with is all that it is: the store is read from the medium, root and /var are in memory, and with them
# the journal. For a look at it, for a host that keeps nothing, or to write `disk.nix` to a disk from.
{ modulesPath, ... }:
{
  imports = [
    ./.
    (modulesPath + "/installer/cd-dvd/iso-image.nix")
  ];

  isoImage.makeEfiBootable = true;
  # A stick begins as a disk does, for firmware that looks for no CD.
  isoImage.makeUsbBootable = true;
}
