"""Disks made of files: formatted, mounted, recorded, made to fail. Everything is gone when the process is.

All mounts are in a mount namespace of this process (`own_namespace`), loop devices detach themselves with
their last mount, and what was started dies with its parent: `kill -9` leaves an empty folder behind.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

NAMESPACE = "REAL_DISKS_NAMESPACE"
# Images and records lie in memory: at most this much.
MEMORY = "4g"
FILE_SYSTEMS = ("ext4", "xfs")


def why_not():
    """Why this machine cannot do it, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    for tool in ("qemu-storage-daemon", "mkfs.ext4", "mkfs.xfs", "losetup", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: qemu-system-common fuse3 xfsprogs e2fsprogs util-linux)"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            return f"needs {device}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        return "may not make a mount namespace"
    try:
        own = subprocess.run(["losetup", "-f"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "losetup does not answer"
    return None if own.returncode == 0 else f"no loop device: {own.stderr.strip()}"


def install():
    """Gets what is missing with apt-get, where there is one and this is root."""
    if why_not() and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = ["qemu-system-common", "fuse3", "xfsprogs", "e2fsprogs", "util-linux"]
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages],
                       stdout=subprocess.DEVNULL)


def own_namespace():
    """Runs the rest of this program where its mounts are its own."""
    if NAMESPACE not in os.environ:
        os.environ[NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])


def memory_folder():
    """A folder in memory, which nobody else sees."""
    folder = tempfile.mkdtemp(prefix="hercules-disks.")
    run("mount", "-t", "tmpfs", "-o", f"size={MEMORY},mode=700", "none", folder)
    return folder


def remove_memory_folder(folder):
    subprocess.run(["umount", "-l", folder], capture_output=True)
    os.rmdir(folder)


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def make_image(path, fs, size, *flags):
    with open(path, "wb") as file:
        file.truncate(size)
    if fs == "ext4":
        run("mkfs.ext4", "-q", "-F", *flags, path)
    else:
        run("mkfs.xfs", "-q", "-f", *flags, path)


def mount(image, folder, fs):
    """Mounts a file. The loop device goes with the mount.

    Buffered: then the loop device sends one request after the other, which a record relies on, and some
    releases of qemu-storage-daemon mix up the data of writes that overlap in time.
    """
    os.makedirs(folder, exist_ok=True)
    loop = run("losetup", "-f", "--show", "--direct-io=off", image)
    try:
        # Copies of one image have one UUID, which XFS refuses twice.
        run("mount", "-o", "nouuid" if fs == "xfs" else "defaults", loop, folder)
    finally:
        run("losetup", "-d", loop)
    return loop


def umount(folder):
    for _ in range(100):
        done = subprocess.run(["umount", folder], capture_output=True, text=True)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        time.sleep(0.05)
    raise RuntimeError(f"umount {folder}: {done.stderr.strip()}")


# Ends with whoever started it, however that ends.
WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Daemon:
    """An image behind qemu-storage-daemon, shown as the file `disk`."""

    def __init__(self, folder, image, *nodes, top):
        self.disk = os.path.join(folder, "disk")
        self.control = os.path.join(folder, "control")
        self.output = open(os.path.join(folder, "daemon.out"), "w+")
        open(self.disk, "w").close()
        self.process = subprocess.Popen(
            [*WITH_US, "qemu-storage-daemon",
             "--chardev", f"socket,id=control,path={self.control},server=on,wait=off",
             "--monitor", "chardev=control",
             "--blockdev", f"driver=file,node-name=file,filename={image}",
             *(word for node in nodes for word in ("--blockdev", node)),
             "--export", f"type=fuse,id=export,node-name={top},mountpoint={self.disk},writable=on"],
            stdout=self.output, stderr=subprocess.STDOUT)
        size = os.path.getsize(image)
        for _ in range(200):
            if os.path.getsize(self.disk) == size:
                return
            if self.process.poll() is not None:
                self.output.seek(0)
                raise RuntimeError(f"qemu-storage-daemon: {self.output.read().strip()}")
            time.sleep(0.02)
        raise RuntimeError("qemu-storage-daemon shows no disk")

    def ask(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.control)
            with link.makefile("rw") as lines:
                lines.readline()
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    lines.write(json.dumps(request) + "\n")
                    lines.flush()
                    answer = json.loads(lines.readline())
                    while "event" in answer:
                        answer = json.loads(lines.readline())
                    if "error" in answer:
                        raise RuntimeError(f"{command}: {answer['error']['desc']}")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.output.close()
        subprocess.run(["umount", "-l", self.disk], capture_output=True)


def record(folder, image, log, sector=512):
    """A disk whose writes and flushes are recorded in the file `log`, one request after the other."""
    with open(log, "wb") as file:
        file.truncate(8 << 30)
    return Daemon(
        folder, image, f"driver=file,node-name=log,filename={log}",
        f"driver=blklogwrites,node-name=recorded,file=file,log=log,log-sector-size={sector},"
        "log-super-update-interval=1",
        top="recorded")


class FaultyDisk(Daemon):
    """A disk that fails a kind of request from one moment to the other.

    A flush fails once, and the next one claims success: what a kernel does, too. (The daemon flushes when
    it changes over, and could not come back from one that always fails.)
    """

    KINDS = ("read", "write", "flush")
    failing = None

    def __init__(self, folder, image):
        bad = [f"driver=blkdebug,node-name=bad-{kind},image=file,inject-error.0.event=none,"
               f"inject-error.0.iotype={kind},inject-error.0.errno=5,"
               f"inject-error.0.once={'on' if kind == 'flush' else 'off'}" for kind in self.KINDS]
        super().__init__(folder, image, *bad, "driver=raw,node-name=top,file=file", top="top")

    def fail(self, kind):
        """EIO for every `read` or `write` from now on, or for the next `flush`."""
        self.failing = kind
        self.ask("blockdev-reopen", options=[{"driver": "raw", "node-name": "top", "file": f"bad-{kind}"}])

    def forget(self):
        """Drops what the machine remembers of the disk: FUSE does so when the file is opened."""
        os.close(os.open(self.disk, os.O_RDONLY))

    def heal(self):
        self.failing = None
        self.ask("blockdev-reopen", options=[{"driver": "raw", "node-name": "top", "file": "file"}])
