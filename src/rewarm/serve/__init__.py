"""The data plane: one port, many dialects.

Headers are parsed here, bodies never are: they travel to the worker as bytes.
"""
