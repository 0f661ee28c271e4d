"""The experiment's own server: how its failure is told, and that it does not outlive the block."""

from __future__ import annotations

import pytest

from rewarm.bench.local_server import free_port, local_server
from rewarm.errors import SystemFault


def test_a_server_that_refuses_to_start_is_quoted() -> None:
    with pytest.raises(SystemFault, match=r"server ended: .*--memory"), local_server(["--memory", "lots"]):
        pytest.fail("there is no such server")


def test_free_ports_are_ports() -> None:
    assert 1024 <= free_port() <= 65535
