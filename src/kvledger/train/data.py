"""Where training sequences come from: `--data` as text, and the endless, repeatable stream that it names.

stdlib                        the Python standard library of the running interpreter
passkeys  passkeys:4          DuoAttention's synthetic passkeys (10, or so many)
tasks  tasks:scbench/kv,…     the tasks' generators, as conversations with gold answers
FOLDER  FILE.txt  FILE.jsonl  your own text
hub:NAME[:SPLIT[:FIELD]]      a data set of the Hugging Face hub, streamed (needs the extra `hub`)
stdlib=0.6,tasks=0.4          a mixture, in shares of the sequences
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from kvledger.recipe import nearest
from kvledger.train import corpus, dialogues, passkeys
from kvledger.train.packing import Packed, pack

__all__ = ["Packed", "Stream", "open_stream"]

NAMED = ("stdlib", "passkeys", "tasks")
_SHARE = re.compile(r"(.+?)=([0-9.]+)(?:,|$)")


@dataclass(frozen=True)
class Stream:
    """Training sequences without end. `begin(n)` iterates over them from number n on."""

    name: str
    begin: Callable[[int], Iterator[Packed]]

    def sequences(self, start: int = 0) -> Iterator[Packed]:
        """Sequence number `start` and all after it: what an iterator that gave `start` of them would give next."""
        return self.begin(start)


class Numbered(Protocol):
    """A source whose sequences can be made one by one."""

    def sequence(self, number: int) -> Packed: ...


def open_stream(data: str, tokenizer: Any, seq_len: int, seed: int, window: int = 0) -> Stream:
    """The stream that `data` names, of sequences of `seq_len` tokens; the same arguments give the same sequences.

    window: of the streaming heads to be trained. ValueError, before any work, for data that is not there, cannot be read,
    or is shorter than one sequence, and for sequences that a window would hold whole.
    """
    if seq_len < 2:
        raise ValueError(f"sequences of {seq_len} tokens: they need 2 at least, one to read and one to predict")
    if seq_len <= window:
        raise ValueError(
            f"sequences of {seq_len} tokens lie within a window of {window}: streaming heads would see all that full heads "
            "see, and no gate could learn. Take longer sequences or a smaller window"
        )
    parts = _shares(data)
    streams = [_open(part, tokenizer, seq_len, seed) for part, _ in parts]
    for stream in streams:
        next(stream.sequences())  # what cannot be trained on is refused here
    if len(streams) == 1:
        return streams[0]
    return Stream(data, lambda start: _mixed(streams, [share for _, share in parts], start))


def _shares(data: str) -> list[tuple[str, float]]:
    """The parts of a mixture with their shares; one part of share 1 if it is none."""
    found = _SHARE.findall(data)
    if Path(data).exists() or ",".join(f"{part}={share}" for part, share in found) != data:
        return [(data, 1.0)]
    try:
        shares = [(part, float(share)) for part, share in found]
    except ValueError:
        shares = []
    if not shares or min(share for _, share in shares) <= 0:
        raise ValueError(f"{data!r}: shares must be numbers above 0, like 'stdlib=0.6,tasks=0.4'")
    return shares


def _mixed(streams: list[Stream], shares: list[float], start: int) -> Iterator[Packed]:
    """The part furthest behind its share comes next, so that any stretch of the stream holds about its shares."""
    given = [0] * len(streams)

    def turn(number: int) -> int:
        behind = [share / sum(shares) * (number + 1) - done for share, done in zip(shares, given)]
        return behind.index(max(behind))

    for number in range(start):
        given[turn(number)] += 1
    iterators = [stream.sequences(done) for stream, done in zip(streams, given)]
    for number in count(start):
        chosen = turn(number)
        given[chosen] += 1
        yield next(iterators[chosen])


def _open(data: str, tokenizer: Any, seq_len: int, seed: int) -> Stream:
    kind, _, rest = data.partition(":")
    if kind == "passkeys":
        return _numbered(data, _passkeys(rest, tokenizer, seq_len, seed))
    if kind == "tasks":
        return _numbered(data, dialogues.Dialogues(tokenizer, dialogues.choose(rest), seq_len, seed))
    documents = _documents(data, tokenizer, seed)

    def begin(start: int) -> Iterator[Packed]:
        bos = tokenizer.bos_token_id
        return islice(pack(_endless(documents, data, seq_len, bos is not None), seq_len, bos), start, None)

    return Stream(data, begin)


def _numbered(name: str, source: Numbered) -> Stream:
    return Stream(name, lambda start: map(source.sequence, count(start)))


def _passkeys(rest: str, tokenizer: Any, seq_len: int, seed: int) -> Numbered:
    if rest and not rest.isdecimal():
        raise ValueError(f"passkeys:{rest} does not say how many; write passkeys:{passkeys.COUNT}")
    form = passkeys.SMALL if dialogues.form_of(tokenizer) == "small" else passkeys.FULL
    shelf = corpus.standard_library(tokenizer, seed)
    return passkeys.Passkeys(tokenizer, shelf, seq_len, seed, form, int(rest or passkeys.COUNT))


def _documents(data: str, tokenizer: Any, seed: int) -> corpus.Documents:
    path = Path(data)
    if data == "stdlib":
        return corpus.standard_library(tokenizer, seed)
    if data.startswith("hub:"):
        return corpus.Hub(data.removeprefix("hub:"), tokenizer, seed)
    if path.suffix == ".jsonl" and path.is_file():
        return corpus.lines(path, tokenizer, seed)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in corpus.SUFFIXES):
        return corpus.files(path, tokenizer, seed)
    if path.exists():
        raise ValueError(f"{data} is no text that can be read here: take .jsonl or one of {' '.join(corpus.SUFFIXES)}")
    known = (*NAMED, "a folder", "a .jsonl file", "hub:NAME", "stdlib=0.6,tasks=0.4")
    raise ValueError(f"there is no data {data!r}{nearest(data, known)}")


def _endless(documents: corpus.Documents, name: str, seq_len: int, bos: bool) -> Iterator[array[int]]:
    """Epoch after epoch. ValueError if a whole one is shorter than a sequence."""
    for epoch in count():
        total = 0
        for ids in documents.epoch(epoch):
            total += len(ids) + bos
            yield ids
        if total < seq_len:
            raise ValueError(f"{name} has {total} tokens in all, fewer than the {seq_len} of one sequence")
