"""The page, the document and the terminal: complete, escaped, off the network, and calm about missing things."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from kvledger.records import Record
from kvledger.report import print_table, to_json, write_page
from kvledger.report.page import write_study
from kvledger.report.study import Study, collect
from kvledger.report.terminal import plain, terminal

Make = Callable[..., Record]


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def page(records: list[Record], tmp_path: Path) -> str:
    return write_page(records, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(text)
    return parser.seen


@pytest.fixture(scope="module")
def whole(studied: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(studied, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_page_loads_nothing_from_anywhere(whole: str) -> None:
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", whole)
    assert "url(" not in whole
    assert "@import" not in whole
    loading = {"src", "href", "srcset", "action", "data", "poster"}
    assert not [(tag, facts) for tag, facts in elements(whole) if loading & set(facts) or tag in ("link", "iframe")]
    assert "default-src 'none'" in whole


def test_page_has_every_section(whole: str) -> None:
    found = {facts.get("id") for tag, facts in elements(whole) if tag == "section"}
    assert found == {
        "glance", "parts", "critical", "pareto", "differences", "turns", "depth", "lives", "answers", "table", "reading",
    }  # fmt: skip


def test_ids_are_unique_and_labels_lead_to_them(whole: str) -> None:
    seen = elements(whole)
    ids = [facts["id"] for _, facts in seen if "id" in facts]
    assert len(ids) == len(set(ids))
    wanted = {name for _, facts in seen for name in (facts.get("aria-labelledby") or "").split()}
    assert wanted <= set(ids)


def test_each_section_shows_something_at_first(whole: str) -> None:
    parts = re.split(r'<section id="', whole)[1:]
    shown = {part.partition('"')[0]: len(re.findall(r"<figure[^>]*(?<!hidden)>", part)) for part in parts}
    assert all(shown[name] for name in ("pareto", "differences", "turns", "depth", "lives")), shown
    assert max(shown.values()) <= 12


def test_untrusted_text_is_escaped_everywhere(make: Make, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>\"'&\x00"
    names = ("model", "recipe", "method", "task", "mode", "prediction", "gold", "versions", "cell")
    records = [make(**dict.fromkeys(names, evil), turn=turn) for turn in (1, 2)]
    text = page(records, tmp_path)
    assert "<img" not in text
    tags = [tag for tag, _ in elements(text)]
    assert "img" not in tags
    assert tags.count("script") == 2


def test_embedded_data_are_the_rows_of_the_study(studied: Study, whole: str) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', whole, re.S)
    assert found is not None
    data, study = json.loads(found[1]), studied
    heads = {column["head"]: number for number, column in enumerate(data["columns"])}
    assert len(data["rows"]) == len(study.rows) + len(study.pooled)
    for row, values in zip(study.everything, data["rows"], strict=True):
        assert values[heads["recipe"]] == row.recipe
        score = values[heads["score"]]
        assert score[0] == pytest.approx(row.score.mean, rel=1e-4)
        assert score[1:] == pytest.approx([row.score.low, row.score.high], rel=1e-4)
        assert values[heads["task"]] == row.setting.task


def test_a_big_run_makes_a_small_page(big: list[Record], tmp_path: Path) -> None:
    study = collect(big)
    assert len(study.rows) > 1200
    path = write_study(study, tmp_path / "a.html")
    assert path.stat().st_size < 2_000_000
    words = path.read_text(encoding="utf-8")
    assert "To keep the page light, of keep 0.3 alone." in words
    assert "Drawn for scbench/kv at keep 0.3 alone." in words


def test_document_holds_the_rows(make: Make) -> None:
    document = to_json([make(recipe="full", score=1.0), make(score=0.5, curve=((1, 1.0, "read"),))])
    assert document["run"]["recipes"] == ["full", "snapkv(keep=0.5)"]
    row = document["rows"][1]
    assert (row["score"]["mean"], row["against"]["difference"]["mean"]) == (0.5, -0.5)
    assert row["memory"]["stored"] == 0.5
    assert row["life"]["curve"] == [[1, 1.0, "read"]]
    assert document["answers"][0]["golds"] == ["4711"]
    json.dumps(document, allow_nan=False)


def test_empty_list_is_said_and_not_an_error(tmp_path: Path) -> None:
    assert "No records yet" in page([], tmp_path)
    assert "No records yet" in terminal([])
    assert to_json([])["rows"] == []


@pytest.mark.parametrize(
    "changes",
    [
        [{}],
        [{"recipe": "full"}],
        [{"score": float("nan")}, {"turn": 2}],
        [{"full_bytes": 0, "full_read_per_step": 0, "chunk": 0}],
        [{"context": context, "chunk": chunk} for context in (512, 1024) for chunk in (0, 128)],
        [{"visibility": "patched", "history": "model", "mode": "multi-request"}],
        [{"task": f"task{number}", "score": number / 20} for number in range(15)],
    ],
    ids=["one", "only full", "not a number", "no sizes", "several settings", "other names", "many tasks"],
)
def test_thin_and_odd_records_still_make_a_page(make: Make, tmp_path: Path, changes: list[dict[str, object]]) -> None:
    records = [make(**change) for change in changes]
    text = page(records, tmp_path)
    assert "At a glance" in text
    assert "nan" not in text.lower().replace("isnan", "")
    assert terminal(records)
    json.dumps(to_json(records), allow_nan=False)


def test_table_fits_its_width(studied: Study) -> None:
    for width in (80, 100, 120):
        assert max(len(line.rstrip()) for line in plain(studied, width).splitlines()) <= width


def test_table_without_colour_marks_the_best_with_a_star(make: Make) -> None:
    scores = {"a(keep=0.5)": (0.2, "a"), "b(keep=0.5)": (0.4, "b")}
    records = [make(recipe=r, method=m, score=s, sample=n) for r, (s, m) in scores.items() for n in range(6)]
    text = terminal(records)
    assert "*40.0" in text
    assert "*20.0" not in text
    assert "*40.0" not in terminal([record for record in records if record.sample < 5])  # too few to rank
    assert "\x1b" not in text
    assert "No full cache" in text


def test_table_prints_to_the_console_it_is_given(make: Make) -> None:
    console = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table([make()], console)
    assert "snapkv(keep=0.5)" in console.export_text()


def test_recipes_are_not_read_as_markup(make: Make) -> None:
    assert "[bold]x[/bold]" in terminal([make(recipe="[bold]x[/bold]")])


def test_report_does_not_load_torch() -> None:
    code = "import sys, kvledger.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
