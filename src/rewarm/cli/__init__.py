"""The command line, a thin layer: it talks HTTP to the server, except `serve` and `doctor`.

One module a command, imported when the command is asked for; rich, aiohttp, numpy and matplotlib are imported inside
the commands that need them, so that `rewarm serve` starts fast.
"""
