"""How much of each model stays in memory, so that nothing is waited for.

`timeline` says when a first inference is over, `greedy` shares a budget among models, `sharing` counts once what they
have in common. Load time is taken to be bytes over bandwidth, as it is for packs (adr/0016).
"""
