"""Rows that live on the host, with both memories played by the CPU's: nothing is lost on the way, in whatever life."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from kvledger.hf import host
from kvledger.hf.cache import arenas
from kvledger.hf.load import attach
from kvledger.hf.session import Session, open_session

TOKENS = 45
BESIDE = ["", "snapkv(keep=0.5, window=4)", "h2o(keep=0.6, every=3)", "adakv(keep=0.5, window=4, when='chunk')", "int8"]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Host and device are two; counts the copies that came ahead in time."""
    used: list[int] = []
    fetch = host.Home.fetch

    def counting(self: host.Home, arena: Any, device: torch.device) -> None:
        ahead = {name: source for name, (source, _) in self.ahead.items()}
        used.append(int(bool(ahead) and all(ahead.get(name) is x for name, x in arena.buffers.items())))
        before = arena.buffers
        fetch(self, arena, device)
        assert all(x.data_ptr() != before[name].data_ptr() for name, x in arena.buffers.items() if x.numel())

    monkeypatch.setattr(host, "moves", lambda device: True)
    monkeypatch.setattr(host.Home, "fetch", counting)
    return used


def life(session: Session) -> tuple[list[Any], list[str]]:
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(TOKENS - 1))
        said = [session.ask(tiny.text(3, seed=1), max_new_tokens=9, gold=tiny.text(2, seed=3))]
        branch = session.fork()
        said += [
            session.ask(tiny.text(2, seed=2), max_new_tokens=20),
            branch.ask(tiny.text(2, seed=4), max_new_tokens=7),
        ]
        said += [session.ask(tiny.text(4, seed=5), max_new_tokens=3)]
    rows = [
        x for one in (session, branch) for layer in arenas(one.cache) for s in range(2) for x in layer.arena.plain(s)
    ]
    return [*rows, *witness.logits()], said


@pytest.mark.parametrize("beside", BESIDE)
def test_what_comes_from_the_host_is_what_went_there(beside: str, apart: list[int]) -> None:
    made = tiny.model("llama", torch.float32, num_hidden_layers=3)
    there, said = life(open_session(made, tiny.tokenizer(), " + ".join(filter(None, (beside, "offload"))), 13))
    assert sum(apart) > len(apart) / 2  # the first layer's are fetched when they are needed, others come ahead
    here, wanted = life(open_session(made, tiny.tokenizer(), beside or "full", 13))
    assert said == wanted
    assert len(here) == len(there)
    for a, b in zip(here, there):
        assert torch.equal(a, b)


def test_batches_and_beams_come_home_too(apart: list[int]) -> None:
    made, prompts = tiny.model("llama", torch.float32, num_hidden_layers=3), tiny.ids(20, batch=2)
    with attach(made, "offload"):
        ours = tiny.generated(made, prompts, 9), tiny.generated(made, prompts, 9, num_beams=3)
    with attach(made, "full"):
        assert ours == (tiny.generated(made, prompts, 9), tiny.generated(made, prompts, 9, num_beams=3))


def test_rows_in_groups_have_no_home(apart: list[int]) -> None:
    made, recipe = tiny.model("llama", torch.float32), "offload + kivi(bits=4, group=16, residual=16)"
    session = open_session(made, tiny.tokenizer(), recipe, 13)
    with pytest.raises(ValueError, match="kivi stores them in groups"):
        session.read(tiny.text(TOKENS))


def test_on_a_cpu_nothing_moves() -> None:
    session = open_session(tiny.model("llama", torch.float32), tiny.tokenizer(), "offload", 0)
    session.read(tiny.text(TOKENS))
    before = [layer.arena.k.data_ptr() for layer in arenas(session.cache)]
    session.forward([5], "decode")
    session.forward([6], "decode")
    assert before != [layer.arena.k.data_ptr() for layer in arenas(session.cache)]  # it has grown once
    again = [layer.arena.k.data_ptr() for layer in arenas(session.cache)]
    session.forward([7], "decode")
    assert again == [layer.arena.k.data_ptr() for layer in arenas(session.cache)]
