"""The simulator: the same core as the server's, driven by a trace in virtual time.

`traces` turns files into arrivals, `costs` says what layers cost, `machine` carries the core's effects out without
doing anything, `report` counts, `run` puts them together, for several policies at once where asked.
"""
