"""Heads with a window: exact inside a chunk and across chunks, really holding no more than that; alone and with eviction in
the full heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from kvledger.hf.cache import arenas, new_cache, run_of
from kvledger.hf.layer import GATHER
from kvledger.hf.session import open_session
from kvledger.methods.gatefile import Gates

SINK, WINDOW, TOKENS, LAYERS, HEADS = 3, 9, 61, 3, 2
GATES = "headgate(path={path!r}, keep=0.5)"


@pytest.fixture
def path(tmp_path: Path) -> str:
    scores = ((0.9, 0.1), (0.2, 0.3), (0.6, 0.5))  # layer 1 has no full head at keep=0.5
    Gates(scores, SINK, WINDOW).save(tmp_path / "gates.json")
    return str(tmp_path / "gates.json")


FULL = [[True, False], [False, False], [True, True]]


def allowed(made, tokens: int) -> torch.Tensor:
    """[L, Hq, N, N] of what each query head may see."""
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)
    causal = column <= row
    narrow = causal & ((column < SINK) | (row - column < WINDOW))
    groups = made.config.num_attention_heads // HEADS
    return torch.stack(
        [torch.stack([causal if full else narrow for full in layer for _ in range(groups)]) for layer in FULL]
    )


def model(dtype: torch.dtype = torch.float64):
    return tiny.model("llama", dtype, num_hidden_layers=LAYERS, num_key_value_heads=HEADS)


@pytest.mark.parametrize("chunk", [0, 1, 5, 13, 30])
def test_reading_asking_and_writing_see_what_training_saw(path: str, chunk: int) -> None:
    made = model()
    session = open_session(made, tiny.tokenizer(), GATES.format(path=path), chunk)
    with tiny.Witness(made) as witness:
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(4, seed=1), max_new_tokens=GATHER * 2 + 3)
        session.ask(tiny.text(3, seed=2), max_new_tokens=3)
    tokens = [token for ids, _, _ in witness.steps for token in ids]
    last = torch.tensor([len(ids) for ids, _, _ in witness.steps]).cumsum(0) - 1
    dense = tiny.masked_forward(made, torch.tensor([tokens]), allowed(made, len(tokens)))[0, last]
    torch.testing.assert_close(witness.logits(), dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [0, 7, 20])
def test_window_heads_hold_sinks_and_a_window_and_no_more(path: str, chunk: int) -> None:
    session = open_session(model(), tiny.tokenizer(), GATES.format(path=path), chunk)
    session.read(tiny.text(TOKENS - 1))
    expected = set(range(SINK)) | set(range(TOKENS - WINDOW, TOKENS))
    for layer, kept in zip(FULL, tiny.alive(session.cache)):
        assert kept == [set(range(TOKENS)) if full else expected for full in layer]
    for layer in arenas(session.cache)[:2]:
        assert layer.arena.nbytes == layer.arena.rows * layer.arena.row_nbytes  # no slack is left behind
    lengths = []
    for _ in range(3 * GATHER):
        session.forward([5], "decode")
        lengths += [
            layer.arena.length[h] for layer, full in zip(arenas(session.cache), FULL) for h in (0, 1) if not full[h]
        ]
        assert session.ledger.stored_bytes == sum(layer.arena.nbytes for layer in arenas(session.cache))
    assert max(lengths) <= SINK + WINDOW + GATHER
    assert min(lengths) >= SINK + WINDOW
    assert [book.alive for book in session.ledger.layers.values()] == [x.arena.rows for x in arenas(session.cache)]


def test_a_gold_answer_puts_back_what_the_window_let_go(path: str) -> None:
    made, logits = model(), []
    for answer in (1, 3 * GATHER):  # a long answer pushes the context out of the window; history shows another one
        session = open_session(made, tiny.tokenizer(), GATES.format(path=path), 20)
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(4, seed=1), max_new_tokens=answer, gold=tiny.text(2, seed=3))
        with tiny.Witness(made) as witness:
            session.ask(tiny.text(3, seed=2), max_new_tokens=4)
        logits.append(witness.logits())
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-10, atol=1e-10)


def test_a_fork_does_not_disturb_the_trunk(path: str) -> None:
    trunk = open_session(model(), tiny.tokenizer(), GATES.format(path=path), 20)
    trunk.read(tiny.text(TOKENS - 1))
    before = tiny.alive(trunk.cache)
    first = trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=2 * GATHER + 5)
    assert tiny.alive(trunk.cache) == before
    assert trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=2 * GATHER + 5) == first


@pytest.mark.parametrize(
    "method", ["snapkv(keep=0.4, window=4)", "adakv(keep=0.4, window=4)", "knorm(keep=0.3, allocator='layers')"]
)
@pytest.mark.parametrize("when", ["prompt", "chunk"])
def test_eviction_inside_the_full_heads(path: str, method: str, when: str) -> None:
    made = model()
    recipe = GATES.format(path=path) + " + " + method.replace(")", f", when={when!r})")
    session = open_session(made, tiny.tokenizer(), recipe, 20)
    session.read(tiny.text(TOKENS - 1))
    narrow = set(range(SINK)) | set(range(TOKENS - WINDOW, TOKENS))
    full_rows = []
    for layer, kept in zip(FULL, tiny.alive(session.cache)):
        for full, rows in zip(layer, kept):
            if full:
                full_rows.append(len(rows))
            else:
                assert rows == narrow
    keep = float(method.split("keep=")[1].split(",")[0].rstrip(")"))
    parts = [20, 20, 20, 1] if when == "chunk" else [TOKENS]
    assert sum(full_rows) == len(full_rows) * sum(max(1, int(keep * n + 1e-9)) for n in parts)
    with tiny.Witness(made) as witness:
        session.ask(tiny.text(3, seed=1), max_new_tokens=4)
    # what was dropped stays dropped: the same question on a fork of the same rows says the same
    assert torch.isfinite(witness.logits()).all()


def test_dense_chunks_are_the_papers_reading(path: str) -> None:
    """inside="dense": a chunk's queries see sinks, window and their whole chunk."""
    made, tokens = model(), tiny.ids(40)
    recipe = GATES.format(path=path).replace(")", ", inside='dense')")
    cache = new_cache(made, recipe)
    run_of(cache).auto = False
    run_of(cache).reading = False
    with torch.inference_mode():
        made(input_ids=tokens[:, :25], past_key_values=cache)
        ours = made(input_ids=tokens[:, 25:], past_key_values=cache).logits
    row, column = torch.arange(40)[:, None], torch.arange(40)
    causal = column <= row
    kept = (column < SINK) | (column >= 25 - WINDOW)
    narrow = torch.where(row < 25, causal, causal & kept)
    groups = made.config.num_attention_heads // HEADS
    mask = torch.stack([torch.stack([causal if f else narrow for f in layer for _ in range(groups)]) for layer in FULL])
    torch.testing.assert_close(ours[0], tiny.masked_forward(made, tokens, mask)[0, 25:], rtol=1e-9, atol=1e-9)


