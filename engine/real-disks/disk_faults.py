#!/usr/bin/env python3
"""The chunk store on real disks that fail, fill up, go read-only or rot.

    disk_faults.py DRIVER [--fs ext4|xfs ...] [--only CASE ...] [--seed N] [--rot N] [--install]

    DRIVER      the program store_driver of the crate engine
    --rot N     damaged places per file system (30)

Every case: the right kind of error, no panic, nothing acknowledged after the fault, everything acknowledged
before it is there afterwards, and the store serves again after the remedy. Exit status 1 when a case fails;
SKIPPED and 0 where the machine has not what it takes.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import time

import disks

LIMIT = 120
# XFS wants 300 MiB.
SIZE = {"ext4": 256 << 20, "xfs": 320 << 20}


class Failed(Exception):
    pass


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("driver")
    parser.add_argument("--fs", nargs="*", choices=disks.FILE_SYSTEMS, default=disks.FILE_SYSTEMS)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rot", type=int, default=30)
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    options.driver = os.path.abspath(options.driver)
    if options.install:
        disks.install()
    reason = disks.why_not()
    if reason:
        print(f"SKIPPED: disk faults: {reason}")
        return 0
    disks.own_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = disks.memory_folder()
    passed = failed = 0
    try:
        for fs in options.fs:
            for name, case in CASES:
                if options.only and name not in options.only:
                    continue
                started = time.monotonic()
                bench = Bench(options, os.path.join(folder, f"{fs}.{name}"), fs)
                try:
                    said = case(bench)
                    passed += 1
                    print(f"ok: {fs}: {name}: {said} ({time.monotonic() - started:.1f} s)", flush=True)
                except (Failed, RuntimeError, subprocess.TimeoutExpired) as error:
                    failed += 1
                    print(f"FAILED: {fs}: {name}: {error}", flush=True)
                finally:
                    bench.close()
    finally:
        disks.remove_memory_folder(folder)
    print(f"disk faults: {passed} passed, {failed} failed")
    return 1 if failed else 0


class Bench:
    """A file system with a store, and a log of its answers outside of it."""

    def __init__(self, options, folder, fs):
        os.mkdir(folder)
        self.options, self.folder, self.fs = options, folder, fs
        self.image = os.path.join(folder, "image")
        self.mount_point = os.path.join(folder, "mnt")
        self.root = os.path.join(self.mount_point, "store")
        self.answers = os.path.join(folder, "answers")
        self.faulty = None
        self.running = None

    def make(self, *flags):
        disks.make_image(self.image, self.fs, SIZE[self.fs], *flags)

    def mount(self):
        disks.mount(self.faulty.disk if self.faulty else self.image, self.mount_point, self.fs)

    def umount(self):
        disks.umount(self.mount_point)

    def ballast(self, size):
        """A file that takes space."""
        path = os.path.join(self.mount_point, "ballast")
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return path

    def break_ready(self):
        """From now on the disk can be made to fail."""
        self.faulty = disks.FaultyDisk(self.folder, self.image)

    def command(self, mode, *flags):
        log = [] if mode == "full" else ["--log", self.answers]
        return [*disks.WITH_US, self.options.driver, mode, "--root", self.root, *log, "--seed", str(self.options.seed), *flags]

    def drive(self, mode, *flags, status, says=""):
        """Runs the driver; its line, when status and words are as they should be."""
        done = subprocess.run(self.command(mode, *flags), capture_output=True, text=True, timeout=LIMIT)
        return self.judge(mode, done.returncode, done.stdout, done.stderr, status, says)

    def judge(self, mode, code, out, err, status, says):
        line = (out.strip().splitlines() or [""])[-1]
        said = any(word in line for word in ((says,) if isinstance(says, str) else says))
        if code != status or not said:
            tail = " | ".join(err.strip().splitlines()[-3:])
            raise Failed(f"{mode}: status {code} for {status}, {says!r} expected in: {line} {tail}")
        return line

    def begin(self, *flags):
        """Starts a run without an end; waits until it works."""
        before = self.lines()
        self.running = subprocess.Popen(self.command("run", "--steps", "1000000", *flags), text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait("the store does not work", lambda: self.lines() > before + 150 or self.running.poll() is not None)
        if self.running.poll() is not None:
            raise Failed(f"run ended: {self.running.communicate()}")

    def ends(self, says, *, status=3):
        """The run ends by itself, with an error of its own."""
        end = time.monotonic() + LIMIT
        while self.running.poll() is None and time.monotonic() < end:
            if self.faulty and self.faulty.failing == "read":
                self.faulty.forget()
            time.sleep(0.01)
        out, err = self.running.communicate(timeout=1)
        code, self.running = self.running.returncode, None
        return self.judge("run", code, out, err, status, says)

    def lines(self):
        try:
            with open(self.answers, "rb") as log:
                return log.read().count(b"\n")
        except FileNotFoundError:
            return 0

    def serves(self):
        """Everything acknowledged is there, and new work is taken."""
        checked = self.drive("check", status=0, says="ok")
        self.drive("run", "--steps", "20", status=0, says="worked")
        self.drive("check", status=0, says="ok")
        return checked

    def close(self):
        if self.running:
            self.running.kill()
            self.running.wait()
        if self.faulty:
            try:
                self.faulty.heal()
            except (RuntimeError, OSError):
                pass
        subprocess.run(["umount", self.mount_point], capture_output=True)
        if self.faulty:
            self.faulty.close()


def wait(what, done):
    end = time.monotonic() + LIMIT
    while not done():
        if time.monotonic() > end:
            raise Failed(what)
        time.sleep(0.01)


def no_room_for_the_journal(bench):
    """A fresh disk that cannot hold its journal is refused, and used once it can."""
    bench.make()
    bench.mount()
    ballast = bench.ballast(SIZE[bench.fs] // 2)
    journal = ["--ring-bytes", str(SIZE[bench.fs] // 2)]
    refused = bench.drive("run", *journal, status=3, says="refused")
    if "remedy" not in refused or "o space" not in refused:
        raise Failed(f"no remedy in: {refused}")
    os.unlink(ballast)
    bench.drive("run", *journal, status=0, says="worked")
    bench.serves()
    return refused.split(";")[0]


def full_disk(bench):
    """Full, refused before anything is accepted, and on with room, without a restart."""
    bench.make()
    bench.mount()
    ballast = bench.ballast(SIZE[bench.fs] * 2 // 3)
    return bench.drive("full", "--ballast", ballast, status=0)


def no_inodes(bench):
    """No file can be made any more: no new chunks, and the old ones live."""
    if bench.fs != "ext4":
        return "XFS makes inodes as it needs them"
    bench.make("-N", "64")
    bench.mount()
    bench.drive("run", "--steps", "20", "--workers", "2", status=0, says="worked")
    names = []
    try:
        while True:
            names.append(os.path.join(bench.mount_point, f"inode-{len(names)}"))
            open(names[-1], "x").close()
    except OSError:
        names.pop()
    said = bench.drive("run", "--steps", "1000", "--workers", "16", status=3, says="no space")
    bench.drive("check", status=0, says="ok")
    for name in names:
        os.unlink(name)
    bench.serves()
    return said


def failing(kind, says):
    """The disk fails every request of a kind while the store works."""

    def case(bench):
        bench.make()
        bench.break_ready()
        bench.mount()
        bench.begin()
        bench.faulty.fail(kind)
        said = bench.ends(says)
        bench.faulty.heal()
        bench.umount()
        bench.mount()
        bench.serves()
        return said

    return case


def unreadable_at_start(bench):
    """A disk that answers no reads: reported, and no harm done."""
    bench.make()
    bench.break_ready()
    bench.mount()
    bench.drive("run", status=0, says="worked")
    # No copy of anything in memory; the folders are read again before the fault.
    bench.umount()
    bench.mount()
    for _ in os.walk(bench.root):
        pass
    bench.faulty.fail("read")
    bench.faulty.forget()
    said = bench.drive("check", "--lenient", status=0, says="reported")
    bench.faulty.heal()
    bench.umount()
    bench.mount()
    bench.serves()
    return said


def read_only(bench):
    """Mounted read-only: refused with a remedy, served again once it is not."""
    bench.make()
    bench.mount()
    bench.drive("run", status=0, says="worked")
    disks.run("mount", "-o", "remount,ro", bench.mount_point)
    refused = bench.drive("run", status=3, says="refused")
    if "remedy" not in refused or "ead-only" not in refused:
        raise Failed(f"no remedy in: {refused}")
    disks.run("mount", "-o", "remount,rw", bench.mount_point)
    bench.serves()
    return refused.split(";")[0]


def shut_down(bench):
    """The file system gives up while the store works, and forgets what was not committed."""
    bench.make()
    bench.mount()
    bench.begin("--shards", "2")
    disks.run("xfs_io", "-x", "-c", "shutdown", bench.mount_point)
    # What meets it first: a write, or a read.
    said = bench.ends(("fenced", "failed"))
    bench.umount()
    bench.mount()
    bench.serves()
    return said


# Where things lie: the log area of a journal, the two halves of a slot's trailer.
RING_LOG = 2 * 4096
HALVES = (0x0400_0000, 0x0401_8000)


def rot(bench):
    """Damage in files of a store that is stopped: served right, or reported."""
    bench.make()
    bench.mount()
    # Not stopped in order: the journal is full of records that count.
    bench.drive("run", "--leave", "--runtime", "monoio", status=0, says="worked")
    bench.umount()
    rng = random.Random(bench.options.seed)
    clean = os.path.join(bench.folder, "clean")
    os.rename(bench.image, clean)
    outcomes = {}
    for _ in range(bench.options.rot):
        disks.run("cp", "--sparse=auto", clean, bench.image)
        bench.mount()
        what = damage(bench.root, rng)
        said = bench.drive("check", "--lenient", status=0)
        bench.umount()
        outcome = f"{what} {said.split(':')[0]}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    disks.run("cp", "--sparse=auto", clean, bench.image)
    bench.mount()
    bench.serves()
    return ", ".join(f"{what} {count}" for what, count in sorted(outcomes.items()))


def damage(root, rng):
    """Flips, clears or swaps 512 bytes or a block of one structure; its name."""
    slots = sorted(os.listdir(os.path.join(root, "slots")))
    slot = os.path.join(root, "slots", rng.choice(slots))
    half = rng.choice(HALVES)
    name, path, base, pages = rng.choice((
        ("DISK", os.path.join(root, rng.choice(("DISK.A", "DISK.B"))), 0, 1),
        ("RING", os.path.join(root, "journal", "ring-0000"), rng.choice((0, 4096)), 1),
        ("record", os.path.join(root, "journal", "ring-0000"), RING_LOG, 128),
        ("data", slot, 0, 64),
        ("HDR", slot, half, 1),
        ("TAIL", slot, half + 0x1000, 1),
        ("DEDUP", slot, half + 0x2000, 1),
        ("CRC", slot, half + 0x6000, 1),
    ))
    at = base + 4096 * rng.randrange(pages)
    with open(path, "r+b") as file:
        file.seek(at)
        block = bytearray(file.read(4096).ljust(4096, b"\0"))
        how = rng.randrange(3)
        if how == 0:
            block[rng.randrange(4096)] ^= 1 << rng.randrange(8)
        elif how == 1:
            sector = 512 * rng.randrange(8)
            block[sector : sector + 512] = bytes(512)
        else:
            file.seek(base + 4096 * rng.randrange(pages) if pages > 1 else at ^ 0x1000)
            block = bytearray(file.read(4096).ljust(4096, b"\0"))
        file.seek(at)
        file.write(block)
        os.fsync(file.fileno())
    return name


CASES = (
    ("no room for the journal", no_room_for_the_journal),
    ("full disk", full_disk),
    ("no inodes", no_inodes),
    ("write fails", failing("write", "fenced")),
    ("flush fails", failing("flush", "fenced")),
    ("read fails", failing("read", "failed")),
    ("unreadable at start", unreadable_at_start),
    ("read-only", read_only),
    ("shut down", shut_down),
    ("rot", rot),
)

if __name__ == "__main__":
    sys.exit(main())
