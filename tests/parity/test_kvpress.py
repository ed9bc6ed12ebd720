"""Our methods and NVIDIA kvpress's presses (Apache-2.0) on the same random models: the same rows, where the definitions agree.

kvpress needs an older transformers, so it lives in an environment of its own: KVLEDGER_PARITY_PYTHON is the path of a Python
that can import it (written for 0.5.5). Without it these tests are skipped. docs/fidelity.md says where definitions differ.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import kvledger as kv
from kvledger.methods.gatefile import Gates
from kvledger.methods.scorerfile import Facts, Scorer, fresh_net

PYTHON = os.environ.get("KVLEDGER_PARITY_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="KVLEDGER_PARITY_PYTHON does not name a Python that has kvpress")

Rows = list[list[list[int]]]
TOKENS, RATIOS = 240, (0.5, 0.75, 0.875)  # 120, 60 and 30 rows stay
ALL = tuple(1 - ratio for ratio in RATIOS)
FAMILIES = ("llama", "qwen3")
WINDOW = 16
GATES = Gates(((0.9, 0.1), (0.3, 0.7), (0.5, 0.2)), sink=4, window=56)


def press(kind: str, **options: Any) -> list[Any]:
    return [kind, options]


def scorer(kind: str, **options: Any) -> list[Any]:
    return press(kind, compression_ratio="RATIO", **options)


SNAP = scorer("SnapKVPress", window_size=WINDOW, kernel_size=5)
WINDOWED = f"keep={{keep}}, window={WINDOW}, kernel=5, pool='avg'"

# Where the same rows stay. Name: (our recipe, their press, kept fractions). {half} is what remains of half the budget, {most}
# of 0.95 of it, when the window's rows are paid: kvpress counts them in, a share here is of the rows besides.
SAME: dict[str, tuple[str, list[Any], tuple[float, ...]]] = {
    "knorm": ("knorm(keep={keep})", scorer("KnormPress"), ALL),
    "streaming": ("streaming(keep={keep})", scorer("StreamingLLMPress"), ALL),
    "snapkv": (f"snapkv({WINDOWED})", SNAP, ALL),
    "tova": ("tova(keep={keep})", scorer("TOVAPress"), ALL),
    "observed_attention": ("observed_attention(keep={keep})", scorer("ObservedAttentionPress"), ALL),
    "keydiff": ("keydiff(keep={keep})", scorer("KeyDiffPress"), ALL),
    "expected_attention": ("expected_attention(keep={keep})", scorer("ExpectedAttentionPress"), ALL),
    "lagkv": ("lagkv(keep={keep}, lag=20)", scorer("LagKVPress", lag_size=20), ALL[:2]),
    "chunkkv": (
        "chunkkv(keep={keep}, window=20, length=20)",
        press("ChunkKVPress", press=scorer("SnapKVPress", window_size=20), chunk_length=20),
        ALL[:2],
    ),
    "compactor": (
        "compactor(keep={keep}, recent=0)",
        scorer("CompactorPress", sink_size_end=0, chunk_size=TOKENS - 8, blending=0.35),
        ALL,
    ),
    "adakv": (f"adakv({WINDOWED}, floor={{most}})", press("AdaKVPress", press=SNAP, alpha_safeguard=0.95), ALL),
    "expected attention, heads compete": (
        "expected_attention(keep={keep}, allocator='heads', epsilon=0.02)",
        press("AdaKVPress", press=scorer("ExpectedAttentionPress", epsilon=0.02)),
        ALL,
    ),
    "criticalkv": (
        f"criticalkv({WINDOWED}, first_stage_ratio={{half}})",
        press("CriticalKVPress", press=SNAP, first_stage_ratio=0.5),
        ALL,
    ),
    "criticalkv, heads compete": (
        f"criticalkv({WINDOWED}, first_stage_ratio=0.0, floor=0.0, allocator='heads')",
        press("CriticalAdaKVPress", press=SNAP, first_stage_ratio=0.0, alpha_safeguard=0.1),
        ALL,
    ),
    "kvzip": ("kvzip(keep={keep}, chunk=100)", scorer("KVzipPress", chunk_size=100), ALL),
    "kvzip+": (
        "kvzip(keep={keep}, chunk=100, plus=True)",
        scorer("KVzipPress", chunk_size=100, kvzip_plus_normalization=True),
        ALL,
    ),
    "headgate": (
        "headgate(path={gates!r}, keep={keep}, inside='dense')",
        press("DuoAttentionPress", head_compression_ratio="RATIO"),
        ALL,
    ),
    "kvzap": ("kvzap(path={scorer!r}, keep={keep}, delay=0)", scorer("KVzapPress"), ALL),
    "kvzap by threshold": (
        "kvzap(path={scorer!r}, keep=1.0, delay=50, threshold=-1.0)",
        press("DMSPress", press=press("KVzapPress"), threshold=-1.0, sliding_window_size=50),
        ALL[:1],
    ),
    "dms": (
        "dms(keep=1.0, delay=50, threshold=-4.4)",
        press("DMSPress", press=press("KnormPress"), threshold=-4.4, sliding_window_size=50),
        ALL[:1],
    ),
    "simlayerkv": (  # both keep 4 + 59 rows of lazy layers; kvpress weighs n_recent rows before the last, and keeps one less
        "simlayerkv(keep=0.5, threshold=0.25, local=59, window=1)",
        press("SimLayerKVPress", lazy_threshold=0.25, n_recent=60),
        ALL[:1],
    ),
}
OTHER = {
    "pyramidkv": scorer("PyramidKVPress", window_size=WINDOW, kernel_size=5),
    "chunkkv of 7": press("ChunkKVPress", press=SNAP, chunk_length=7),
    "critical adakv": press("CriticalAdaKVPress", press=SNAP, alpha_safeguard=0.1),
    "compactor, padded": scorer("CompactorPress", sink_size_end=0, chunk_size=1000, blending=0.35),
}


def besides(keep: float, share: float) -> float:
    """Of the budget's rows besides the window: what makes `share` of the whole budget, window included."""
    rows = round(keep * TOKENS)
    return (max(0, int(share * rows) - WINDOW) + 0.5) / (rows - WINDOW)


