"""The machine that decides: sans-I/O, no clock, no threads. `Node.handle(event, now) -> effects`.

`node` owns queues and batches, `lifecycle` what is done with whole functions; `pool` owns sandboxes, `langs` and
`bares` the layers below them, `eviction` says who goes first; `ledger` counts every byte that is kept for speed;
`state` holds the records; `timers` the one heap of moments to wake up at. `tree` and `meter` only look: what there is,
and what its idling was worth. The live server and the simulator drive this same code.
"""
