#!/usr/bin/env python3
"""Cuts the power under the chunk store on a real ext4 or XFS, at many moments, and looks what is left.

    power_cut.py DRIVER --fs ext4|xfs [--states N] [--seed N] [--canary NUMBER] [--install]

    DRIVER          the program store_driver of the crate engine, built with the feature `canary`
    --states N      states to look at (40)
    --seed N        of workload and states (1)
    --canary D7     plant this bug; the run then fails unless bytes are found lost
    --install       get missing tools with apt-get

Record: the store works on the file system, whose disk is a loop device over qemu-storage-daemon, which
writes down every write and flush in the order in which the disk sees them. One life of the store ends by
kill -9, the next recovers from what is in the cache and goes on. Every answer is logged outside of that
disk, with the number of recorded entries at that moment.

States: up to some flush all is on the disk. Of the writes after it, up to the next flush, any subset is, and
any of those may be torn at 512 bytes. Each such image is mounted (the file system recovers), the store
recovers on it, and everything is read and compared with the answers that were given before that next flush
had happened: what a store answers between two flushes, it can only have made durable with the first.

Nothing is wrongly found and nothing overlooked by the order of answers and writes: the loop device sends one
write or flush after the other, each is recorded before it is answered, and the answer of the store is logged
with the number of entries recorded when it was already given.

Exit status: 0 nothing lost (canary: something lost), 1 otherwise. SKIPPED and 0 where the machine has not
what it takes.
"""
import argparse
import bisect
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import blocklog
import disks

