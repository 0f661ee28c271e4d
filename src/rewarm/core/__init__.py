"""The machine that decides: sans-I/O, no clock, no threads. `Node.handle(event, now) -> effects`.

`node` owns functions, queues and batches; `pool` owns sandboxes, Lang layers and their timers; `ledger` counts every
byte that is kept for speed; `state` holds the records; `timers` the one heap of moments to wake up at.
The live server and the simulator drive this same code.
"""
