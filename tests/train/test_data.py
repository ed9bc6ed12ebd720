"""Streams of training sequences: what `--data` names, epochs, resuming, mixtures, and what is refused."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from packs import embedded, sound

from kvledger.train import corpus
from kvledger.train.data import open_stream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of known words for the tiny tokenizer; 7 files of 13 words, and some that are left out."""
    for number in range(7):
        deep = tmp_path / f"part{number % 2}"
        deep.mkdir(exist_ok=True)
        words = [f"w{5 + number * 13 + i}" for i in range(13)]
        (deep / f"{number}.{('txt', 'md', 'py')[number % 3]}").write_text(" ".join(w for w in words if int(w[1:]) < 96))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_text("w5 w5 w5")
    return tmp_path


def epochs(data: Path | str, seq_len: int, seed: int, sequences: int) -> Counter[int]:
    stream = open_stream(str(data), tiny.tokenizer(), seq_len, seed)
    assert stream.name == str(data)
    found = list(islice(stream.sequences(), sequences))
    assert all(sound(packed, seq_len) for packed in found)
    return Counter(token for packed in found for token in packed.ids if token != 1)


def test_each_epoch_holds_every_document_once(folder: Path) -> None:
    # 91 words and a BOS for each piece: with 14 tokens a sequence, documents fill a sequence each
    counts = epochs(folder, 14, 0, 6 * 4)
    assert set(counts) == set(range(5, 96))
    assert max(counts.values()) - min(counts.values()) <= 1
    ragged = epochs(folder, 9, 0, 120)
    assert set(ragged) == set(range(5, 96))
    assert max(ragged.values()) - min(ragged.values()) <= 2


