"""Processes and folders that go away with whoever made them, however that ends."""

import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading

PR_SET_PDEATHSIG = 1
PREFIX = "shipote-vm-"
_making = threading.Lock()


def follow_parent():
    """Ties the driver to the xtask that started it: SIGTERM becomes an ordinary exit, with all clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent = os.environ.get("SHIPOTE_VM_PARENT")
    if parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):
            # it has ended before that
            os._exit(1)


class RunFolder:
    """Folder of one machine's disk, socket and log. A lock tells its owner's life: folders without one are swept."""

    def __init__(self):
        # /var/tmp: a disk copy does not belong into a /tmp in memory; short, because a socket's path is bounded
        self.parent = os.environ.get("SHIPOTE_VM_TMP", "/var/tmp")
        # before it is locked, another thread's sweep would take it for one that nobody has
        with _making:
            self._sweep()
            self.path = tempfile.mkdtemp(prefix=PREFIX, dir=self.parent)
            self.lock = open(os.path.join(self.path, "lock"), "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def _sweep(self):
        for name in os.listdir(self.parent):
            path = os.path.join(self.parent, name)
            if not name.startswith(PREFIX) or os.stat(path).st_uid != os.geteuid():
                continue
            try:
                with open(os.path.join(path, "lock")) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                pass  # in use, or being made
