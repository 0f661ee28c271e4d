"""`rewarm serve`: the server itself, in this process."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rewarm.cli.options import duration, size
from rewarm.config import DEFAULT_HOST, DEFAULT_PORT, HttpLimits, ServerConfig

LOG_LEVELS = ("debug", "info", "warning", "error")


@click.command("serve", short_help="Start a server.")
@click.option("--home", envvar="REWARM_HOME", default="~/.rewarm", show_default=True, show_envvar=True,
              help="Where deployments are kept.")  # fmt: skip
@click.option("--host", envvar="REWARM_HOST", default=DEFAULT_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
              help="Port to listen on; 0 takes any free one.")  # fmt: skip
@click.option("--memory", type=size, default="2GB", show_default=True, help="Budget for everything kept alive.")
@click.option("--disk", type=size, default="20GB", show_default=True, help="Budget for what sleeps on disk.")
@click.option("--keepalive", default="fixed", show_default=True, metavar="POLICY",
              help="How long idle layers live: none, fixed, fixed:ttl=10min, …")  # fmt: skip
@click.option("--drain", type=duration, default="30s", show_default=True,
              help="How long a graceful shutdown may take.")  # fmt: skip
@click.option("--body-limit", type=size, default="64MB", show_default=True, help="Largest body of a call.")
@click.option("--max-connections", type=click.IntRange(1), default=4096, show_default=True,
              help="Connections open at a time.")  # fmt: skip
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
def command(
    home: str, host: str, port: int, memory: int, disk: int, keepalive: str, drain: float, body_limit: int,
    max_connections: int, log_level: str,
) -> int:  # fmt: skip
    """Start a server and run it until it is told to stop (Ctrl-C or SIGTERM), finishing what is queued.

    \b
    Examples:
      rewarm serve
      rewarm serve --memory 4GB --keepalive fixed:ttl=10min
      rewarm serve --host 0.0.0.0 --port 80 --home /var/lib/rewarm
    """
    config = ServerConfig(
        home=Path(home).expanduser().absolute(),
        host=host,
        port=port,
        memory_bytes=memory,
        disk_bytes=disk,
        restore=os.environ.get("REWARM_RESTORE", "auto"),
        vmm=os.environ.get("REWARM_VMM", "auto"),
        keepalive=keepalive,
        drain_s=drain,
        limits=HttpLimits(body_bytes_max=body_limit, connections_max=max_connections),
    )
    import logging

    from rewarm.app import serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return serve(config)
