"""The page of a training run: complete, escaped, true to the log and the gates, calm about a log that was cut off."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvledger.methods.gatefile import Gates
from kvledger.report import training
from kvledger.report.training_figures import Line, curves, heads, smooth

GATES = Gates(((0.9, 0.1), (0.5, 0.0), (1.0, 0.2)), 4, 64, "some/model", objective="prulong", target=0.5, data="stdlib")
TABLES = st.integers(1, 5).flatmap(
    lambda heads: st.lists(st.tuples(*[st.sampled_from((0.0, 0.25, 0.5, 0.7, 1.0))] * heads), min_size=1, max_size=5)
)


def entry(step: int, **changes: object) -> str:
    facts = {"step": step, "loss": 2.0 / step, "expected": 0.1 * step, "realised": 0.1, "target": 0.1 * step}
    facts |= {
        "lambda1": -0.5 * step,
        "lambda2": 0.25,
        "lr": 1.0,
        "tokens_per_second": 900.0 + step,
        "seconds": 30.0 * step,
    }
    return json.dumps({**facts, **changes})


def render(tmp_path: Path, log: str, gates: Gates = GATES) -> str:
    (tmp_path / "run.log.jsonl").write_text(log)
    gates.save(tmp_path / "gates.json")
    return training.write(
        tmp_path / "run.log.jsonl", tmp_path / "gates.json", tmp_path / "deep" / "run.html"
    ).read_text()


def pictures(page: str) -> dict[str, ET.Element]:
    """Every picture of the page by its title."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
    return {picture.findtext("title") or "": picture for picture in found}


@pytest.fixture
def whole(tmp_path: Path) -> str:
    return render(tmp_path, "\n".join(entry(step) for step in range(1, 6)) + "\n")


def test_the_page_shows_every_curve_and_loads_nothing(whole: str) -> None:
    assert set(pictures(whole)) == {"Score of each KV head", "Loss", "Sparsity", "Multipliers", "Speed"}
    assert not re.search(r"https?://|url\(|@import|<link|<img|<iframe| src=", whole)
    assert "default-src 'none'" in whole
    ids = re.findall(r' id="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="(\S+) (\S+)"', whole)[0]) <= set(ids)


def test_facts_come_from_the_gates_and_the_log(whole: str) -> None:
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", whole))
    assert facts["objective"] == "prulong"
    assert facts["target sparsity"] == "0.5"
    assert (facts["sink"], facts["window"]) == ("4", "64")
    assert facts["tokens a second, median"] == "903"
    assert facts["time"] == "2 min"
    assert "3 of 6 KV heads in 3 full-attention layers keep everything" in whole


def test_lines_end_where_the_log_ends(whole: str) -> None:
    words = {name: picture.findtext("desc") for name, picture in pictures(whole).items()}
    assert words["Sparsity"] == "target: 10 to 50; expected: 10 to 50; realised: 10 to 10."
    assert words["Multipliers"] == "λ1: −0.5 to −2.5; λ2: 0.25 to 0.25."
    tips = [e.get("data-tip") for e in pictures(whole)["Sparsity"].iter() if e.get("data-tip")]
    assert "step 3\nexpected 30" in tips
    first, last = re.findall(r"[ML]([\d.]+),([\d.]+)", pictures(whole)["Loss"].find(".//path").get("d"))[::4]  # type: ignore[union-attr]
    assert (float(first[0]), float(last[0])) == (44, 334)
    assert float(first[1]) < float(last[1])  # the loss falls: down the page


