"""Frozen values that every room shares: what a function is, what a sandbox may become, what happened, what to do.

Nothing here acts or decides. `function` says what was deployed, `sandbox` the states and legal moves, `request` one
call on its way, `messages` the events that go into the core and the effects that come out of it.
"""
