"""A session on disk: a safetensors file with what its cache holds and a manifest of what it belongs to.

A context that was read and compressed once is paid for once: another process opens the file and asks.  The manifest names the
model (a fingerprint of its weights), the tokenizer, the recipe and a hash of the tokens read; each tensor has its own hash, so
that a file that was cut short or changed is refused.  The file is written beside its final name and moved there when it is
whole: a full disk leaves the old one as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvledger.cache.ledger import LayerBook, Step
from kvledger.hf import cache as caches
from kvledger.hf.hybrid import STATE
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.load import fingerprint
from kvledger.hf.place import layer_home

if TYPE_CHECKING:
    from kvledger.hf.session import Session

FORMAT = "kvledger-session-3"
SCALARS = (int, float, bool, str, type(None))
NUMBERED = (
    *STATE,
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)


def save(session: Session, path: str | Path) -> int:
    """Write `session` to `path`; returns the bytes written. ValueError if a question waits for its answer, or nothing has been
    read; OSError, with the old file intact, if there is no room."""
    if not session.tokens:
        raise ValueError("nothing has been read yet, so there is nothing to save")
    if session.logits is not None:
        raise ValueError("a question waits for its answer: call `answer` first, then save")
    path, tensors, layers = Path(path), {}, []
    for i, layer in enumerate(session.cache.layers):
        facts, held = _arena(layer) if isinstance(layer, ArenaLayer) else _other(layer)
        recurrent, states = _state(layer)
        layers.append(facts | {"state": recurrent})
        tensors.update({f"{i}.{name}": x.detach().contiguous().cpu() for name, x in (held | states).items()})
    manifest = {
        "format": FORMAT,
        **identity(session.model, session.chat.tokenizer),
        "recipe": str(session.recipe),
        "files": session.recipe.fingerprint,
        "context": session.context_hash,
        "layers": layers,
        "session": {name: getattr(session, name) for name in ("chunk", "tokens", "_unread", "_turns", "_held")},
        "since": session.run.since,
        "pinned": sorted(session.run.pinned),
        "ledger": _ledger(session),
        "hashes": {name: _hash(x) for name, x in tensors.items()},
    }
    beside = path.with_name(path.name + ".part")
    try:
        text = json.dumps(manifest)
        save_file(tensors, beside, metadata={"manifest": text, "seal": hashlib.sha256(text.encode()).hexdigest()})
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    return path.stat().st_size


def reopen(model: Any, tokenizer: Any, path: str | Path, recipe: Any = None, context: str | None = None) -> Session:
    """The session that was saved to `path`, to be asked on. ValueError if the file is damaged, or belongs to another model,
    tokenizer, recipe (if one is given) or context (likewise)."""
    from kvledger.hf.session import open_session

    manifest, tensors = _read(Path(path))
    _check(manifest, model, tokenizer, path)
    if recipe is not None and str(caches.resolve(recipe)) != manifest["recipe"]:
        raise ValueError(f"{path} was made under {manifest['recipe']}, not under {caches.resolve(recipe)}")
    session = open_session(model, tokenizer, manifest["recipe"], manifest["session"]["chunk"])
    if session.recipe.fingerprint != manifest["files"]:
        raise ValueError(f"{path}: the files that {manifest['recipe']} reads have changed since")
    if context is not None and session.hash_of(context) not in (manifest["context"], ""):
        raise ValueError(f"{path} holds another context than the one given")
    for name, value in manifest["session"].items():
        setattr(session, name, tuple(value) if name == "_held" else value)
    session.context_hash = manifest["context"]
    session.run.since, session.run.pinned = manifest["since"], frozenset(manifest["pinned"])
    for i, (layer, facts) in enumerate(zip(session.cache.layers, manifest["layers"], strict=True)):
        mine = {name.split(".", 1)[1]: x for name, x in tensors.items() if name.startswith(f"{i}.")}
        fill: Any = _fill_arena if isinstance(layer, ArenaLayer) else _fill_other
        fill(layer, facts, mine, layer_home(model, i))
        _fill_state(layer, facts["state"], mine, layer_home(model, i))
    _fill_ledger(session, manifest["ledger"])
    return session


# ---- what is in a layer ------------------------------------------------------------------------------------------


def _arena(layer: ArenaLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    store = layer.arena
    assert store is not None
    rows, held = store.dump()
    held |= {f"query.{b}": x for b, x in enumerate(layer.last_queries)}
    states = [() if state is None else state for state in layer.states]
    held |= {f"state.{b}.{i}": x for b, state in enumerate(states) for i, x in enumerate(state)}
    facts = {"heads": store.heads, "seen": store.seen, "rows": rows, "states": [len(x) for x in states]}
    facts |= {
        "columns": layer.columns,
        "scale": layer.scale,
        "copies": layer.copies,
        "queries": len(layer.last_queries),
    }
    return facts, held


def _fill_arena(layer: ArenaLayer, facts: dict[str, Any], held: dict[str, Tensor], device: torch.device) -> None:
    held = {name: x.to(device) for name, x in held.items()}
    store = layer.store(len(facts["seen"]), facts["heads"])
    store.load(facts["rows"], held)
    layer.hold_in(store, facts["copies"])
    layer.is_initialized, layer.columns, layer.scale = True, facts["columns"], facts["scale"]
    layer.last_queries = [held[f"query.{b}"] for b in range(facts["queries"])]
    layer.states = [tuple(held[f"state.{b}.{i}"] for i in range(n)) for b, n in enumerate(facts["states"])]


def _other(layer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A layer that is left to transformers: its tensors and its plain numbers."""
    state = vars(layer)
    plain = {name: x for name, x in state.items() if isinstance(x, SCALARS)}
    return {"kind": type(layer).__name__, "plain": plain}, {n: x for n, x in state.items() if isinstance(x, Tensor)}


