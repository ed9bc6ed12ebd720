"""The ideas: one paper family a file. Importing this package registers them all."""

from kvledger.methods import adakv, full, keydiff, knorm, pyramidkv, random, snapkv, streaming, tova

__all__ = ["adakv", "full", "keydiff", "knorm", "pyramidkv", "random", "snapkv", "streaming", "tova"]
