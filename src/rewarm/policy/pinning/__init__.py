"""How much of each model stays in memory, so that nothing is waited for.

`timeline` says when a first inference is over, `greedy` shares a budget among models whose load time is bytes over
bandwidth, `pareto` is exact where it is not.
"""
