"""Gate files: round trips, who stays full, foreign tables, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvledger.methods import gatefile
from kvledger.methods.gatefile import Gates, read_gates

PUBLISHED = (
    Path(os.environ.get("KVLEDGER_REFDATA", Path(__file__).parents[2].parent / "shared" / "data")) / "head_masks"
)
TABLE = ((0.9, 0.1, 0.5, 0.5), (0.5, 0.0, 1.0, 0.2))
GATES = Gates(TABLE, 4, 64, "some/model", "abc", "prulong", 0.7, "stdlib", 3, 200, "0.1.0")
tables = st.integers(1, 6).flatmap(
    lambda heads: st.lists(
        st.tuples(*[st.floats(0, 1)] * heads) | st.tuples(*[st.sampled_from((0.0, 0.5, 1.0))] * heads),
        min_size=1,
        max_size=6,
    ).map(tuple)
)


def count(mask: gatefile.Mask) -> list[int]:
    return [sum(row) for row in mask]


# ---- who stays full ----


@given(tables, st.floats(0.01, 1))
def test_the_highest_scores_stay_and_their_number_is_rounded_half_up(scores: gatefile.Scores, keep: float) -> None:
    heads = len(scores) * len(scores[0])
    wanted = int(keep * heads + 0.5 + 1e-9)
    if wanted == 0:
        with pytest.raises(ValueError, match="leaves no full head"):
            Gates(scores, 1, 1).full_heads(keep)
        return
    mask = Gates(scores, 1, 1).full_heads(keep)
    flat = [(score, full) for row, marks in zip(scores, mask) for score, full in zip(row, marks)]
    assert sum(full for _, full in flat) == wanted
    stay, go = [s for s, full in flat if full], [s for s, full in flat if not full]
    assert not go or min(stay) >= max(go)
    level = [full for score, full in flat if score == min(stay)]
    assert level == sorted(level, reverse=True)  # of equal ones, the earlier


@given(tables, st.floats(0.5, 1))
def test_a_budget_by_layer_gives_each_layer_the_same(scores: gatefile.Scores, keep: float) -> None:
    mask = Gates(scores, 1, 1).full_heads(keep, "layer")
    assert count(mask) == [int(keep * len(scores[0]) + 0.5 + 1e-9)] * len(scores)
    assert mask == tuple(Gates((row,), 1, 1).full_heads(keep)[0] for row in scores)


def test_ties_go_to_the_earlier_layer_and_head() -> None:
    assert GATES.full_heads(0.5) == ((True, False, True, True), (False, False, True, False))
    assert GATES.full_heads(0.625) == ((True, False, True, True), (True, False, True, False))
    assert count(GATES.full_heads(0.5, "layer")) == [2, 2]
    assert GATES.full_heads(1.0) == ((True,) * 4,) * 2


@pytest.mark.parametrize(
    "heads, keep, full", [(50, 0.29, 15), (8, 0.0625, 1), (5, 0.3, 2), (5, 0.1, 1), (10, 0.04999, 0), (8, 0.3125, 3)]
)
def test_halves_are_rounded_up_in_spite_of_floating_point(heads: int, keep: float, full: int) -> None:
    gates = Gates((tuple(i / heads for i in range(heads)),), 1, 1)
    if full:
        assert count(gates.full_heads(keep)) == [full]
    else:
        with pytest.raises(ValueError, match=r"leaves no full head; the least is 0\.05"):
            gates.full_heads(keep)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_a_keep_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        GATES.full_heads(keep)


def test_a_layer_without_a_full_head_and_an_unknown_budget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keep=0\.1 of a layer 4 KV heads leaves no full head; the least is 0\.125"):
        GATES.full_heads(0.1, "layer")
    with pytest.raises(ValueError, match="'heads' is not 'global' or 'layer'"):
        GATES.full_heads(0.5, "heads")


# ---- our file ----


@given(tables, st.integers(0, 200), st.integers(1, 2000), st.text(max_size=9), st.floats(0, 1))
def test_saved_gates_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, scores: gatefile.Scores, sink: int, window: int, text: str, target: float
) -> None:
    path = tmp_path_factory.mktemp("gates") / "deep" / "gates.json"
    gates = Gates(scores, sink, window, text, text, text, target, text, sink, window, text)
    gates.save(path)
    assert read_gates(path) == gates
    assert json.loads(path.read_text())["format"] == 1


def test_a_save_that_fails_leaves_the_older_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gates.json"
    GATES.save(path)

    def full_disk(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(gatefile.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        Gates(((1.0,),), 1, 1).save(path)
    assert Gates.load(path) == GATES
    assert list(tmp_path.iterdir()) == [path]


def change(**facts: object) -> str:
    whole = {"format": 1, "scores": [[0.5, 1.0]], "sink": 1, "window": 2}
    return json.dumps({name: value for name, value in {**whole, **facts}.items() if value is not None})


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is not JSON"),
        ('{"format": 1,', "is not JSON"),
        ("[1, 2]", "holds no JSON object"),
        (change(format=2), "format 2 is not known here"),
        (change(format=None), "format None is not known"),
        (change(sink=None), "missing field 'sink'"),
        (change(scores=None), "missing field 'scores'"),
        (change(colour=1), "unknown field 'colour'"),
        (change(scores=[]), "without scores"),
        (change(scores=[[]]), "without scores"),
        (change(scores=[0.5]), "not a table"),
        (change(scores=[[0.5, 1], [0.5]]), "layer 1 has 1 scores and layer 0 has 2"),
        (change(scores=[[0.5, float("nan")]]), "layer 0, head 1 is nan"),
        (change(scores=[[0.5, 1], [0.5, 1.5]]), "layer 1, head 1 is 1.5"),
        (change(scores=[[0.5, -0.1]]), "head 1 is -0.1"),
        (change(scores=[["0.5"]]), "'0.5' is not a number"),
        (change(scores=[[True]]), "True is not a number"),
        (change(window=0), "window=0"),
        (change(sink=-1), "sink=-1"),
        (change(sink=1.5), "sink is 1.5, not of type int"),
        (change(model=7), "model is 7, not of type str"),
    ],
)
def test_a_malformed_file_is_refused_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "gates.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        Gates.load(path)
    assert str(path) in str(caught.value)


def test_the_smallest_file_and_whole_numbers_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text(change(scores=[[1, 0]], target=1))
    assert Gates.load(path) == Gates(((1.0, 0.0),), 1, 2, target=1.0)


# ---- other people's files ----


@pytest.mark.parametrize("place", ["pattern", "pattern/full_attention_heads.tsv", "mine.tsv"])
def test_duo_round_trip(tmp_path: Path, place: str) -> None:
    GATES.to_tsv(tmp_path / place)
    back = read_gates(tmp_path / place)
    assert (back.scores, back.sink, back.window) == (GATES.scores, GATES.sink, GATES.window)
    assert (back.model, back.data, back.seed, back.steps) == (GATES.model, GATES.data, GATES.seed, GATES.steps)
    config = "config.json" if place.startswith("pattern") else "mine.config.json"
    folder = tmp_path / "pattern" if place.startswith("pattern") else tmp_path
    assert json.loads((folder / config).read_text())["recent_size"] == 64


def test_scores_are_clipped_as_duo_does(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("-5.7e-05\t1.5\n0.25\t1\n\n")
    assert Gates.from_tsv(path, sink=0, window=8) == Gates(((0.0, 1.0), (0.25, 1.0)), 0, 8)


def test_prulong_tables_have_its_sink_and_window(tmp_path: Path) -> None:
    path = tmp_path / "masks_sp0.7.tsv"
    path.write_text("0.0\t1.0\n0.0\t0.0\n")
    gates = read_gates(path)
    assert (gates.sink, gates.window, gates.objective, gates.target) == (128, 1024, "prulong", 0.7)
    assert gates.full_heads(0.25) == ((False, True), (False, False))
    assert Gates.from_tsv(path, 4, 32).window == 32


@pytest.mark.parametrize(
    "text, reason",
    [
        ("0.5\tx\n", "line 1: could not convert"),
        ("0.5\t1\n0.5\n", "layer 1 has 1 scores"),
        ("0.5\tnan\n", "line 1 holds nan"),
        ("0.5\tinf\n", "line 1 holds inf"),
        ("\n", "without scores"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        Gates.from_tsv(tmp_path / "a.tsv", 1, 1)


def test_a_table_without_sizes_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("0.5\n")
    with pytest.raises(ValueError, match=r"put DuoAttention's config\.json"):
        read_gates(tmp_path / "a.tsv")
    (tmp_path / "config.json").write_text('{"sink_size": 4, "recent_size": 0}')
    with pytest.raises(ValueError, match="window=0"):
        read_gates(tmp_path / "a.tsv")


def test_what_is_not_a_gate_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.json or \.tsv"):
        read_gates(tmp_path / "gates.pt")
    for missing in ("gates.json", "gates.tsv", "masks_sp0.5.tsv"):
        with pytest.raises(ValueError, match=missing):
            read_gates(tmp_path / missing)
    with pytest.raises(ValueError, match="cannot read the gates"):
        read_gates(tmp_path)


def test_embedded_gates_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatefile.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="there are no embedded gates"):
        read_gates("zoo/prulong-0.5")
    GATES.save(tmp_path / "zoo" / "gates" / "prulong-0.5.json")
    assert read_gates("zoo/prulong-0.5") == GATES
    with pytest.raises(ValueError, match=r"did you mean 'zoo/prulong-0\.5'"):
        read_gates("zoo/prulong-0.6")
    with pytest.raises(ValueError, match="unknown gates"):
        read_gates("zoo/../../etc/passwd")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"DuoAttention's released patterns are not at {PUBLISHED}")
@pytest.mark.parametrize(
    "name, by_layer", [("Meta-Llama-3.1-8B-Instruct", (1, 8)), ("Mistral-7B-Instruct-v0.3", (1, 7))]
)
def test_released_duo_patterns(name: str, by_layer: tuple[int, int]) -> None:
    gates = read_gates(PUBLISHED / f"duo_{name}.tsv")
    assert (len(gates.scores), len(gates.scores[0]), gates.sink, gates.window) == (32, 8, 128, 256)
    assert (gates.model, gates.objective, gates.steps) == (f"models/{name}", "duo", 2000)
    mask, cut = np.array(gates.full_heads(0.5)), np.quantile(np.array(gates.scores), 0.5)
    assert mask.sum() == 128
    assert (mask.sum(1).min(), mask.sum(1).max()) == by_layer
    assert mask[np.array(gates.scores) > cut].all()  # Duo's own rule, where it does not leave it to chance
    assert not mask[np.array(gates.scores) < cut].any()
    assert set(count(gates.full_heads(0.5, "layer"))) == {4}
