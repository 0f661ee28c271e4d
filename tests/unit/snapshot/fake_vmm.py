"""A VMM that restores as Firecracker does: SOCKET BYTES. Two mappings, in an order other than the file's.

Prints the sha256 of its memory, in the order of the file, and ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import mmap
import socket
import struct
import sys

from rewarm.snapshot.uffd import open_uffd

_UFFDIO_REGISTER, _MISSING = 0xC020AA00, 1


def main(path: str, size_bytes: int) -> None:
    uffd = open_uffd()
    first_bytes = size_bytes // 4
    mappings = []
    parts: dict[int, mmap.mmap] = {}
    for offset, length in ((first_bytes, size_bytes - first_bytes), (0, first_bytes)):
        memory = parts[offset] = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(uffd, _UFFDIO_REGISTER, bytearray(struct.pack("=4Q", base, length, _MISSING, 0)))
        mappings.append({"base_host_virt_addr": base, "size": length, "offset": offset, "page_size_kib": 4096})
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        socket.send_fds(channel, [json.dumps(mappings).encode()], [uffd])
    print(hashlib.sha256(b"".join(bytes(parts[offset]) for offset in sorted(parts))).hexdigest())


main(sys.argv[1], int(sys.argv[2]))
