"""Frozen settings of a server. Values only: nothing is read or created here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rewarm.errors import BadDefinition

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8700


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the front door. Sizes in bytes, durations in seconds."""

    header_bytes_max: int = 32 << 10
    body_bytes_max: int = 64 << 20
    deploy_bytes_max: int = 4 << 30
    connections_max: int = 4096
    header_timeout_s: float = 10.0  # from the first byte (or connect) to the end of the headers
    body_timeout_s: float = 60.0  # from the end of the headers to the end of the body
    write_timeout_s: float = 60.0  # a client that does not read its answer
    keepalive_timeout_s: float = 75.0  # an idle connection


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything `rewarm serve` can be told."""

    home: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    memory_bytes: int = 2 << 30  # budget of the ledger
    disk_bytes: int = 20 << 30  # budget of what sleeps on disk
    restore: str = "auto"  # how sleeping micro-VMs are woken, see snapshot.restore.POLICIES
    vmm: str = "auto"  # what runs micro-VMs, see vmm.site.VMMS
    keepalive: str = "fixed"  # "name" or "name:key=value,key=value"
    drain_s: float = 30.0  # how long a graceful shutdown may take
    measure_every_s: float = 1.0  # how often resident memory is read
    log_bytes_max: int = 1 << 20  # log kept per function
    limits: HttpLimits = field(default_factory=HttpLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadDefinition(f"port must be 0 to 65535, not {self.port}")
        if self.memory_bytes < 64 << 20:
            raise BadDefinition("the memory budget must be at least 64MB; give more with --memory")
        if self.disk_bytes < 0:
            raise BadDefinition("the disk budget must not be negative; give none with --disk 0")
        if self.drain_s < 0 or self.measure_every_s <= 0:
            raise BadDefinition("drain_s must not be negative and measure_every_s must be positive")
