"""The ideas: one paper family a file. Importing this package registers them all."""

from kvledger.methods import (
    adakv,
    criticalkv,
    fastgen,
    full,
    h2o,
    headgate,
    keydiff,
    knorm,
    observed_attention,
    protect,
    pyramidkv,
    random,
    simlayerkv,
    snapkv,
    streaming,
    tova,
)

__all__ = [
    "adakv",
    "criticalkv",
    "fastgen",
    "full",
    "h2o",
    "headgate",
    "keydiff",
    "knorm",
    "observed_attention",
    "protect",
    "pyramidkv",
    "random",
    "simlayerkv",
    "snapkv",
    "streaming",
    "tova",
]
