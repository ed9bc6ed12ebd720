"""Hashes of published files: noted when they first come from the hub, listed by the user of a folder; a change is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kvledger.tasks import sums
from kvledger.tasks.hub import Data

REPO, FILE = "owner/set", "data/a.jsonl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub whose cache is laid out as huggingface_hub lays it out; `put(commit, text)` moves its main branch."""
    import huggingface_hub

    root = tmp_path / "datasets--owner--set"
    at: list[Path] = []

    def put(commit, text):
        file = root / "snapshots" / commit / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        at[:] = [file]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(at[0]))
    put.root = root
    return put


def test_what_the_hub_gave_first_is_noted_and_a_change_refused(cache):
    cache("c1", "one")
    assert Data("hub").path(REPO, FILE, "main").read_text() == "one"
    noted = cache.root / sums.NOTED
    assert noted.read_text() == f"{hashlib.sha256(b'one').hexdigest()}  {FILE}\n"
    cache("c2", "one")
    Data("hub").path(REPO, FILE, "main")
    assert noted.read_text().count("\n") == 1
    cache("c3", "two")
    with pytest.raises(
        ValueError, match=r"that was first read here: its SHA-256 is 3fc4cc.*take its line out of .*sha256"
    ):
        Data("hub").path(REPO, FILE, "main")
    noted.unlink()
    assert Data("hub").path(REPO, FILE, "main").read_text() == "two"


def test_a_cache_that_cannot_be_written_to_is_read_all_the_same(cache, monkeypatch):
    cache("c1", "one")
    (cache.root / sums.NOTED).mkdir()  # no file can be opened there
    assert Data("hub").path(REPO, FILE, "main").read_text() == "one"


def test_a_folders_own_list_is_checked_and_never_written(tmp_path):
    file = tmp_path / REPO / FILE
    file.parent.mkdir(parents=True)
    file.write_text("one")
    listed = tmp_path / REPO / sums.NAME
    Data(str(tmp_path)).path(REPO, FILE, "main")
    assert not listed.exists()
    listed.write_text(f"{hashlib.sha256(b'one').hexdigest().upper()}  {FILE}\n{'0' * 64}  other\n")
    assert Data(str(tmp_path)).path(REPO, FILE, "main") == file
    file.write_text("two")
    with pytest.raises(ValueError, match=r"a\.jsonl of owner/set that is listed: its SHA-256 is 3fc4cc"):
        Data(str(tmp_path)).path(REPO, FILE, "main")
    listed.write_text(f"\n{'0' * 63}  {FILE}\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS, line 1: expected"):
        Data(str(tmp_path)).path(REPO, FILE, "main")
