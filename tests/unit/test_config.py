from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rewarm.config import DEFAULT_HOST, DEFAULT_PORT, HttpLimits, ServerConfig
from rewarm.errors import BadDefinition

HOME = Path("home")


def test_defaults() -> None:
    config = ServerConfig(HOME)
    assert (config.host, config.port) == (DEFAULT_HOST, DEFAULT_PORT) == ("127.0.0.1", 8700)
    assert config.memory_bytes == 2 << 30
    assert config.keepalive == "fixed"
    assert config.limits == HttpLimits()


def test_every_limit_is_a_bound() -> None:
    assert all(value > 0 for value in dataclasses.asdict(HttpLimits()).values())


def test_nothing_is_read_or_made(tmp_path: Path) -> None:
    ServerConfig(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerConfig(HOME).port = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        HttpLimits().connections_max = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [{"port": 0}, {"port": 65535}, {"memory_bytes": 64 << 20}, {"drain_s": 0.0}, {"measure_every_s": 0.001}],
)
def test_edges(fields: dict[str, Any]) -> None:
    ServerConfig(HOME, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": -1}, "port must be 0 to 65535, not -1"),
        ({"port": 65536}, "port must be 0 to 65535, not 65536"),
        ({"memory_bytes": (64 << 20) - 1}, "at least 64MB"),
        ({"drain_s": -0.1}, "drain_s must not be negative"),
        ({"measure_every_s": 0.0}, "measure_every_s must be positive"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDefinition, match=message):
        ServerConfig(HOME, **fields)
