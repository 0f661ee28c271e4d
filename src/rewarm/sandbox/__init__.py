"""Where user code runs: drivers behind one port.

`port` is the contract, `process` the driver made of zygotes and forks, `guard` wraps any driver once so that the core
can trust the order of events. The fake in `rewarm.testing` passes the same conformance suite.
"""
