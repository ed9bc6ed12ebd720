"""What a source makes of a text: compared with plain loops, with nothing of a protected span lost."""

from __future__ import annotations

import random
import sys
import types
from typing import Any, ClassVar

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvledger.hf.prompting import surprise
from kvledger.methods.cacheblend import CacheBlend
from kvledger.methods.llmlingua2 import LLMLingua2
from kvledger.methods.selfinfo import SelfInfo, chosen, units
from kvledger.methods.source import Judged, joined, merged
from kvledger.recipe import parse


def judge(text: str, window: int) -> Judged:
    """Tokens of three characters; surprise out of a hat."""
    spans = [(i, min(i + 3, len(text))) for i in range(0, len(text), 3)]
    hat = torch.Generator().manual_seed(len(text))
    return Judged(spans, torch.rand(len(spans), generator=hat))


def slow(part: SelfInfo, text: str) -> str:
    """Words in order of their surprise, as far as the tokens go: the rule, character by character."""
    judged = judge(text, part.window)
    word, words = -1, []
    for i, character in enumerate(text):
        word += i == 0 or (text[i - 1].isspace() and not character.isspace())
        words.append(word)
    tokens: dict[int, list[float]] = {}
    for (_, end), value in zip(judged.spans, judged.surprise.tolist()):
        tokens.setdefault(words[end - 1], []).append(value)
    left, stay = int(part.keep * len(judged.spans)), set()
    for number in sorted(set(words), key=lambda n: -sum(tokens.get(n, []))):
        if len(tokens.get(number, [])) <= left:
            left -= len(tokens.get(number, []))
            stay.add(number)
    return "".join(c for c, number in zip(text, words) if number in stay)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_the_most_surprising_words_stay_in_their_order(keep: float) -> None:
    text = "".join(random.Random(4).choices(["ab", "c", " ", "\n", "defgh"], k=300))
    part = SelfInfo(keep=keep)
    short, _ = part.shorten(text, [], judge)
    assert short == slow(part, text)
    assert 0 < len(short) < len(text)
    assert part.shorten(text, [], judge)[0] == short


def test_keeping_all_keeps_the_text() -> None:
    for part in (SelfInfo(keep=1.0), LLMLingua2(keep=1.0)):
        assert part.shorten("a b  c\n", [(2, 3)], judge) == ("a b  c\n", [(2, 3)])
    assert SelfInfo().shorten(" \n", [], judge) == (" \n", [])


@pytest.mark.parametrize("unit", ["word", "sentence", "token"])
@given(data=st.data())
def test_protected_spans_survive_whole(unit: str, data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="ab .\n语文。", min_size=30, max_size=120).filter(lambda text: text.strip()))
    place = st.integers(0, len(text))
    spans = [(min(a, b), max(a, b)) for a, b in data.draw(st.lists(st.tuples(place, place), max_size=3))]
    part = SelfInfo(keep=data.draw(st.floats(0.1, 0.99)), unit=unit)
    try:
        short, moved = part.shorten(text, spans, judge)
    except ValueError:  # whole units of them are too many
        short, moved = part.shorten(text, spans := [], judge)
    assert [short[a:b] for a, b in moved] == [text[a:b] for a, b in spans if a < b]
    letters = iter(text)
    assert all(letter in letters for letter in short)  # a subsequence


def test_too_much_protected_is_refused_with_the_figures() -> None:
    with pytest.raises(ValueError, match="8 protected tokens do not fit the 4 that selfinfo keeps: raise keep"):
        SelfInfo().shorten("ab " * 8, [(0, 24)], judge)


def test_a_unit_that_alone_exceeds_the_budget_is_better_than_nothing() -> None:
    assert chosen([1.0, 2.0], [5, 5], set(), 3) == [1]
    assert chosen([1.0, 2.0, 3.0], [1, 5, 2], set(), 3) == [0, 2]
    assert chosen([2.0, 2.0, 2.0], [1, 1, 1], {2}, 2) == [0, 2]


def test_units_cover_the_text() -> None:
    text = " One two.  Three\nfour 语文。好"
    for unit, pieces in {
        "word": [" ", "One ", "two.  ", "Three\n", "four ", "语", "文", "。", "好"],
        "sentence": [" One two.  ", "Three\n", "four 语文。", "好"],
        "token": [text[:3], text[3:]],
    }.items():
        firsts = units(text, unit, [(0, 3), (3, 3), (3, len(text))])
        assert [text[a:b] for a, b in zip(firsts, [*firsts[1:], len(text)])] == pieces


def test_spans_are_merged_and_moved() -> None:
    assert merged([(5, 7), (1, 3), (3, 4), (6, 9), (2, 2)]) == [(1, 4), (5, 9)]
    assert joined("0123456789", [(0, 2), (5, 9)], [(6, 9), (1, 2), (4, 4)]) == ("015678", [(3, 6), (1, 2)])


