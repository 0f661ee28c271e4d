"""Rules, one file each. Pure: they are told what happened and `now`, and answer with a small closed decision.

`batching` decides when a queue leaves and how large; `keepalive` decides how long an idle layer is worth its memory.
`registry` is the one menu of names; third parties add to it through entry points.
"""
