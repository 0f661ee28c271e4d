"""Packs: the weights of a model in the order in which it runs, in files that many processes map and share.

`format` is what lies on the disk, `writer` makes it. Nothing here imports an engine or numpy.
"""
