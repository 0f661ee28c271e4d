"""What survives a restart: deployed functions, their code, weights and packs, in one home directory.

`home` owns the directory and its lock, `archive` is the upload format, `artifacts` puts code and weights where they
never change, `packs` keeps weights in execution order, `registry` remembers which revision a name means, `store` is the
door to all of them. Everything here is synchronous (a server calls it in a thread) and safe to kill at any moment: what
was there stays whole.
"""
