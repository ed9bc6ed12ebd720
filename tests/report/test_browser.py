"""The page in a real browser: it runs without a word in the console, sorts, filters, tells, and fits phone and paper."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from report.browser import Browser

from kvledger.records import Record
from kvledger.report.columns import Value, columns, write, write_range
from kvledger.report.page import _rounded, write_study
from kvledger.report.study import Study, collect

ROWS = "[...document.querySelectorAll('table.all tbody tr')].map(r => [...r.children].map(c => c.textContent))"
HEAD = "[...document.querySelectorAll('table.all thead button')].find(b => b.textContent === '{}')"
SHOWN = "[...document.querySelectorAll('#{} figure')].filter(f => f.getClientRects().length).length"


@pytest.fixture(scope="module")
def path(studied: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(studied, tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture
def page(browser: Browser, path: Path) -> Browser:
    browser.open(path)
    return browser


def column(page: Browser, head: str) -> list[str]:
    place = page.run(
        f"[...document.querySelectorAll('table.all thead button')].map(b => b.textContent).indexOf('{head}')"
    )
    cells = f"[...document.querySelectorAll('table.all tbody tr')].map(r => r.children[{place}].firstChild.textContent)"
    return list(page.run(cells))


def choose(page: Browser, section: str, key: str, value: str) -> None:
    page.run(
        f"""(() => {{ const s = document.querySelector('#{section} select[data-key="{key}"]'); s.value = '{value}';
        s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"""
    )


def test_the_script_runs_without_a_word_in_the_console(page: Browser) -> None:
    assert page.errors == []
    assert page.run("document.querySelectorAll('table.all tbody tr').length") == 150


def test_every_cell_is_written_as_the_rest_of_the_report_writes_it(page: Browser, studied: Study) -> None:
    heads = columns(studied.everything, studied.places)
    page.run("document.getElementById('more').click()")
    shown = page.run(ROWS)
    assert len(shown) > 200
    for row, cells in zip(studied.everything, shown, strict=False):
        values = [Value(*map(_rounded, head.of(row))) for head in heads]
        spans = [write_range(head, value) if head.interval else "" for head, value in zip(heads, values, strict=True)]
        assert cells == [write(h, v) + span for h, v, span in zip(heads, values, spans, strict=True)]


def test_the_table_sorts_both_ways_and_what_has_no_value_comes_last(page: Browser, studied: Study) -> None:
    page.run(HEAD.format("against full") + ".click()")
    assert page.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    best = max(row.against.difference.mean for row in studied.everything if row.against and not row.full)
    first = re.match(r"[−+]?[\d.]+", column(page, "against full")[0])
    assert first is not None
    assert float(first[0].replace("−", "-")) == pytest.approx(100 * best, abs=0.051)
    page.run(HEAD.format("against full") + ".click()")
    values = [
        float(found[0].replace("−", "-"))
        for text in column(page, "against full")
        if (found := re.match(r"[−+]?[\d.]+", text))
    ]
    assert values == sorted(values)
    assert column(page, "against full")[0] != "–"
    page.run(HEAD.format("recipe") + ".click()")
    names = column(page, "recipe")
    assert names == sorted(names)
    assert len(page.run("[...document.querySelectorAll('th[aria-sort]')].map(h => h.textContent)")) == 1


def test_the_table_filters_by_word_and_by_choice(page: Browser, studied: Study) -> None:
    page.run(
        "(() => { const f = document.getElementById('find'); f.value = 'KVzip'; f.dispatchEvent(new Event('input')); })()"
    )
    choose(page, "table", "keep", "0.3")
    choose(page, "table", "mode", "multi-turn")
    wanted = [
        r for r in studied.everything
        if "kvzip" in r.recipe and r.keep == 0.3 and r.setting.mode == "multi-turn"
    ]  # fmt: skip
    assert [row[0] for row in page.run(ROWS)] == [row.recipe for row in wanted]
    assert (
        page.run("document.getElementById('matches').textContent") == f"{len(wanted)} of {len(studied.everything)} rows"
    )


def test_choosing_a_picture_shows_it_and_hides_the_others(page: Browser) -> None:
    before = page.run(SHOWN.format("pareto"))
    choose(page, "pareto", "measure", "peak")
    assert page.run(SHOWN.format("pareto")) == before
    figures = "[...document.querySelectorAll('#pareto figure')].filter(f => f.getClientRects().length)"
    assert set(page.run(f"{figures}.map(f => f.dataset.measure)")) == {"peak"}


def test_a_pointer_on_a_mark_is_told_its_row(page: Browser, studied: Study) -> None:
    mark = "document.querySelector('#pareto figure:not([hidden]) .mark > [data-r]')"
    number = int(page.run(f"{mark}.dataset.r"))
    page.run(f"{mark}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
    told = page.run("document.getElementById('tip').textContent").splitlines()
    row = studied.everything[number]
    assert told[0] == row.recipe
    assert told[1].startswith(f"score {100 * row.score.mean:.1f}")
    assert page.run("document.getElementById('tip').hidden") is False


def test_a_method_can_be_picked_out_with_the_keyboard_alone(page: Browser) -> None:
    page.run("document.querySelector('#pareto .key').focus()")
    page.press("Tab")
    line = page.run("document.activeElement.dataset.line")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # one sees where one is
    page.press(" ")
    lit = "[...new Set([...document.querySelectorAll('[data-line]:not(button):not(.dim)')].map(p => p.dataset.line))]"
    assert page.run(lit) == [line]
    page.press("Enter")
    assert len(page.run(lit)) > 1


def test_the_table_sorts_with_the_keyboard_alone(page: Browser) -> None:
    page.run(HEAD.format("score") + ".focus()")
    page.press("Enter")
    assert page.run("document.querySelector('th[aria-sort]').textContent") == "score"
    named = page.run("[...document.querySelectorAll('input, select')].every(c => c.labels.length === 1)")
    assert named is True


def test_the_download_is_the_table_as_it_is_filtered(page: Browser) -> None:
    choose(page, "table", "keep", "0.3")
    page.run("URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:x'; }")
    page.run("HTMLAnchorElement.prototype.click = () => {}")
    page.run("document.getElementById('download').click()")
    lines = page.run("window.saved.text()").splitlines()
    assert lines[0].startswith("recipe,")
    assert len(lines) - 1 == int(page.run("document.getElementById('matches').textContent").split()[0])


@pytest.mark.parametrize("width, dark", [(1200, False), (1200, True), (390, False), (390, True)])
def test_nothing_sticks_out_and_the_theme_is_followed(browser: Browser, path: Path, width: int, dark: bool) -> None:
    browser.open(path, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)"
    )
    assert browser.errors == []


def test_on_paper_there_are_no_controls_and_no_cut_off_tables(browser: Browser, path: Path) -> None:
    browser.open(path, width=1030, media="print")
    controls = "[...document.querySelectorAll('select, input, button:not(.key, th button)')]"
    assert browser.run(f"{controls}.length") > 10
    assert browser.run(f"{controls}.filter(c => c.getClientRects().length).length") == 0
    assert browser.run("document.documentElement.scrollWidth") == 1030
    paper = browser.send("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert base64.b64decode(paper).startswith(b"%PDF")


def test_hostile_names_stay_text_in_the_browser(browser: Browser, make: Any, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=console.error(1)>\"'&"
    records: list[Record] = [
        make(**dict.fromkeys(("model", "recipe", "method", "task", "prediction", "gold"), evil), turn=turn)
        for turn in (1, 2)
    ]
    browser.open(write_study(collect(records), tmp_path / "evil.html"))
    assert browser.errors == []
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run(ROWS)[0][0] == evil


def test_an_empty_page_and_a_page_of_one_record_are_calm(browser: Browser, make: Any, tmp_path: Path) -> None:
    for records in ([], [make()]):
        browser.open(write_study(collect(records), tmp_path / "a.html"))
        assert browser.errors == []
