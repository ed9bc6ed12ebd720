"""The inspector: its document is checked, its page shows what the bits say, in a real browser, by hand and by keyboard."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report.browser import Browser

from kvledger.report import inspector

TOKENS = ["<s>", "The ", "key ", "is ", "47", "11", ".\n", "<b>&", " end", "!"]
KEEPS = (0.2, 0.5, 0.9)


def bits(held: set[int]) -> str:
    return base64.b64encode(sum(1 << token for token in held).to_bytes(2, "little")).decode()


def held(keep: float, layer: int, head: int) -> set[int]:
    """The last tokens, as many as the keep allows; head 1 of layer 1 has one more, the first."""
    count = round(keep * len(TOKENS))
    return set(range(len(TOKENS) - count, len(TOKENS))) | ({0} if (layer, head) == (1, 1) else set())


def document(**changes: Any) -> dict[str, Any]:
    levels = [
        {
            "keep": keep,
            "recipe": f"snapkv(keep={keep})",
            "footprint": keep,
            "kept": [[bits(held(keep, layer, head)) for head in range(2)] for layer in range(3)],
            "answers": [{"text": f"answer at {keep}", "score": keep}, {"text": "", "score": 0.0}],
        }
        for keep in KEEPS
    ]
    turns = [
        {"question": "Which?", "gold": "4711", "evidence": [4, 5]},
        {"question": "Why?", "gold": "-", "evidence": []},
    ]
    facts = {
        "format": inspector.FORMAT,
        "version": "0",
        "model": "zoo",
        "recipe": "snapkv(keep=0.5)",
        "task": "t",
        "sample": 0,
    }
    return facts | {"seed": 0, "chunk": 0, "tokens": TOKENS, "turns": turns, "levels": levels} | changes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inspector.write(json.dumps(document()), tmp_path_factory.mktemp("inspector") / "deep" / "page.html")


@pytest.fixture
def page(browser: Browser, path: Path) -> Browser:
    browser.open(path)
    return browser


def shades(page: Browser) -> list[int]:
    classes = page.run("[...document.querySelectorAll('#text span')].map(s => s.className.split(' ')[1])")
    return [int(name[1:]) for name in classes]


def words(page: Browser, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


def choose(page: Browser, name: str, value: object) -> None:
    page.run(
        f"(() => {{ const c = document.getElementById('{name}'); c.value = '{value}'; "
        "c.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_the_page_starts_at_the_recipe_and_shows_the_text_as_it_is(page: Browser) -> None:
    assert page.errors == []
    assert words(page, "text") == "".join(TOKENS)
    assert words(page, "keep") == "0.5 – 52\u202f% held"  # 31 of the 60 rows
    assert shades(page) == [2, 0, 0, 0, 0, 10, 10, 10, 10, 10]  # the first token in 1 head of 6


def test_the_slider_changes_shades_answers_and_what_is_said_of_the_evidence(page: Browser) -> None:
    choose(page, "level", 0)
    assert shades(page) == [2, 0, 0, 0, 0, 0, 0, 0, 10, 10]
    assert words(page, "said") == "answer at 0.2 – score 20"
    assert words(page, "evidence") == "2 tokens, 0\u202f% of their rows held; whole in 0 of 6 heads"
    choose(page, "level", 2)
    assert shades(page) == [2] + [10] * 9
    assert words(page, "evidence") == "2 tokens, 100\u202f% of their rows held; whole in 6 of 6 heads"
    colours = page.run("[...document.querySelectorAll('#text span')].map(s => getComputedStyle(s).backgroundColor)")
    assert len({*colours}) == 2  # two shades are two colours


def test_the_slider_moves_with_the_keyboard(page: Browser) -> None:
    before = shades(page)
    page.run("document.getElementById('level').focus()")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press("ArrowLeft")
    assert page.run("document.getElementById('level').value") == "0"
    assert shades(page) != before
    page.press("End")
    assert page.run("document.getElementById('level').getAttribute('aria-valuetext')") == "keep 0.9"


def test_the_map_is_the_budget_of_each_head(page: Browser) -> None:
    rows = "[...document.querySelectorAll('.budget tbody tr')]"
    assert page.run(f"{rows}.map(r => [...r.querySelectorAll('button')].map(b => b.textContent))") == [
        ["50", "50", "50"],
        ["50", "60", "50"],
    ]
    shares = inspector.kept_share(document())
    assert shares[1] == [[0.5, 0.5], [0.5, 0.6], [0.5, 0.5]]


def test_one_head_can_be_looked_at_by_its_tile_and_by_the_lists(page: Browser) -> None:
    page.run("document.querySelectorAll('.budget button')[4].focus()")
    page.press("Enter")
    assert (page.run("document.getElementById('layer').value"), page.run("document.getElementById('head').value")) == (
        "1",
        "1",
    )
    assert shades(page) == [10, 0, 0, 0, 0, 10, 10, 10, 10, 10]
    assert page.run("document.querySelectorAll('.budget [aria-pressed=true]').length") == 1
    page.press("Enter")
    assert shades(page)[0] == 2
    choose(page, "layer", 1)
    assert shades(page)[0] == 5  # one of the two heads of layer 1


def test_evidence_is_underlined_for_the_question_chosen(page: Browser) -> None:
    marked = "[...document.querySelectorAll('#text .e')].map(s => s.textContent)"
    assert page.run(marked) == ["47", "11"]
    choose(page, "turn", 1)
    assert page.run(marked) == []
    assert words(page, "evidence") == "this question names none"
    assert words(page, "said") == "(nothing) – score 0"


@pytest.mark.parametrize("width, dark", [(1200, True), (390, False), (390, True)])
def test_it_fits_phones_and_follows_the_theme(browser: Browser, path: Path, width: int, dark: bool) -> None:
    browser.open(path, width=width, dark=dark)
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth") == width
    tint = browser.run("getComputedStyle(document.querySelector('#text .s10')).backgroundColor")
    assert tint == ("rgb(93, 86, 144)" if dark else "rgb(161, 153, 218)")


def test_eight_thousand_tokens_do_not_freeze_it(browser: Browser, tmp_path: Path) -> None:
    """32 layers of 8 heads; the slider is moved once over each place, and the time a reader waits is the browser's own."""
    count, layers = 8192, 32
    row = base64.b64encode(bytes([0b10101010]) * (count // 8)).decode()
    levels = [level | {"kept": [[row] * 8] * layers, "answers": []} for level in document()["levels"]]
    facts = document(tokens=["word "] * count, turns=[], levels=levels)
    browser.open(inspector.write(json.dumps(facts), tmp_path / "big.html"))
    assert browser.errors == []
    for level in range(len(KEEPS)):
        choose(browser, "level", level)
    assert browser.run("document.querySelectorAll('#text .s10').length") == count // 2


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=console.error(1)>"
    turns = [{"question": evil, "gold": evil, "evidence": [0]}] * 2
    facts = document(tokens=[evil] * 10, turns=turns, recipe=evil, model=evil)
    browser.open(inspector.write(json.dumps(facts), tmp_path / "evil.html"))
    assert browser.errors == []
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert words(browser, "text") == evil * 10


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"format": "something/1"}, "not an inspection"),
        ({"levels": []}, "it needs tokens and at least one keep"),
        ({"tokens": ["a"] * 20}, "not a bit for each of the 20 tokens"),
        ({"turns": []}, "2 answers to 0 questions"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inspector.page(json.dumps(document(**changes)))


def test_the_page_is_made_without_torch() -> None:
    code = "import sys, kvledger.report.inspector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