def test_a_batch_with_padding_is_each_prompt_alone(path: str) -> None:
    made = model(torch.float32)
    prompts = [tiny.ids(n, seed=n) for n in (17, 40, 9, 33)]
    width = 40
    ids = torch.cat([torch.cat([torch.zeros(1, width - p.shape[1], dtype=torch.long), p], 1) for p in prompts])
    mask = torch.cat([(torch.arange(width) >= width - p.shape[1]).long()[None] for p in prompts])
    from kvledger.hf.load import attach

    with attach(made, GATES.format(path=path)):
        together = tiny.generated(made, ids, GATHER + 8, mask)
        alone = [tiny.generated(made, p, GATHER + 8)[0] for p in prompts]
    assert together == alone


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("headgate(path='{path}', keep=0.05)", "leaves no full head"),
        ("headgate(path='nowhere.json')", "cannot read the gates"),
        ("headgate(path='{path}') + snapkv(heads='query')", "knows KV heads"),
        ("headgate(path='{path}', inside='out')", "inside='out'"),
        ("headgate(path='{path}', window=0)", "at least 1 token"),
        ("headgate(path='random:x')", "random:0"),
        ("headgate(path='{path}') + headgate(path='{path}')", "two head profiles"),
        ("protect(sinks=4)", "nothing to protect from"),
        ("snapkv() + protect()", "names nothing"),
    ],
)
def test_mistakes_are_named(path: str, recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_cache(model(), recipe.replace("{path}", path))


def test_gates_for_another_shape_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="are for 3 layers of 2 KV heads, and this model has 3 of 8"):
        new_cache(tiny.model("llama", num_key_value_heads=8), GATES.format(path=path))
