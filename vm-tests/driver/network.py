"""The network of a scenario with several machines: a hub in the driver, private to it, over Unix sockets.

As in the NixOS driver, machines reach each other by name, as 192.168.1.1, .2, … in the order of their names.
"""

import os
import socket
import threading

from process import RunFolder

# An Ethernet frame, with room for what an interface may put before it.
FRAME = 65536 + 64


class Network:
    def __init__(self, names):
        self.names = sorted(names)

    def __enter__(self):
        self.folder = RunFolder()
        self.ends = {name: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for name in self.names}
        for name, end in self.ends.items():
            end.bind(self._hub(name))
            threading.Thread(target=self._pass_on, args=(name,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for end in self.ends.values():
            # wakes its thread, which ends
            end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.folder.remove()

    def _hub(self, name):
        return os.path.join(self.folder.path, f"hub-{name}")

    def _machine(self, name):
        return os.path.join(self.folder.path, name)

    def _pass_on(self, name):
        """Gives every frame of one machine to all others; one that does not run, or is not quick enough, loses it."""
        end = self.ends[name]
        while True:
            try:
                frame = end.recv(FRAME)
            except OSError:
                return
            if not frame:
                return
            for other in self.names:
                if other != name:
                    try:
                        end.sendto(frame, socket.MSG_DONTWAIT, self._machine(other))
                    except OSError:
                        pass

    def plug(self, name):
        """QEMU's arguments for the interface of a machine."""
        path = self._machine(name)
        # of its previous life
        if os.path.exists(path):
            os.unlink(path)
        ends = f"local.type=unix,local.path={path},remote.type=unix,remote.path={self._hub(name)}"
        number = self.names.index(name) + 1
        return ["-netdev", f"dgram,id=lan,{ends}", "-device", f"virtio-net-pci,netdev=lan,mac=52:54:00:12:01:{number:02x}"]

    def settings(self, name):
        """The command that gives a machine its address and the names of the others, at each boot."""
        hosts = "".join(f"192.168.1.{number} {other}\\n" for number, other in enumerate(self.names, 1))
        number = self.names.index(name) + 1
        return f"""
            until device=$(ls /sys/class/net | grep -vx lo); do sleep 0.2; done
            ip address replace 192.168.1.{number}/24 dev $device
            ip link set $device up
            hostname {name}
            grep -q '^192.168.1.1 ' /etc/hosts || printf '{hosts}' >> /etc/hosts
        """