def test_epochs_and_seeds_shuffle_differently_and_repeat(folder: Path) -> None:
    shelf = corpus.files(folder, tiny.tokenizer(), 3)
    orders = [shelf.order(epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert corpus.files(folder, tiny.tokenizer(), 3).order(2) == orders[2]
    assert corpus.files(folder, tiny.tokenizer(), 4).order(2) != orders[2]


def test_documents_beyond_the_cache_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = epochs(folder, 9, 0, 40)
    monkeypatch.setattr(corpus, "CACHED", 20)
    assert epochs(folder, 9, 0, 40) == wanted
    shelf = corpus.files(folder, tiny.tokenizer(), 0)
    list(shelf.epoch(0))
    assert len(shelf._known) == 1


class Rows:
    """What `datasets.load_dataset(…, streaming=True)` returns, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def shuffle(self, seed: int, buffer_size: int) -> Rows:
        return Rows(random.Random(seed).sample(self.rows, len(self.rows)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def load_dataset(*name: str, **options: Any) -> Rows:
        calls.append((name, options))
        return Rows([{"id": i, "body": tiny.text(11, seed=i), "note": "w5"} for i in range(9)])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_a_data_set_of_the_hub_is_streamed(hub: list[Any]) -> None:
    every = Counter(token for i in range(9) for token in tiny.ids(11, i)[0].tolist())
    assert epochs("hub:some/books:validation:body", 12, 0, 9) == every
    assert hub[-1] == (("some/books",), {"split": "validation", "streaming": True})
    assert epochs("hub:some/books/large", 12, 0, 9) == every  # the longest text
    assert hub[-1] == (("some/books", "large"), {"split": "train", "streaming": True})
    stream = [packed.ids for packed in islice(open_stream("hub:x", tiny.tokenizer(), 12, 0).sequences(), 18)]
    assert set(stream[:9]) == set(stream[9:])
    assert stream[:9] != stream[9:]
    with pytest.raises(ValueError, match="no text in field 'words'; a row has body, id, note"):
        open_stream("hub:some/books:train:words", tiny.tokenizer(), 12, 0)


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'kvledger\[hub\]'"):
        open_stream("hub:some/books", tiny.tokenizer(), 12, 0)


@pytest.mark.parametrize("start", [0, 1, 5, 13])
def test_a_resume_is_exactly_the_continuation(folder: Path, hub: list[Any], start: int) -> None:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": tiny.text(10 + i, seed=i)}) for i in range(6)))
    for data in (folder, path, "hub:x", f"{path}=2,{folder}=1.5"):
        stream = open_stream(str(data), tiny.tokenizer(), 8, 1)
        whole = list(islice(stream.sequences(), start + 12))
        assert list(islice(stream.sequences(start), 12)) == whole[start:], data
        again = open_stream(str(data), tiny.tokenizer(), 8, 1)
        assert list(islice(again.sequences(start), 12)) == whole[start:], data


@pytest.mark.parametrize("data", ["passkeys:2", "tasks:scbench/kv,scbench/vt", "stdlib", "stdlib=0.5,tasks=0.5"])
def test_what_is_built_in_resumes_too(data: str) -> None:
    stream = open_stream(data, embedded(), 256, 1, window=64)
    whole = list(islice(stream.sequences(), 6))
    assert all(sound(packed, 256) for packed in whole)
    assert len(set(whole)) == 6
    assert list(islice(open_stream(data, embedded(), 256, 1).sequences(4), 2)) == whole[4:]
    assert next(open_stream(data, embedded(), 256, 2).sequences()) != whole[0]


def test_jsonl_takes_text_or_else_the_longest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "w5 w6 w7", "long": "w9 " * 9}, {"a": "w8", "b": "w8 w8 w8", "n": 4}, {"a": "w7 w7 w7"}]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    shelf = corpus.lines(path, tiny.tokenizer(), 0)
    assert [list(shelf.ids(i)) for i in range(3)] == [[5, 6, 7], [8, 8, 8], [7, 7, 7]]


def test_a_mixture_keeps_its_shares_in_any_stretch(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("w95 " * 50)
    stream = open_stream(f"{other}=0.25,{folder / 'part0'}=0.75", tiny.tokenizer(), 10, 0)
    kinds = [set(packed.ids) == {1, 95} for packed in islice(stream.sequences(), 40)]
    assert all(sum(kinds[i : i + 8]) == 2 for i in range(32))
    assert not kinds[0]  # the larger share begins


# ---- refusals ----


@pytest.mark.parametrize(
    "data, seq_len, window, reason",
    [
        ("stdlib", 64, 64, "lie within a window of 64"),
        ("stdlib", 1, 0, "need 2 at least"),
        ("stdlb", 64, 0, "did you mean 'stdlib'"),
        ("nothing/like/this", 64, 0, "choices: "),
        ("stdlib=0,tasks=1", 64, 0, "shares must be numbers above 0"),
        ("stdlib=1.2.3,tasks=1", 64, 0, "shares must be numbers"),
        ("stdlib=0.5,tasks", 64, 0, "there is no data"),
        ("tasks:scbench/kw", 64, 0, "did you mean 'scbench/kv'"),
        ("tasks:scbench/many_shot", 32, 0, "scbench/many_shot does not fit sequences of 32 tokens"),
        ("passkeys:many", 64, 0, "does not say how many"),
        ("passkeys:0", 64, 0, "1 to 20"),
        ("passkeys:21", 4096, 0, "1 to 20"),
        ("passkeys", 64, 0, "64 tokens are too few for 10 passkeys"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data: str, seq_len: int, window: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_stream(data, embedded(), seq_len, 0, window)


def test_too_little_data_is_refused_with_both_numbers(folder: Path) -> None:
    with pytest.raises(ValueError, match="has 98 tokens in all, fewer than the 99 of one sequence"):
        open_stream(str(folder), tiny.tokenizer(), 99, 0)
    exact = open_stream(str(folder), tiny.tokenizer(), 98, 0).sequences()
    assert [packed.starts for packed in islice(exact, 2)] == [tuple(range(0, 98, 14))] * 2


def test_unreadable_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no text files"):
        open_stream(str(tmp_path), tiny.tokenizer(), 8, 0)
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no text that can be read here"):
        open_stream(str(tmp_path / "a.parquet"), tiny.tokenizer(), 8, 0)
    bad = tmp_path / "a.jsonl"
    bad.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        open_stream(str(bad), tiny.tokenizer(), 8, 0)
    bad.write_text('{"text": "w5"}\n{"text": 5}\nnonsense\n\n[1]\n{"n": 1}\n' + "x\n" * 4)
    with pytest.raises(ValueError, match=r"line 2, 3, 5, 6, 7 and 3 more"):
        open_stream(str(bad), tiny.tokenizer(), 8, 0)