def _fill_other(layer: Any, facts: dict[str, Any], held: dict[str, Tensor], device: torch.device) -> None:
    if type(layer).__name__ != facts["kind"]:
        raise ValueError(f"a layer of kind {facts['kind']} was saved, and this model has {type(layer).__name__} there")
    if "keys" in held:  # transformers' own layers set up their dtype and device when they see their first keys
        layer.lazy_initialization(held["keys"].to(device), held["values"].to(device))
    vars(layer).update(facts["plain"])
    vars(layer).update({name: x.to(device) for name, x in held.items() if "." not in name})


def _state(layer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The recurrent part of a layer, where transformers keeps all by number: its plain values by name, and its tensors."""
    numbered = [(name, list(getattr(layer, name, {}).items())) for name in NUMBERED]
    held = {f"{name}.{n}": x for name, items in numbered for n, x in items if isinstance(x, Tensor)}
    return {name: [x for _, x in items] for name, items in numbered if items and name not in STATE}, held


def _fill_state(layer: Any, facts: dict[str, Any], held: dict[str, Tensor], device: torch.device) -> None:
    for name, values in facts.items():
        getattr(layer, name).update(enumerate(values))
    for name in STATE:
        for n in getattr(layer, name, {}):
            if (x := held.get(f"{name}.{n}")) is not None:
                getattr(layer, name)[n] = x.to(device)
                layer.dtype, layer.device = layer.dtype or x.dtype, layer.device or device


# ---- the books ---------------------------------------------------------------------------------------------------


def _ledger(session: Session) -> dict[str, Any]:
    books = session.ledger
    plain = {
        name: getattr(books, name)
        for name in ("other_bytes", "peak_bytes", "full_peak_bytes", "skipped", "_last_layer")
    }
    layers = {str(i): asdict(book) for i, book in books.layers.items()}
    return {"plain": plain, "layers": layers, "steps": [list(asdict(step).values()) for step in books.steps]}


def _fill_ledger(session: Session, facts: dict[str, Any]) -> None:
    books = session.run.ledger
    vars(books).update(facts["plain"])
    books.layers = {int(i): LayerBook(**book) for i, book in facts["layers"].items()}
    books.steps = [Step(*values) for values in facts["steps"]]


# ---- whose it is -------------------------------------------------------------------------------------------------


def identity(model: Any, tokenizer: Any) -> dict[str, str]:
    words = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    words.update(str(getattr(tokenizer, "chat_template", None)).encode())
    return {"model": fingerprint(model), "dtype": str(model.dtype), "tokenizer": words.hexdigest()[:16]}


def _check(manifest: dict[str, Any], model: Any, tokenizer: Any, path: str | Path) -> None:
    for what, mine in identity(model, tokenizer).items():
        if manifest[what] != mine:
            raise ValueError(f"{path} was saved with another {what} ({manifest[what]}, and this one is {mine})")


def _hash(x: Tensor) -> str:
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    for part in _bytes(x):
        digest.update(part)
    return digest.hexdigest()


def _bytes(x: Tensor, block: int = 1 << 24) -> Iterator[bytes]:
    flat = x.reshape(-1).view(torch.uint8) if x.numel() else x.new_empty(0, dtype=torch.uint8)
    for start in range(0, len(flat), block):
        yield flat[start : start + block].numpy().tobytes()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors, each checked. ValueError for anything that is not a whole, unchanged file of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text = metadata.get("manifest", "")
        manifest = json.loads(text)
    except FileNotFoundError as error:
        raise ValueError(f"there is no saved session at {path}") from error
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a whole saved session: {str(error)[:120]}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a saved session of this version ({FORMAT})")
    whole = metadata.get("seal") == hashlib.sha256(text.encode()).hexdigest()
    if not whole or {name: _hash(x) for name, x in tensors.items()} != manifest.get("hashes"):
        raise ValueError(f"{path} was changed after it had been saved: its contents do not match their hashes")
    return manifest, tensors
