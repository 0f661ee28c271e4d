"""How much of each model stays in memory, so that nothing is waited for.

`timeline` says when a first inference is over, `tables` which tables to pin whole, where load time is not bytes over
bandwidth, `greedy` shares a budget among models, `sharing` counts once what they have in common.
"""