@pytest.mark.parametrize("lead", [[], [1]])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_self_information_is_that_of_a_dense_forward(kind: str, lead: list[int]) -> None:
    made, ids = tiny.model(kind), tiny.ids(21)[0].tolist()
    found = surprise(made, ids, 8, lead)
    for i in range(21):
        before = [*lead, *ids[max(0, i // 4 * 4 - 4) : i]]  # the half before, and its own half so far
        if not before:
            assert found[i] == torch.inf
            continue
        with tiny.implementation(made, "eager"), torch.inference_mode():
            logits = made(input_ids=torch.tensor([before]), use_cache=False).logits[0, -1]
        assert found[i].item() == pytest.approx(-logits.log_softmax(-1)[ids[i]].item(), rel=1e-3, abs=1e-4)


# ---- the library ---------------------------------------------------------------------------------------------------


class FakeCompressor:
    """The door of llmlingua 0.2 that is used: keeps every third word, and says what it was given."""

    given: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model_name: str, device_map: str, model_config: dict[str, Any], use_llmlingua2: bool):
        assert use_llmlingua2
        assert model_config == {"trust_remote_code": False}
        self.made = model_name, device_map

    def compress_prompt_llmlingua2(
        self,
        context: list[str],
        rate: float = 0.5,
        use_context_level_filter: bool = False,
        force_tokens: list[str] = [],  # noqa: B006
    ) -> dict[str, Any]:
        self.given.append({"made": self.made, "rate": rate, "force": force_tokens, "texts": context})
        assert not use_context_level_filter
        return {"compressed_prompt_list": [" ".join(text.split()[::3]) for text in context]}


@pytest.fixture
def llmlingua(monkeypatch: pytest.MonkeyPatch) -> type[FakeCompressor]:
    fake: Any = types.ModuleType("llmlingua")
    fake.PromptCompressor = FakeCompressor
    monkeypatch.setitem(sys.modules, "llmlingua", fake)
    monkeypatch.setattr(FakeCompressor, "given", [])
    return FakeCompressor


def test_the_library_is_given_what_lies_between_protected_spans(llmlingua: type[FakeCompressor]) -> None:
    text = "a b c d e f\nKEEP this  g h i j"
    short, spans = LLMLingua2(model="m", device="cpu").shorten(text, [(12, 19), (12, 16), (3, 3)], judge)
    assert short == "a d\nKEEP this i"  # every third word of each stretch, and its blanks at the ends
    assert [short[a:b] for a, b in spans] == ["KEEP th", "KEEP"]
    (call,) = llmlingua.given
    assert call == {"made": ("m", "cpu"), "rate": 0.33, "force": ["\n", "?"], "texts": [text[:12], text[19:]]}


def test_without_the_library_the_extra_is_named() -> None:
    assert "llmlingua" not in sys.modules
    with pytest.raises(ValueError, match=r"pip install 'kvledger\[llmlingua\]'"):
        tiny_session("llmlingua2")
    tiny_session("llmlingua2(keep=1)")


def tiny_session(recipe: str) -> Any:
    import kvledger as kv

    return kv.open(tiny.model(), tiny.tokenizer(), recipe)


# ---- which tokens are read again -----------------------------------------------------------------------------------


def test_those_that_changed_most_are_read_again() -> None:
    deviation = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0, 3.0])
    assert CacheBlend(recompute=0.5).choose(deviation).tolist() == [1, 3, 5]
    assert CacheBlend(recompute=0.34).choose(deviation).tolist() == [1, 3]
    assert CacheBlend(recompute=0).choose(deviation).tolist() == []
    assert CacheBlend(recompute=1).choose(deviation).tolist() == list(range(6))


def test_chunks_begin_by_length_or_behind_a_separator() -> None:
    assert CacheBlend(chunk=4).starts(9, []) == [0, 4, 8]
    assert CacheBlend(separator="#").starts(9, [3, 12, 5]) == [0, 3, 5]


@pytest.mark.parametrize(
    "text, message",
    [
        ("selfinfo(keep=0)", r"keep=0.0 is outside \(0, 1\]"),
        ("selfinfo(unit='phrase')", "unit='phrase' is unknown"),
        ("selfinfo(window=1)", "2 is the least"),
        ("cacheblend(recompute=1.5)", r"recompute=1.5 is outside \[0, 1\]"),
        ("cacheblend(chunk=0)", "chunk=0 is less than a token"),
        ("cacheblend(layer=0)", "1 is the first to compare"),
        ("selfinfo + cacheblend", "selfinfo and cacheblend are two sources"),
        ("cacheblend + h2o", "cacheblend reads chunks apart and some tokens twice, and h2o acts while tokens are read"),
        ("cacheblend + snapkv(when='chunk')", "snapkv acts while"),
        ("cacheblend + ashape", "ashape acts while"),
        ("cacheblend + moba", "moba acts while"),
        ("cacheblend + nsa", "nsa acts while"),
        ("cacheblend + headgate(keep=0.5)", "headgate acts while"),
        ("selfinfo(keep=1) + protect(system=True)", "there is nothing to protect from"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_sources_stand_beside_what_they_do_not_touch() -> None:
    assert parse("selfinfo(keep=0.5) + snapkv(keep=0.5)").keep == 0.25
    assert parse("selfinfo + protect(instruction=True)").protection is not None
    assert str(parse("cacheblend + headgate(keep=1) + h2o(keep=1)"))
