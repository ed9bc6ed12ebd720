"""Recipes round-trip, and every mistake is answered with the nearest right thing."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvledger import recipe
from kvledger.methods.base import Method
from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Recipe, Row, parse, register, registry

KEEP = st.floats(0.001, 1)
FRAME = {
    "when": st.sampled_from(["prompt", "chunk"]),
    "heads": st.sampled_from(["kv", "query"]),
    "rows": st.integers(0, 4096),
    "every": st.integers(0, 512),
    "allocator": st.sampled_from(["even", "heads", "layers", "pyramid"]),
}
VOTE = {
    "window": st.integers(1, 500),
    "kernel": st.integers(0, 20).map(lambda n: 2 * n + 1),
    "pool": st.sampled_from(["avg", "max"]),
}
OPTIONS = {
    "full": FRAME,
    **{name: {"keep": KEEP, **FRAME} for name in ("keydiff", "knorm", "observed_attention", "tova")},
    "random": {"keep": KEEP, **FRAME, "seed": st.integers(-5, 10**6)},
    "streaming": {"keep": KEEP, **FRAME, "sinks": st.integers(0, 64)},
    "snapkv": {"keep": KEEP, **FRAME, **VOTE},
    "pyramidkv": {"keep": KEEP, **FRAME, **VOTE, "beta": st.integers(1, 50)},
    "adakv": {"keep": KEEP, **FRAME, **VOTE, "floor": st.floats(0, 1)},
    "h2o": {"keep": KEEP, **FRAME, "recent_share": st.floats(0, 1)},
    "criticalkv": {"keep": KEEP, **FRAME, **VOTE, "epsilon": st.floats(0, 1), "first_stage_ratio": st.floats(0, 1)},
    "simlayerkv": {"keep": KEEP, **FRAME, "local": st.integers(0, 2048), "threshold": st.floats(0, 1)},
    "fastgen": {
        "keep": KEEP,
        **FRAME,
        "recover": st.floats(0.1, 1),
        "frequent": st.floats(0, 0.5),
        "local": st.floats(0, 0.5),
    },
    "headkv": {
        "keep": KEEP,
        "when": FRAME["when"],
        **VOTE,
        "beta": st.floats(1, 9),
        "importance": st.sampled_from(["zoo", "random:3", "importance.json"]),
    },
    "lagkv": {"keep": KEEP, **FRAME, "lag": st.integers(1, 512), "sinks": st.integers(0, 64)},
    "chunkkv": {"keep": KEEP, **FRAME, **VOTE, "length": st.integers(1, 64)},
    "expected_attention": {
        "keep": KEEP,
        **FRAME,
        "future": st.integers(1, 4096),
        "covariance": st.booleans(),
        "vnorm": st.booleans(),
        "epsilon": st.floats(0, 1),
        "sinks": st.integers(0, 64),
    },
    "compactor": {
        "keep": KEEP,
        **FRAME,
        "blend": st.floats(0, 5),
        "chunk": st.integers(1, 1024),
        "sketch": st.integers(1, 256),
        "seed": st.integers(0, 10**6),
        "sinks": st.integers(0, 64),
        "recent": st.integers(0, 64),
    },
    "rkv": {
        "keep": KEEP,
        **FRAME,
        "mix": st.floats(0, 1),
        "similar": st.floats(-1, 1),
        "window": st.integers(1, 64),
        "kernel": VOTE["kernel"],
        "when": st.just("decode"),
        "every": st.integers(1, 512),
    },
    "triattention": {
        "keep": KEEP,
        **FRAME,
        "horizon": st.integers(1, 10**6),
        "recent": st.integers(0, 512),
        "when": st.just("decode"),
        "every": st.integers(1, 512),
    },
    "kvzip": {
        "keep": KEEP,
        **{name: drawn for name, drawn in FRAME.items() if name != "every"},
        "chunk": st.integers(1, 4096),
        "echo": st.integers(0, 16),
        "plus": st.booleans(),
        "sinks": st.integers(0, 64),
    },
    "dms": {
        "keep": KEEP,
        **FRAME,
        "path": st.sampled_from(["", "zoo/kvzap", "random:3"]),
        "delay": st.integers(0, 512),
        "threshold": st.floats(-20, 0),
    },
    "kvzap": {
        "keep": KEEP,
        **FRAME,
        "path": st.sampled_from(["random:3", "scorer.safetensors"]),
        "delay": st.integers(0, 512),
        "threshold": st.floats(-20, 0),
    },
    "locret": {
        "keep": KEEP,
        **FRAME,
        "path": st.sampled_from(["random:3", "scorer.safetensors"]),
        "stabilizers": st.integers(0, 4096),
    },
    "headgate": {
        "keep": KEEP,
        "path": st.sampled_from(["zoo/prulong-tasks-0.5", "random:7", "gates.json"]),
        "sink": st.integers(-1, 64),
        "window": st.integers(1, 64),
        "budget": st.sampled_from(["global", "layer"]),
        "inside": st.sampled_from(["window", "dense"]),
    },
    "selfinfo": {"keep": KEEP, "unit": st.sampled_from(["word", "sentence", "token"]), "window": st.integers(2, 4096)},
    "llmlingua2": {"keep": KEEP, "model": st.sampled_from(["a/b", "folder"]), "device": st.sampled_from(["", "cpu"])},
    "cacheblend": {
        "recompute": st.floats(0, 1),
        "chunk": st.integers(1, 4096),
        "separator": st.sampled_from(["", "\n\n", " # # "]),
        "layer": st.integers(1, 4),
    },
    "ashape": {"sinks": st.integers(0, 512), "window": st.integers(1, 8192)},
    "trishape": {"sinks": st.integers(0, 512), "window": st.integers(1, 8192), "last": st.integers(0, 256)},
    "minference": {name: st.integers(1, 512) for name in ("vertical", "slash", "queries", "block")},
    "flexprefill": {"gamma": st.floats(0.1, 1), "tau": st.floats(0, 1), "block": st.integers(1, 256)},
    "xattention": {"threshold": st.floats(0.1, 1), "stride": st.sampled_from([1, 8, 16])},
    "moba": {"block": st.integers(1, 4096), "top": st.integers(1, 64)},
    "nsa": {"select": st.integers(3, 64), "window": st.integers(0, 2048), "block": st.sampled_from([16, 64])},
    "quest": {name: st.integers(1, 512) for name in ("pages", "size", "dense")},
    "retrieval_attention": {name: st.integers(1, 4096) for name in ("k", "sinks", "window", "probes", "dense")},
    "twilight": {
        "p": st.floats(0.1, 1),
        "pages": st.integers(0, 512),
        "size": st.integers(1, 64),
        "dense": st.integers(0, 4),
    },
    "offload": {"limit": st.integers(0, 10**12), "dense": st.just(0)},
    "int8": {},
    "int4": {},
    "fp8": {},
    "kivi": {"bits": st.sampled_from([2, 4, 16]), "group": st.sampled_from([16, 32]), "residual": st.integers(0, 256)},
    "turboquant": {"bits": st.sampled_from([2, 3, 4]), "seed": st.integers(0, 2**31)},
    "protect": {"sinks": st.integers(1, 9), "recent": st.integers(0, 9), "instruction": st.booleans()},
}


@st.composite
def methods(draw: st.DrawFn) -> Method:
    name = draw(st.sampled_from(sorted(set(OPTIONS) - {"protect"})))  # nothing to protect from, alone
    chosen = draw(st.fixed_dictionaries({}, optional=OPTIONS[name]))
    return registry()[name](**chosen)


def test_every_registered_method_is_covered_here() -> None:
    assert {name for name, cls in registry().items() if cls.__module__.startswith("kvledger.")} == set(OPTIONS)


@given(methods())
def test_a_recipe_and_its_string_are_one(method: Method) -> None:
    text = str(Recipe((method,)))
    assert parse(text) == Recipe((method,))
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("full", "full"),
        ("full()", "full"),
        ("snapkv", "snapkv(keep=0.25)"),
        (" snapkv( window = 16 , keep = 1 ) ", "snapkv(keep=1.0, window=16)"),
        ("streaming(keep=0.5, when='prompt')", "streaming(keep=0.5)"),
        ("adakv(floor=0)", "adakv(keep=0.25, floor=0.0)"),
        ("kvledger.methods.snapkv.SnapKV(keep=0.5)", "snapkv(keep=0.5)"),
    ],
)
def test_there_is_one_way_to_write_a_recipe(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("snapvk(keep=0.3)", "unknown method 'snapvk'; did you mean 'snapkv'"),
        ("zzz", "unknown method 'zzz' (choices: adakv, "),
        ("snapkv(keeep=0.3)", "unknown option 'keeep' in 'snapkv(keeep=0.3)'; did you mean 'keep'"),
        ("streaming(window=3)", "unknown option 'window'"),
        ("snapkv(0.3)", "need their names"),
        ("snapkv(**{'keep': 0.3})", "need their names"),
        ("snapkv(keep=0.3", "cannot read the recipe"),
        ("", "cannot read the recipe"),
        ("snapkv(keep=\x00)", "cannot read the recipe"),
        ("snapkv(keep=print('x'))", "option keep of .* must be a plain value"),
        ("snapkv(keep={[]: 1})", "option keep of .* must be a plain value"),
        ("snapkv(keep=0.3, keep=0.4)", "names the option 'keep' twice"),
        ("snapkv(keep=0)", "keep=0.0 is outside (0, 1]"),
        ("snapkv(keep=1.5)", "keep=1.5 is outside (0, 1]"),
        ("full(keep=0.5)", "full keeps everything"),
        ("snapkv(when='never')", "when='never' is unknown"),
        ("snapkv(heads='all')", "heads='all' is unknown"),
        ("snapkv(window=0)", "at least one query must vote"),
        ("snapkv(kernel=4)", "kernel=4 must be odd and positive"),
        ("snapkv(pool='min')", "pool='min' is not 'avg' or 'max'"),
        ("adakv(floor=1.1)", "floor=1.1 is outside [0, 1]"),
        ("pyramidkv(beta=0)", "beta=0"),
        ("streaming(sinks=-1)", "sinks=-1"),
        ("snapkv(keep='0.3')", "keep='0.3' must be a number, like 0.25"),
        ("snapkv(keep=True)", "keep=True must be a number, like 0.25"),
        ("snapkv(window=True)", "window=True must be a whole number, like 32"),
        ("snapkv(window=8.0)", "window=8.0 must be a whole number, like 32"),
        ("snapkv(window=None)", "window=None must be a whole number, like 32"),
        ("snapkv(when=1)", "when=1 must be a text, like 'prompt'"),
        ("snapkv(keep=0.3) + streaming(keep=0.3)", "snapkv and streaming are two compression methods"),
        ("headkv + headgate", "headkv shares rows among all heads, so headgate has no place beside it"),
        ("snapkv - streaming", "unknown method"),
        ("no.such.module.Method(keep=0.1)", "cannot import the method 'no.such.module.Method'"),
        ("kvledger.methods.snapkv.Nothing", "cannot import the method"),
        ("kvledger.recipe.parse", "is not a method"),
        ("kvledger.records.Cell", "is not a method"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    escaped = message if "|" in message or ".*" in message else message.translate({ord(c): "\\" + c for c in "()[]"})
    with pytest.raises(ValueError, match=escaped):
        parse(text)


def test_nothing_in_a_recipe_is_executed(tmp_path) -> None:
    target = tmp_path / "made"
    for text in (f"open({str(target)!r}, 'w')", f"snapkv(keep=open({str(target)!r}, 'w'))"):
        with pytest.raises(ValueError):
            parse(text)
    assert not target.exists()


@pytest.fixture
def outsider(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of somebody else with a method in it, importable and not registered."""
    module = types.ModuleType("outsider")

    @dataclass(frozen=True, kw_only=True)
    class Mine(SnapKV):
        bias: float = 0.5

    Mine.__module__, Mine.__qualname__ = "outsider", "Mine"
    module.Mine = Mine
    monkeypatch.setitem(sys.modules, "outsider", module)
    monkeypatch.setattr(recipe, "REGISTRY", dict(registry()))
    return module


