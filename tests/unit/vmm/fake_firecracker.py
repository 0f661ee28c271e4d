"""GUEST [WORD…]: speaks Firecracker's API, a real HTTP server on a real Unix socket. It takes no request that the
specification (swagger/firecracker.yaml, 1.17) does not describe, nor one that comes too early or too late, and ends
after a snapshot that it could not load.

GUEST is what runs in it: "shout" upcases lines. "worker" speaks rewarm.wire as a guest does; it answers each call, the
number of a page, with the sha256 of that page of its memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import http.server
import json
import mmap
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))  # it is started without site-packages

from rewarm import wire
from rewarm.snapshot.uffd import open_uffd

PAGE_BYTES = 4096
#: Pages of a guest that has booted which are not zero.
USED_PAGES = (*range(8), *range(100, 140))
# EVENT_REMOVE, MISSING_HUGETLBFS, WP_ASYNC; missing pages and write protection. As guest_memory_from_uffd does it.
UFFD_FEATURES = 1 << 3 | 1 << 4 | 1 << 15
UFFDIO_REGISTER, UFFD_MODES = 0xC020AA00, 1 | 2

BEFORE, AFTER = "before it is started", "after it is started"
CONFIG = {"boot-source": "/boot-source", "machine-config": "/machine-config"}  # of --config-file
# (method, path) -> (when, required, allowed): name -> type or set of values
SPECIFIED: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, Any]]] = {
    ("PUT", "/boot-source"): (BEFORE, {"kernel_image_path": str}, {"boot_args": str, "initrd_path": str}),
    ("PUT", "/machine-config"): (
        BEFORE, {"vcpu_count": int, "mem_size_mib": int}, {"smt": bool, "track_dirty_pages": bool},
    ),
    ("PUT", "/drives/*"): (
        BEFORE, {"drive_id": str, "is_root_device": bool}, {"is_read_only": bool, "path_on_host": str},
    ),
    ("PUT", "/vsock"): (BEFORE, {"guest_cid": int, "uds_path": str}, {}),
    ("PUT", "/actions"): (BEFORE, {"action_type": {"InstanceStart"}}, {}),
    ("PATCH", "/vm"): (AFTER, {"state": {"Paused", "Resumed"}}, {}),
    ("PUT", "/snapshot/create"): (
        AFTER, {"mem_file_path": str, "snapshot_path": str}, {"snapshot_type": {"Full", "Diff"}},
    ),
    ("PUT", "/snapshot/load"): (
        BEFORE, {"snapshot_path": str},
        {"mem_backend": {"backend_type": {"File", "Uffd"}, "backend_path": str}, "resume_vm": bool},
    ),
}  # fmt: skip


def fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and value.keys() == shape.keys() and all(fits(value[k], shape[k]) for k in shape)
    return value in shape if isinstance(shape, set) else type(value) is shape


class Refusal(Exception):
    pass


class Machine:
    def __init__(self, guest: str) -> None:
        self.guest = guest
        self.configured = False
        self.running = threading.Event()
        self.started = self.loaded = self.restored = False
        self.state: dict[str, Any] = {"drives": {}}
        self.memory = mmap.mmap(-1, PAGE_BYTES)

    def do(self, method: str, path: str, body: dict[str, Any]) -> None:
        drive = path.startswith("/drives/")
        when, required, allowed = SPECIFIED.get((method, "/drives/*" if drive else path), ("", {}, {}))
        if not when:
            raise Refusal(f"Invalid request method and/or path: {method} {path}.")
        shapes = {**allowed, **required}
        if not required.keys() <= body.keys() <= shapes.keys() or not all(fits(body[k], shapes[k]) for k in body):
            raise Refusal(f"The request has unknown, missing or wrong fields: {body}")
        if drive and body["drive_id"] != path.removeprefix("/drives/"):
            raise Refusal("The id from the path does not match the id from the body!")
        if (when == AFTER) != self.started or (path == "/snapshot/load" and self.configured):
            raise Refusal(f"The requested operation is not supported: {method} {path} is for {when}")
        for key in ("kernel_image_path", "initrd_path", "path_on_host"):
            if key in body and not os.path.exists(body[key]):
                raise Refusal(f"No such file or directory: {body[key]}")
        self.configured = True
        if drive:
            self.state["drives"][body["drive_id"]] = body["path_on_host"]
        elif path in ("/machine-config", "/vsock"):
            if body.get("guest_cid", 3) < 3:
                raise Refusal("Guest CID below 3")
            self.state |= body
        elif path == "/actions":
            self.boot()
        elif path == "/vm":
            (self.running.set if body["state"] == "Resumed" else self.running.clear)()
        elif path == "/snapshot/create":
            self.save(body)
        elif path == "/snapshot/load":
            self.load(body)

    def boot(self) -> None:
        self.memory = mmap.mmap(-1, self.state["mem_size_mib"] << 20)
        for page in USED_PAGES:
            content = hashlib.sha256(str(page).encode()).digest() * (PAGE_BYTES // 32)
            self.memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = content
        self.running.set()
        self.start()

    def save(self, body: dict[str, Any]) -> None:
        if self.running.is_set():
            raise Refusal("Cannot create snapshot: the microVM is not paused")
        try:
            Path(body["snapshot_path"]).write_text(json.dumps({**self.state, "loaded": self.loaded}))
            Path(body["mem_file_path"]).write_bytes(self.memory)  # the zeros, too
        except OSError as error:
            raise Refusal(f"Create snapshot error: {error}") from error

    def load(self, body: dict[str, Any]) -> None:
        try:
            self.state = json.loads(Path(body["snapshot_path"]).read_text())
            self.restored, self.loaded = True, self.state.pop("loaded")
        except (OSError, ValueError) as error:
            raise Refusal(f"Load snapshot error: Failed to get snapshot state from file: {error}") from error
        for path in self.state["drives"].values():
            if not os.path.exists(path):
                raise Refusal(f"Load snapshot error: No such file or directory: {path}")
        size_bytes, backend = self.state["mem_size_mib"] << 20, body["mem_backend"]
        if backend["backend_type"] == "Uffd":
            self.memory = self.paged(size_bytes, backend["backend_path"])
        else:
            with open(backend["backend_path"], "rb") as file:
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                self.memory = mmap.mmap(file.fileno(), size_bytes, mmap.MAP_PRIVATE, protection)
        if body["resume_vm"]:
            self.running.set()
        self.start()

    def paged(self, size_bytes: int, path: str) -> mmap.mmap:
        """Memory in two regions, as that of a large machine."""
        uffd = open_uffd(UFFD_FEATURES)
        memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        begin, told = ctypes.addressof(ctypes.c_char.from_buffer(memory)), []
        for offset, size in ((0, size_bytes // 4), (size_bytes // 4, size_bytes - size_bytes // 4)):
            fcntl.ioctl(uffd, UFFDIO_REGISTER, bytearray(struct.pack("=4Q", begin + offset, size, UFFD_MODES, 0)))
            told.append({
                "base_host_virt_addr": begin + offset, "size": size, "offset": offset, "page_size": PAGE_BYTES,
                "page_size_kib": PAGE_BYTES,
            })  # fmt: skip
        self.channel = socket.socket(socket.AF_UNIX)  # stays open
        self.channel.connect(path)
        socket.send_fds(self.channel, [json.dumps(told).encode()], [uffd])
        return memory

    # ------------------------------------------------------------ the guest

    def start(self) -> None:
        self.started = True
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.state["uds_path"])
        listener.listen()
        threading.Thread(target=self.listen, args=(listener,), daemon=True).start()

    def listen(self, listener: socket.socket) -> None:
        """Nobody listens in it at first; then a connection to the port for the log says "log"."""
        refusals = 3
        while self.running.wait():
            channel, _ = listener.accept()
            stream = channel.makefile("rwb", buffering=0)
            words = stream.readline().split()
            if refusals or words[0] != b"CONNECT" or words[1] not in (b"5001", b"5002"):
                refusals -= 1
                channel.close()
                stream.close()
                continue
            stream.write(b"OK 1073741824\n")
            if words[1] == b"5002":
                stream.write(b"log\n")
                self.log = stream
                continue
            target = self.shout if self.guest == "shout" else self.work
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    def shout(self, stream: Any) -> None:
        while line := stream.readline():
            if line == b"die\n":
                os._exit(3)
            stream.write(line.upper())

    def work(self, stream: Any) -> None:
        reader, awake = wire.Reader(), False
        if not self.restored:
            stream.write(wire.encode_plain(wire.HELLO, number=1))
        while chunk := stream.read(1 << 16):
            for frame in reader.feed(chunk):
                _, kind, flag, items, _, sequence = wire.HEAD.unpack_from(frame)
                if kind == wire.RESUME and not awake:
                    awake = True
                    stream.write(wire.encode_plain(wire.RESUMED))
                elif kind == wire.FREEZE and awake:
                    awake = False
                    stream.write(wire.encode_plain(wire.FROZEN))
                elif kind == wire.LOAD and awake and not self.loaded:
                    self.loaded = True
                    stream.write(wire.encode_plain(wire.LOADED, b'{"user_s": 0.0, "ready_s": 0.0}'))
                elif kind == wire.RUN and awake and self.loaded:
                    calls = wire.decode_run(memoryview(frame), items, flag)
                    answers = [wire.Answer(200, wire.FORM_JSON, 0, b"", self.answer(call)) for call in calls]
                    stream.write(wire.encode_reply(answers, sequence, 0))
                else:
                    os._exit(4)

    def answer(self, call: wire.Item) -> bytes:
        page = int(bytes(call.body))
        if page < 0:
            os._exit(5)
        content = self.memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        return json.dumps(hashlib.sha256(content).hexdigest()).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("requests", "a") as log:
            log.write(json.dumps([self.command, self.path, body]) + "\n")
        try:
            machine.do(self.command, self.path, body)
            status, said = 204, b""
        except Refusal as refusal:
            status, said = 400, json.dumps({"fault_message": str(refusal)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
        if status == 400 and self.path == "/snapshot/load":
            os._exit(1)

    do_PUT = do_PATCH = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Somebody only looked whether it listens."""


def boot_at_once(config: dict[str, Any]) -> None:
    """Of a file: as far as its kernel gets."""
    if config.keys() != {*CONFIG, "drives"} or config["drives"] != []:
        sys.exit(f"Invalid JSON: {config}")
    try:
        for name, path in CONFIG.items():
            machine.do("PUT", path, config[name])
    except Refusal as refusal:
        sys.exit(str(refusal))
    print(Path(config["boot-source"]["kernel_image_path"]).read_text(), flush=True)
    time.sleep(60)


machine = Machine(sys.argv[1])
match sys.argv[2:]:
    case ["--version"]:
        print("Firecracker v1.17.0")
    case ["--no-api", "--config-file", path]:
        boot_at_once(json.loads(Path(path).read_text()))
    case ["--api-sock", path]:
        print("up", flush=True)
        Server(path, Handler).serve_forever()
    case words:
        sys.exit(f"unknown words: {words}")
