"""Reads the record of a device: the log format of dm-log-writes, as QEMU's filter blklogwrites writes it.

    blocklog.py FILE        prints the entries, one a line

A header sector (magic, version, number of entries, sector size), then for each entry a sector with its
place, length and flags, followed by its data. The number of entries is rewritten with every entry, before
the write or flush is answered.
"""
import mmap
import struct
import sys
from typing import NamedTuple

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Entry(NamedTuple):
    offset: int  # bytes from the start of the disk
    length: int  # bytes; zero for a flush
    flags: int
    at: int  # where the data begins in the file


class BlockLog:
    """The entries in the order in which the device saw them."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, count, self.sector = struct.unpack_from("<QQQI", self.bytes)
        if magic != MAGIC or version != 1:
            raise SystemExit(f"{path}: not a record of version 1 (magic {magic:#x}, version {version})")
        self.entries = []
        at = self.sector
        for _ in range(count):
            start, sectors, flags, _ = struct.unpack_from("<QQQQ", self.bytes, at)
            at += self.sector
            has_data = sectors > 0 and not flags & DISCARD
            length = sectors * self.sector
            self.entries.append(Entry(start * self.sector, length, flags, at))
            at += length if has_data else 0

    def data(self, entry):
        return self.bytes[entry.at : entry.at + entry.length]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    names = {FLUSH: "flush", FUA: "fua", DISCARD: "discard", MARK: "mark"}
    for number, entry in enumerate(BlockLog(sys.argv[1]).entries):
        flags = " ".join(name for bit, name in names.items() if entry.flags & bit)
        print(f"{number:6} {entry.offset:>12} +{entry.length:<8} {flags}")