def test_a_method_of_ones_own_goes_by_its_path(outsider: types.ModuleType) -> None:
    made = parse("outsider.Mine(keep=0.5, bias=2)")
    assert made.method == outsider.Mine(keep=0.5, bias=2.0)
    assert str(made) == "outsider.Mine(keep=0.5, bias=2.0)"  # not its parent's name


def test_installed_packages_register_by_entry_point(
    outsider: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("mine", "compression", "head", "-", "-", "a test")

    class Point:
        def load(self) -> type:
            return register(row)(outsider.Mine)

    monkeypatch.setattr(recipe, "_points", lambda: (Point(),))
    assert str(parse("mine(bias=1.5)")) == "mine(keep=0.25, bias=1.5)"
    assert registry()["mine"].row is row


def test_parts_of_different_roles_work_together() -> None:
    text = "headgate(keep=0.5, path='random:1') + snapkv(keep=0.3) + protect(sinks=4)"
    made = parse(text)
    assert str(made) == text.replace("keep=0.5, path='random:1'", "path='random:1', keep=0.5")
    assert (made.profile.keep, made.method.keep, made.protection.sinks) == (0.5, 0.3, 4)
    assert made.keep == pytest.approx(0.15)
    assert made.name == "headgate(path='random:1') + snapkv + protect(sinks=4)"
    assert parse("headgate(keep=0.5)").method == registry()["full"]()
    assert parse("headgate(keep=0.5)").drops
    assert not parse("full").drops