@cache
def model(family: str) -> Any:
    """A random model, its norms' weights random as well: else all of qwen3's keys would be equally long."""
    made = copy.deepcopy(tiny.model(family, torch.float64))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
    return made


@cache
def tokenizer() -> Any:
    """Its template puts nothing before the context, which kvpress would not repeat for KVzip."""
    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} <end> <bot> "
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Head gates and a learned scorer."""
    folder = tmp_path_factory.mktemp("files")
    draw = torch.Generator().manual_seed(0)
    nets = (fresh_net("kvzap", 2, 64, 8, draw) for _ in GATES.scores)
    below = tuple(replace(net, bias=torch.tensor([-1.0, -0.5])) for net in nets)  # scores are logarithms
    GATES.save(folder / "gates.json")
    Scorer(Facts("kvzap"), below).save(folder / "kvzap.safetensors")
    return {"gates": str(folder / "gates.json"), "scorer": str(folder / "kvzap.safetensors")}


@pytest.fixture(scope="module")
def theirs(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """[family][press][kept fraction][layer][KV head]: positions that kvpress keeps."""
    folder = tmp_path_factory.mktemp("peer")
    for family in FAMILIES:
        model(family).save_pretrained(folder / family)
        tokenizer().save_pretrained(folder / family)
    request = {
        "folders": [str(folder / family) for family in FAMILIES],
        "ids": tiny.ids(TOKENS)[0].tolist(),
        "ratios": RATIOS,
        "heads": (GATES.sink, GATES.window, GATES.scores),
        "scorer": files["scorer"],
        "presses": {name: case[1] for name, case in SAME.items()} | OTHER,
    }
    (folder / "request.json").write_text(json.dumps(request))
    script, question, answer = Path(__file__).with_name("peer.py"), folder / "request.json", folder / "answer.json"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PYTHON, script, question, answer], capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        family: {name: dict(zip(ALL, rows)) for name, rows in presses.items()}
        for family, presses in zip(FAMILIES, json.loads(answer.read_text()))
    }


def ours(family: str, recipe: str) -> Rows:
    """[layer][KV head]: positions that kvledger keeps."""
    session = kv.open(model(family), tokenizer(), recipe)
    session.read(tiny.text(TOKENS))
    assert session.tokens == TOKENS
    return [[sorted(head) for head in layer] for layer in tiny.alive(session.cache)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SAME)
def test_the_same_rows(name: str, family: str, theirs: dict[str, Any], files: dict[str, str]) -> None:
    recipe, _, fractions = SAME[name]
    for keep in fractions:
        shares = {"half": besides(keep, 0.5), "most": besides(keep, 0.95)}
        mine, other = ours(family, recipe.format(keep=keep, **shares, **files)), [*theirs[family][name][keep]]
        if name.split()[0] in ("knorm", "dms", "kvzap"):  # ties: in layer 0 all that is scored comes of the token alone
            mine[0], other[0] = tokens_of(mine[0]), tokens_of(other[0])
        assert mine == other, f"{name} at keep={keep}"
        assert sum(len(rows) for layer in mine for rows in layer) < len(mine) * len(mine[0]) * TOKENS


def tokens_of(heads: list[list[int]]) -> list[list[int]]:
    ids = tiny.ids(TOKENS)[0].tolist()
    return [sorted(ids[n] for n in rows) for rows in heads]


def contained(some: Rows, others: Rows) -> bool:
    """Whether of each head one set of rows is a part of the other: the same ranking, cut at different places."""
    pairs = [(set(a), set(b)) for x, y in zip(some, others) for a, b in zip(x, y)]
    return all(a <= b or b <= a for a, b in pairs)


def counts(rows: Rows) -> list[list[int]]:
    return [[len(head) for head in layer] for layer in rows]


# ---- where definitions differ: that they do, and only there --------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_pyramids_share_the_budget_differently(family: str, theirs: dict[str, Any]) -> None:
    """kvpress's falls back to equal layers where its last layer would have fewer rows than the window."""
    for keep in ALL:
        mine, other = ours(family, f"pyramidkv({WINDOWED.format(keep=keep)})"), theirs[family]["pyramidkv"][keep]
        assert contained(mine, other)
        assert counts(mine)[0] > counts(mine)[1] > counts(mine)[2]
        assert sum(map(sum, counts(mine))) == sum(map(sum, counts(other))) == 6 * keep * TOKENS
        assert (counts(other)[0] == counts(other)[2]) == (keep < 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_kvpress_leave_some_of_the_budget(family: str, theirs: dict[str, Any]) -> None:
    for keep in ALL:
        recipe = f"chunkkv({WINDOWED.format(keep=keep)}, length=7)"
        mine, other = ours(family, recipe), theirs[family]["chunkkv of 7"][keep]
        assert contained(mine, other)
        assert counts(mine) == [[keep * TOKENS] * 2] * 3
        assert max(map(max, counts(other))) < keep * TOKENS


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_the_first_stage(family: str, theirs: dict[str, Any]) -> None:
    """kvpress pays the window from the first stage. Heads get the same number of rows either way."""
    options, keep = WINDOWED.format(keep=0.25), 0.25
    mine, other = ours(family, f"criticalkv({options})"), theirs[family]["criticalkv"][keep]
    assert mine != other
    mine = ours(family, f"criticalkv({options}, floor=0.0, allocator='heads')")
    assert mine != theirs[family]["critical adakv"][keep]
    assert counts(mine) == counts(theirs[family]["critical adakv"][keep])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_votes_in_kvpress(family: str, theirs: dict[str, Any]) -> None:
    """One chunk holds all rows, so how much longer it could be should not matter."""
    for keep in ALL:
        mine = ours(family, f"compactor(keep={keep}, recent=0, chunk=1000)")
        assert mine == theirs[family]["compactor"][keep] != theirs[family]["compactor, padded"][keep]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_below_what_lagkv_protects(family: str, theirs: dict[str, Any]) -> None:
    """kvpress ties sinks and the last rows, and drops any of them; here sinks and the most recent stay."""
    protected = {0, 1, 2, 3, *range(204, TOKENS)}
    mine = ours(family, "lagkv(keep=0.125, lag=20)")
    assert mine == [[[0, 1, 2, 3, *range(TOKENS - 26, TOKENS)]] * 2] * 3
    assert all(len(head) == 30 and set(head) <= protected for layer in theirs[family]["lagkv"][0.125] for head in layer)
