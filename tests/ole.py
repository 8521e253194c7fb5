"""Write small OLE compound files and the microscope files made of them; only tests need this."""

import itertools
import struct
from pathlib import Path

import numpy as np

SECTOR, MINI, CUTOFF = 512, 64, 4096
END, FREE, FAT_SECTOR, NONE = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFFF


class Entry:
    """A storage or a stream of the directory."""

    def __init__(self, name, kind, data=b""):
        self.name, self.kind, self.data = name, kind, data
        self.children, self.start, self.right, self.child = {}, 0, NONE, NONE

    def packed(self):
        name = (self.name + "\0").encode("utf-16-le")
        return (
            name.ljust(64, b"\0")
            + struct.pack("<HBB", len(name), self.kind, 1)
            + struct.pack("<III", NONE, self.right, self.child)
            + bytes(16)
            + struct.pack("<IQQ", 0, 0, 0)
            + struct.pack("<IQ", self.start, len(self.data))
        )


def write_ole(path: Path, streams: dict[str, bytes]) -> Path:
    """Write streams under `storage/name` paths; small ones share the mini stream, as they must."""
    root = Entry("Root Entry", 5)
    entries = [root]
    for name, data in streams.items():
        *storages, leaf = name.split("/")
        parent = root
        for storage in storages:
            if storage not in parent.children:
                parent.children[storage] = Entry(storage, 1)
                entries.append(parent.children[storage])
            parent = parent.children[storage]
        parent.children[leaf] = Entry(leaf, 2, data)
        entries.append(parent.children[leaf])
    _link(entries)
    mini_fat, mini_stream = _place_small(entries)
    root.data = mini_stream
    path.write_bytes(_assemble(entries, mini_fat))
    return path


def _link(entries):
    """Chain siblings to the right in the order the format sorts names."""
    number = {id(entry): i for i, entry in enumerate(entries)}
    for entry in entries:
        kids = sorted(entry.children.values(), key=lambda e: (len(e.name), e.name.upper()))
        entry.child = number[id(kids[0])] if kids else NONE
        for a, b in itertools.pairwise(kids):
            a.right = number[id(b)]


def _place_small(entries):
    table, blob = [], b""
    for entry in entries:
        if entry.kind == 2 and 0 < len(entry.data) < CUTOFF:
            entry.start = len(table)
            count = -(-len(entry.data) // MINI)
            table += [*range(len(table) + 1, len(table) + count), END]
            blob += entry.data.ljust(count * MINI, b"\0")
    return table, blob


def _assemble(entries, mini_fat):
    fat, body = [], b""

    def place(data):
        nonlocal body
        if not data:
            return END
        start, count = len(fat), -(-len(data) // SECTOR)
        fat.extend([*range(start + 1, start + count), END])
        body += data.ljust(count * SECTOR, b"\0")
        return start

    for entry in entries:
        if (entry.kind == 2 and len(entry.data) >= CUTOFF) or entry.kind == 5:
            entry.start = place(entry.data)
        elif not entry.data:
            entry.start = END if entry.kind == 2 else 0
    mini_start = place(struct.pack(f"<{len(mini_fat)}I", *mini_fat))
    directory = b"".join(entry.packed() for entry in entries)
    directory += (b"\0" * 68 + struct.pack("<III", NONE, NONE, NONE) + bytes(48)) * (
        -len(entries) % 4
    )
    directory_start = place(directory)
    fat_count = 1
    while fat_count * SECTOR // 4 < len(fat) + fat_count:
        fat_count += 1
    assert fat_count <= 109, "these test files are meant to be small"
    fat_start = len(fat)
    fat.extend([FAT_SECTOR] * fat_count)
    fat.extend([FREE] * (fat_count * SECTOR // 4 - len(fat)))
    where = [fat_start + i for i in range(fat_count)] + [FREE] * (109 - fat_count)
    mini_count = -(-len(mini_fat) * 4 // SECTOR)
    header = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + bytes(16)
        + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6)
        + bytes(6)
        + struct.pack("<IIII", 0, fat_count, directory_start, 0)
        + struct.pack("<IIII", CUTOFF, mini_start, mini_count, END)
        + struct.pack("<I", 0)
        + struct.pack("<109I", *where)
    )
    return header + body + struct.pack(f"<{len(fat)}I", *fat)


def floats(*values):
    return np.asarray(values, "<f4").tobytes()


def ints(*values):
    return np.asarray(values, "<i4").tobytes()


def dates(*texts, tail=b"\0\0\0\1"):
    """Date records of 40 bytes, with the garbage real files carry after the text."""
    return b"".join((text.encode() + b"\0\0\0" + tail).ljust(40, b"\0")[:40] for text in texts)


def write_xradia(path, images, angles=None, version=3.0, extra=None, planned=None, taken=None):
    """Write `images` (n, h, w), top row first, as the microscope stores them: bottom row first."""
    images = np.asarray(images)
    n, h, w = images.shape
    code = {"uint16": 5, "float32": 10}[images.dtype.name]
    streams = {
        "Version": floats(version),
        "ImageInfo/ImageWidth": ints(w),
        "ImageInfo/ImageHeight": ints(h),
        "ImageInfo/NoOfImages": ints(n if planned is None else planned),
        "ImageInfo/ImagesTaken": ints(n if taken is None else taken),
        "ImageInfo/DataType": ints(code),
        "ImageInfo/MosiacRows": ints(0),
        "ImageInfo/MosiacColumns": ints(0),
        "ImageInfo/MosiacMode": ints(0),
    }
    if angles is not None:
        streams["ImageInfo/Angles"] = floats(*angles)
    for i, image in enumerate(images):
        streams[f"ImageData{i // 100 + 1}/Image{i + 1}"] = stored(image)
    return write_ole(path, {**streams, **(extra or {})})


def stored(image):
    """Bytes of an image as the microscope stores it."""
    return np.ascontiguousarray(image[::-1]).astype(image.dtype.newbyteorder("<")).tobytes()
