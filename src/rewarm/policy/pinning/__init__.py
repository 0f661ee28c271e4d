"""How much of each model stays in memory, so that nothing is waited for.

`timeline` says when a first inference is over, `greedy` shares a budget among models. Both count on load time being
bytes over bandwidth, as it is for packs (adr/0016).
"""