@pytest.mark.parametrize(
    "log, panels",
    [
        ("", 0),
        (entry(1), 4),
        (entry(1) + "\n" + entry(2)[:30], 4),
        ("\n".join(entry(s, lambda1=None, lambda2=None, expected=None, target=None) for s in (1, 2)), 3),
        (entry(1, loss=float("nan")) + "\n" + entry(2, loss=float("nan")), 3),
        ('[1]\n{"step": true}\n{"no": 1}\nnonsense\n' + entry(1, loss="x"), 3),
        ("\n".join(entry(s, lambda1=0.0, lambda2=0.0, loss=1.5) for s in (1, 2, 3)), 4),
    ],
    ids=["empty", "one step", "cut off", "duo", "nan", "damaged", "flat"],
)
def test_thin_and_odd_logs_still_make_a_page(tmp_path: Path, log: str, panels: int) -> None:
    page = render(tmp_path, log)
    assert len(pictures(page)) == 1 + panels
    assert ("holds no steps" in page) == (panels == 0)
    assert "nan" not in page.lower().replace("isnan", "")


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    GATES.save(tmp_path / "gates.json")
    out = training.write(tmp_path / "none.jsonl", tmp_path / "gates.json", tmp_path / "a.html")
    assert "holds no steps" in out.read_text()


def test_a_step_done_again_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text("\n".join([entry(1), entry(2, loss=5.0), entry(3), entry(2, loss=1.0)]))
    assert [(e["step"], e["loss"]) for e in training.read_log(log)] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x>\"'&\x00"
    page = render(tmp_path, entry(1), Gates(((1.0,),), 1, 1, evil, evil, evil, data=evil))

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attributes: object) -> None:
            self.seen.append(tag)

    parser = Tags()
    parser.feed(page)
    assert "img" not in parser.seen
    assert parser.seen.count("script") == 1


# ---- the map ----


@given(TABLES.map(tuple), st.floats(0.0, 0.95))
def test_full_heads_are_those_that_the_gates_name(scores: tuple[tuple[float, ...], ...], target: float) -> None:
    gates = Gates(scores, 1, 1, target=target)
    try:
        wanted = gates.full_heads(1 - target)
    except ValueError:  # none: the page outlines none
        wanted = tuple((False,) * len(row) for row in scores)
    assert training.top(scores, 1 - target) == wanted


@pytest.mark.parametrize("layers", [1, 32, 33, 80])
def test_the_map_has_a_number_and_a_tip_for_each_head(layers: int) -> None:
    scores = tuple(((layer * 3 + head) % 100 / 100, 0.999, 0.0) for layer in range(layers) for head in (0,))
    full = training.top(scores, 0.4)
    root = ET.fromstring(heads(scores, full)[0])
    cells = [group for group in root.iter("g") if group.get("data-tip")]
    assert len(cells) == layers * 3
    for number, cell in enumerate(cells):
        layer, head = divmod(number, 3)
        kind = "full: keeps everything" if full[layer][head] else "streaming: keeps sink and window"
        assert cell.get("data-tip") == f"layer {layer}, KV head {head}\nscore {scores[layer][head]:.4f}\n{kind}"
        assert len(cell.findall("rect")) == 2 + full[layer][head]
    assert [cell.findtext("text") for cell in cells[:3]] == [".00", "1", ".00"]
    places = {(cell.find("rect").get("x"), cell.find("rect").get("y")) for cell in cells}  # type: ignore[union-attr]
    assert len(places) == layers * 3
    _, _, width, height = map(float, str(root.get("viewBox")).split())
    assert all(float(x or 0) < width and float(y or 0) < height for x, y in places)


def test_the_running_mean_is_a_mean() -> None:
    flat = [(float(step), 3.0) for step in range(100)]
    assert all(abs(value - 3.0) < 1e-12 for _, value in smooth(flat))
    jagged = [(float(step), float(step % 2)) for step in range(400)]
    tail = [value for _, value in smooth(jagged)[200:]]
    assert all(abs(value - 0.5) < 0.05 for value in tail)
    assert smooth(flat[:1]) == flat[:1]


def test_a_curve_stays_inside_its_panel() -> None:
    spots = [(float(step), (-1) ** step * 10.0 ** (step % 4)) for step in range(50)]
    root = ET.fromstring(curves("a", "A", "a", [Line("a", "red", spots)], str))
    places = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+),([\d.]+)", root.find(".//path").get("d"))]  # type: ignore[union-attr,arg-type]
    assert len(places) == 50
    assert all(44 <= x <= 334 and 26 <= y <= 230 for x, y in places)


def test_the_page_is_made_without_torch() -> None:
    code = "import sys, kvledger.report.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
