"""Load generation, experiments, tables and plots.

Everything here talks HTTP to a running server, as any client would: `api` is the one client (the CLI uses it too),
`load` sends open-loop traffic, `experiment_*` are the published comparisons. What needs aiohttp or matplotlib imports
it when it runs, so that importing this room costs nothing.
"""
