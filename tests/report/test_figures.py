"""Pictures: well-formed, complete, and drawn where the numbers say."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from kvledger.records import Record
from kvledger.report import svg, units
from kvledger.report.export import panels
from kvledger.report.facets import Panel, choices
from kvledger.report.figures import MEASURES, first_measure, front, numbers, pareto, short
from kvledger.report.palette import styles
from kvledger.report.study import Study, collect

Make = Callable[..., Record]


def all_panels(records: list[Record]) -> list[Panel]:
    return [panel for _, panel in panels(collect(records))]


@pytest.fixture(scope="module")
def drawn(studied: Study) -> list[Panel]:
    return [panel for _, panel in panels(studied, "0.3")]


def test_every_picture_is_well_formed_and_says_what_it_is(drawn: list[Panel]) -> None:
    names = []
    for panel in drawn:
        root = ET.fromstring(panel.svg)
        title, description = root[0], root[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text
        assert description.text
        names.append(title.get("id"))
    assert len(names) == len(set(names))


def test_no_picture_holds_a_number_that_is_none(drawn: list[Panel]) -> None:
    for panel in drawn:
        assert "nan" not in panel.svg
        assert "inf," not in panel.svg


def test_hostile_names_stay_text(make: Make) -> None:
    name = 'evil"><script>alert(1)</script>&\x00'
    records = [make(recipe=name, method=name, task=name, turn=turn, curve=((10, 5.0, "read"),)) for turn in (1, 2)]
    for panel in all_panels(records):
        root = ET.fromstring(panel.svg)
        assert not [element for element in root.iter() if element.tag == "script"]


def test_front_is_what_nothing_beats(make: Make) -> None:
    facts = {"a": (0.2, 0.3), "b": (0.4, 0.2), "c": (0.5, 0.8), "d": (0.5, 0.7), "e": (0.9, 0.8)}
    rows = collect([make(recipe=r, method=r, footprint=f, score=s) for r, (f, s) in facts.items()]).rows
    assert [row.recipe for row in front(rows, MEASURES[0])] == ["a", "c"]


def test_points_lie_where_their_numbers_say(make: Make) -> None:
    rows = collect([make(footprint=0.5, score=0.5), make(recipe="full", score=1.0)]).rows
    root = ET.fromstring(pareto(rows, styles(["snapkv"]), numbers(rows))[0].svg)
    (mark,) = list(root.iter("circle"))
    assert rows[int(mark.get("data-r", ""))].recipe == "snapkv(keep=0.5)"
    frame = svg.Frame()
    assert float(mark.get("cx", "")) == pytest.approx((frame.left + frame.x1) / 2, abs=0.1)
    assert float(mark.get("cy", "")) == pytest.approx((frame.top + frame.y1) / 2, abs=0.1)


def test_one_turn_draws_no_turns_and_no_curve_no_life(make: Make) -> None:
    found = {panel.keys.get("measure", "") for panel in all_panels([make(depth=0.0)])}
    assert found == {measure.name for measure in MEASURES}


@pytest.mark.parametrize(
    "curve",
    [
        ((10, 10.0, "read"),),
        ((4, 4.0, "ask"), (5, 5.0, "decode")),
        ((100, 100.0, "read"), (100, 30.0, "evict"), (110, 40.0, "ask"), (105, 35.0, "ask"), (106, 36.0, "decode")),
        tuple((number, float(number), "read") for number in range(1, 3000)),
    ],
)
def test_odd_curves_are_drawn(make: Make, curve: tuple[tuple[int, float, str], ...]) -> None:
    (picture,) = [panel for panel in all_panels([make(curve=curve, depth=0.0)]) if "measure" not in panel.keys]
    ET.fromstring(picture.svg)
    assert len(picture.svg) < 60_000


def test_styles_are_fixed_and_distinct() -> None:
    alone, together = styles(["snapkv"]), styles(["snapkv", "kvzip", "something", "else"])
    assert alone["snapkv"] == together["snapkv"]
    assert len(set(together.values())) == 4


def test_spread_keeps_labels_apart_and_inside() -> None:
    placed = svg.spread([5.0, 5.0, 6.0, 99.0], 10, 0, 100)
    gaps = [b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)]
    assert min(gaps) >= 10
    assert min(placed) >= 0
    assert max(placed) <= 100


def test_ticks_are_round() -> None:
    assert svg.ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert svg.token_ticks(4096) == [0, 1024, 2048, 3072, 4096]


def test_standalone_picture_brings_its_colours(make: Make) -> None:
    root = ET.fromstring(svg.standalone(all_panels([make()])[0].svg))
    assert root.tag == f"{{{svg.NAMESPACE}}}svg"
    assert "prefers-color-scheme" in (root.findtext(f"{{{svg.NAMESPACE}}}style") or "")


def test_choices_open_what_fits() -> None:
    items = [{"task": t, "mode": m, "keep": k} for t in "abc" for m in "xy" for k in ("0.1", "0.2")]
    found = {choice.key: (choice.chosen, choice.allow_all) for choice in choices(items, {"keep": "0.2"}, 4)}
    assert found == {"task": ("a", True), "mode": ("", True), "keep": ("0.2", False)}


def test_units() -> None:
    assert units.size(1536) == "1.50\u202fKiB"
    assert units.size(0) == "0\u202fB"
    assert units.points(-0.0004) == "0.0"
    assert units.points(-0.05) == "−5.0"
    assert units.points(0.05, signed=True) == "+5.0"
    assert units.points(float("nan")) == units.NONE
    assert (units.tokens(8192), units.tokens(8200), units.tokens(131072)) == ("8K", "8\u202f200", "128K")
    assert units.seconds(0.0123) == "12\u202fms"


def test_recipes_that_hold_the_same_stand_side_by_side(make: Make) -> None:
    rows = collect([make(recipe=name, method=name, score=0.5) for name in ("a", "b", "c")]).rows
    look = {name: styles(["snapkv"])["snapkv"] for name in "abc"}
    root = ET.fromstring(pareto(rows, look, numbers(rows))[0].svg)
    places = sorted(float(mark.get("cx", "")) for mark in root.iter("circle"))
    assert len(set(places)) == 3
    assert places[-1] - places[0] < 8


def test_labels_tell_variants_of_a_method_apart() -> None:
    assert short("snapkv(when='chunk') + kivi(bits=4, group=32)") == "snapkv chunk + kivi 4 32"
    assert short("full") == "full"


def test_many_recipes_that_hold_the_same_stay_near_their_place(make: Make) -> None:
    names = [f"m{number}" for number in range(30)]
    rows = collect([make(recipe=name, method=name, score=0.5) for name in names]).rows
    root = ET.fromstring(pareto(rows, dict.fromkeys(names, styles(["snapkv"])["snapkv"]), numbers(rows))[0].svg)
    places = [float(mark.get("cx", "")) for mark in root.iter("circle")]
    assert len(places) == 30
    assert max(places) - min(places) <= 26.2


def test_what_holds_far_more_than_the_full_cache_stands_at_the_end_with_its_number(make: Make) -> None:
    facts = {"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.7, "e": 3.7}
    rows = collect([make(recipe=r, method=r, footprint=f) for r, f in facts.items()]).rows
    root = ET.fromstring(pareto(rows, dict.fromkeys(facts, styles(["snapkv"])["snapkv"]), numbers(rows))[0].svg)
    marks = {rows[int(mark.get("data-r", ""))].recipe: float(mark.get("cx", "")) for mark in root.iter("circle")}
    assert marks["e"] == pytest.approx(svg.Frame().x1, abs=0.1)
    assert marks["d"] < 0.8 * svg.Frame().x1
    assert "e 370 % →" in [text.text for text in root.iter("text")]


@pytest.mark.parametrize(
    "footprints, name", [((0.3, 0.6, 0.95), "entry footprint"), ((0.95, 0.93, 0.3), "stored bytes")]
)
def test_the_first_measure_is_one_that_tells_recipes_apart(make: Make, footprints: list[float], name: str) -> None:
    records = [make(recipe=f"r{n}", method=f"r{n}", footprint=value) for n, value in enumerate(footprints)]
    assert first_measure(collect(records).rows).name == name