SIZE = 512 << 20
# States looked at per recorded run: then a run with another seed.
STATES_PER_RUN = 250
# A check or a run that takes longer hangs.
LIMIT = 300


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("driver")
    parser.add_argument("--fs", choices=disks.FILE_SYSTEMS, required=True)
    parser.add_argument("--states", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--canary")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    options.driver = os.path.abspath(options.driver)
    if options.install:
        disks.install()
    reason = disks.why_not()
    if reason:
        print(f"SKIPPED: power cut on {options.fs}: {reason}")
        return 0
    disks.own_namespace()
    # Ctrl-C and `kill` unwind: the folder goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = disks.memory_folder()
    try:
        return campaign(options, folder)
    finally:
        disks.remove_memory_folder(folder)


def campaign(options, folder):
    started = time.monotonic()
    left, seed, broken, looked, cuts = options.states, options.seed, 0, 0, 0
    while left > 0:
        recording = Recording(options, os.path.join(folder, str(seed)), seed)
        states = plan(recording, min(left, STATES_PER_RUN), random.Random(seed))
        broken += look(options, recording, states)
        looked, left, seed = looked + len(states), left - len(states), seed + 1
        cuts += len(recording.flushes)
        shutil.rmtree(recording.folder)
        if options.canary and broken:
            break
    seconds = time.monotonic() - started
    what = f"canary {options.canary}: " if options.canary else ""
    print(f"power cut on {options.fs}: {what}{looked} states of {cuts} flushes, {broken} with a loss, "
          f"{seconds:.0f} s")
    if options.canary:
        if broken:
            print(f"  the planted bug {options.canary} was found, as it must be")
            return 0
        print(f"FAILED: the bug {options.canary} was planted and nothing was found lost")
        return 1
    return 1 if broken else 0


class Recording:
    """A run of the store, its log, and what its disk saw."""

    def __init__(self, options, folder, seed):
        self.folder, self.fs = folder, options.fs
        os.mkdir(folder)
        self.base = os.path.join(folder, "base")
        self.answers = os.path.join(folder, "answers")
        self.mount = os.path.join(folder, "mnt")
        log = os.path.join(folder, "log")
        self.driver = [*disks.WITH_US, options.driver]
        rng = random.Random(seed)

        # A formatted disk, before the record begins.
        disks.make_image(self.base, self.fs, SIZE)
        disks.mount(self.base, self.mount, self.fs)
        self.work("--steps", "0", "--workers", "0")
        disks.umount(self.mount)

        image = os.path.join(folder, "image")
        shutil.copyfile(self.base, image)
        daemon = disks.record(folder, image, log)
        try:
            disks.mount(daemon.disk, self.mount, self.fs)
            # Everything that is left over from the mount goes into the file system's journal: what the
            # store does after it has to commit by itself.
            disks.run("sync", "-f", self.mount)
            canary = ["--canary", options.canary] if options.canary else []
            flags = ["--position", log, "--seed", str(seed), *canary]
            shards = rng.choice((1, 1, 2))
            backends = rng.sample(("glommio", "monoio", "monoio-epoll"), 2)
            self.work_until_killed(rng.randrange(100, 500), "--steps", "100000", "--shards", str(shards),
                                   "--runtime", backends[0], *flags)
            if not options.canary:
                self.work("--steps", "25", "--shards", str(rng.choice((1, 2, 3))), "--runtime", backends[1],
                          *flags)
            self.log = blocklog.BlockLog(log)
            disks.umount(self.mount)
        finally:
            daemon.close()
        # Positions are numbers of entries; `flushes[k]` is the k-th moment at which all before is durable.
        self.flushes = [at + 1 for at, entry in enumerate(self.log.entries) if entry.flags & blocklog.FLUSH]
        os.unlink(image)

    def command(self, mode, root, *flags):
        return [*self.driver, mode, "--root", os.path.join(root, "store"), "--log", self.answers, *flags]

    def work(self, *flags):
        print("  " + disks.run(*self.command("run", self.mount, *flags), timeout=LIMIT), flush=True)

    def work_until_killed(self, lines, *flags):
        """kill -9 once the log has grown by so many lines."""
        with subprocess.Popen(self.command("run", self.mount, *flags), stdout=subprocess.PIPE, text=True) as driver:
            end = time.monotonic() + LIMIT
            while driver.poll() is None and self.lines() < lines and time.monotonic() < end:
                time.sleep(0.002)
            ended = driver.poll()
            driver.kill()
            if ended is not None:
                raise RuntimeError(f"the driver ended before it was killed: {driver.stdout.read().strip()}")
        print(f"  killed after {self.lines()} lines of the log", flush=True)

    def lines(self):
        with open(self.answers, "rb") as log:
            return log.read().count(b"\n")


def plan(recording, count, rng):
    """The states to look at: (durable up to this entry, entries kept of those after it, torn entries),
    ascending. Spread over all flushes; every third keeps nothing, every sixth everything."""
    starts = [0, *recording.flushes]
    entries = recording.log.entries
    states, tries = {}, 0
    while len(states) < count and tries < 20 * count:
        kind = tries % 6
        tries += 1
        start = rng.choice(starts)
        end = next_flush(recording, start)
        writes = [at for at in range(start, end) if entries[at].length and not entries[at].flags & blocklog.DISCARD]
        share = (0.0, rng.random(), 0.9, 0.0, rng.random(), 1.0)[kind]
        kept = tuple(at for at in writes if rng.random() < share)
        # Which sectors of a torn write are there, as a seed.
        torn = {at: rng.randrange(1 << 32) for at in kept if kind in (1, 2, 4) and rng.random() < 0.3}
        states[(start, kept, tuple(torn.items()))] = None
    return sorted(states)


def next_flush(recording, start):
    """Number of the first flush from an entry on; past the last one the number of entries."""
    at = bisect.bisect_right(recording.flushes, start)
    return recording.flushes[at] - 1 if at < len(recording.flushes) else len(recording.log.entries)


def look(options, recording, states):
    """Makes each state, mounts it, asks the checker. Gives how many have a loss."""
    log, broken, counts, done = recording.log, 0, {}, 0
    durable = os.path.join(recording.folder, "durable")
    image = os.path.join(recording.folder, "state")
    os.rename(recording.base, durable)
    with open(durable, "r+b") as disk:
        for start, kept, torn in states:
            for entry in log.entries[done:start]:
                put(disk, entry, log.data(entry))
            disk.flush()
            done = start
            # Holes stay holes: the cost is what was written, not the size of the disk.
            disks.run("cp", "--sparse=auto", durable, image)
            with open(image, "r+b") as state:
                for at in kept:
                    tear(state, log, log.entries[at], dict(torn).get(at))
            verdict, line = check(recording, image, next_flush(recording, start))
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict != "ok":
                broken += 1
                # Of a planted bug one is enough to see.
                if broken <= (1 if options.canary else 5):
                    print(f"  cut after entry {start} of {len(log.entries)}, {len(kept)} later writes kept, "
                          f"{len(torn)} torn: {line}", flush=True)
    print(f"  {len(log.entries)} entries, {len(recording.flushes)} flushes: {counts}", flush=True)
    os.unlink(durable)
    return broken


def put(disk, entry, data):
    if entry.length and not entry.flags & blocklog.DISCARD:
        disk.seek(entry.offset)
        disk.write(data)


def tear(disk, log, entry, seed):
    """Writes the entry whole, or some of its sectors."""
    data = log.data(entry)
    if seed is None:
        return put(disk, entry, data)
    rng = random.Random(seed)
    for at in range(0, entry.length, log.sector):
        if rng.random() < 0.5:
            disk.seek(entry.offset + at)
            disk.write(data[at : at + log.sector])


def check(recording, image, until):
    """What the store says when the power went before this entry: a verdict and its line."""
    try:
        disks.mount(image, recording.mount, recording.fs)
    except RuntimeError as error:
        return "unmountable", str(error)
    try:
        command = recording.command("check", recording.mount, "--until", str(until), "--shards", str(1 + until % 3))
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    finally:
        disks.umount(recording.mount)
    line = (done.stdout or done.stderr or "no output").strip().splitlines()[-1]
    if done.returncode == 0:
        return "ok", line
    return line.split(":")[0] if done.returncode == 1 else f"status {done.returncode}", line


if __name__ == "__main__":
    sys.exit(main())
