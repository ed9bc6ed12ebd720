"""kvledger: compress, measure and compare the KV caches of long-context language models.

    import kvledger as kv
    model, tokenizer = kv.load("zoo")
    cache = kv.open(model, tokenizer, "snapkv(keep=0.3)", chunk=512)
    cache.read(context)
    print(cache.ask("Which key ...?"), cache.ledger.footprint)

Names are imported when first used, so that `kvledger --help` does not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "load": "kvledger.hf.load:load",
    "open": "kvledger.hf.session:open_session",
    "reopen": "kvledger.hf.saved:reopen",
    "Prefixes": "kvledger.hf.prefixes:Prefixes",
    "attach": "kvledger.hf.load:attach",
    "new_cache": "kvledger.hf.cache:new_cache",
    "Session": "kvledger.hf.session:Session",
    "Ledger": "kvledger.cache.ledger:Ledger",
    "Method": "kvledger.methods.base:Method",
    "View": "kvledger.methods.base:View",
    "Recipe": "kvledger.recipe:Recipe",
    "Row": "kvledger.recipe:Row",
    "parse": "kvledger.recipe:parse",
    "register": "kvledger.recipe:register",
    "Cell": "kvledger.records:Cell",
    "Record": "kvledger.records:Record",
    "Sample": "kvledger.tasks.base:Sample",
    "Turn": "kvledger.tasks.base:Turn",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvledger' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
