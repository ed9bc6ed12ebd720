"""The ideas: one paper family a file. Importing this package registers them all."""

from kvledger.methods import adakv, full, pyramidkv, random, snapkv, streaming

__all__ = ["adakv", "full", "pyramidkv", "random", "snapkv", "streaming"]
