"""Says what a QEMU says that loads a state, as far as a driver listens. The first word is what its guest does then."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time

HEAD = struct.Struct("<QBBHII")
RESUME_AT = HEAD.size + 64  # behind the seed: the time
LOADED, FAILED, RESUMED = 5, 6, 9

does, words = sys.argv[1], " ".join(sys.argv[2:])


def end(name: str) -> socket.socket:
    return socket.socket(fileno=int(re.findall(rf"id={name},fd=(\d+)", words)[0]))


def frame(kind: int, body: bytes = b"") -> bytes:
    return HEAD.pack(HEAD.size + len(body), kind, 0, 0, 0, 0) + body


monitor, fn = end("monitor"), end("fn")
for line in monitor.makefile():
    order = json.loads(line)
    if order["execute"] == "migrate-incoming" and does == "corrupt":
        print("qemu-system-x86_64: load of migration failed: Invalid argument", flush=True)
        sys.exit(1)
    monitor.sendall(json.dumps({"return": {}, "id": order["id"]}).encode() + b"\n")
    if order["execute"] == "migrate-incoming":
        break
time.sleep(0.2)  # to load it takes a while
loaded_ns = time.time_ns()
monitor.sendall(b'{"event": "RESUME"}\n')
(wall_ns,) = struct.unpack_from("<Q", fn.recv(1 << 16), RESUME_AT)
if not loaded_ns <= wall_ns <= time.time_ns():
    fn.sendall(frame(FAILED, b'{"code": "start_failed", "error": "its clock is late", "error_type": "E"}'))
elif does == "loaded":
    fn.sendall(frame(LOADED, b'{"user_s": 0, "ready_s": 0}') + frame(RESUMED))
else:
    fn.sendall(frame(RESUMED))
if does.startswith("ended"):
    print(f"\r\nrewarm: the worker {does}\r", flush=True)
    sys.exit(0)
time.sleep(60)
