"""Figures and tables as files: a PDF whose parts are where it says, CSV that is read back, LaTeX that is well-formed."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kvledger.records import Record
from kvledger.report import cascade, pdf, svg
from kvledger.report.export import escape, panels, tables, write_figures, write_tables
from kvledger.report.study import Study, collect

Make = Callable[..., Record]


def objects(data: bytes) -> dict[int, bytes]:
    """number -> body of each object, found by the table at the end of the file."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])  # type: ignore[index]
    count, table = re.match(
        rb"xref\n0 (\d+)\n((?:\d{10} \d{5} [nf] \n)+)trailer\n<< /Size \1 /Root 1 0 R >>", data[start:]
    ).groups()  # type: ignore[union-attr]
    places = [int(line[:10]) for line in table.splitlines()]
    assert len(places) == int(count)
    found = {}
    for number, place in enumerate(places[1:], start=1):
        head = b"%d 0 obj\n" % number
        assert data[place:].startswith(head)
        found[number] = data[place + len(head) : data.index(b"\nendobj", place)]
    return found


def content(data: bytes) -> str:
    """The drawing of the page, unpacked; its length is the one that is told."""
    body = objects(data)[4]
    length, stream = int(re.search(rb"/Length (\d+)", body)[1]), body.split(b"stream\n", 1)[1]  # type: ignore[index]
    assert stream[length:] == b"\nendstream"
    return zlib.decompress(stream[:length]).decode("cp1252")


def drawing(inside: str) -> str:
    """The operators after the page's own first line."""
    return content(pdf.page(f'<svg viewBox="0 0 100 50" class="plot">{inside}</svg>')).split("\n", 1)[1]


def test_a_pdf_is_what_its_table_says(studied: Study) -> None:
    for section, panel in list(panels(studied, "0.3"))[::17]:
        data = pdf.page(panel.svg)
        assert data.startswith(b"%PDF-1.4\n"), section
        width, height = ET.fromstring(panel.svg).attrib["viewBox"].split()[2:]
        assert f"/MediaBox [0 0 {width} {height}]".encode() in objects(data)[3]
        drawn = content(data)
        states = set(re.findall(r"/(G\d+) gs", drawn))
        assert states <= set(re.findall(r"/(G\d+) <<", objects(data)[3].decode()))
        assert drawn.count("q ") == drawn.count(" Q")
        assert drawn.count("BT ") == drawn.count(" ET")


def test_everything_that_is_drawn_in_svg_is_drawn_in_pdf(studied: Study) -> None:
    by_section = dict(panels(studied, "0.3"))
    assert set(by_section) == {"pareto", "differences", "turns", "depth", "memory"}
    for panel in by_section.values():
        root, drawn = ET.fromstring(panel.svg), content(pdf.page(panel.svg))
        texts = [element.text for element in root.iter("text")]
        assert drawn.count(" 0 Tr ") == len(texts)
        shapes = sum(element.tag in ("line", "rect", "circle", "path") for element in root.iter())
        assert drawn.count(" gs ") == shapes + len(texts)


def test_shapes_lie_where_they_should() -> None:
    assert "10 20 m 30 40 l" in drawing('<line x1="10" y1="20" x2="30" y2="40" class="grid"/>')
    assert "1 2 3 4 re f" in drawing('<rect x="1" y="2" width="3" height="4" class="band"/>')
    assert drawing('<path d="M1,2h3v4l-3,-1z" class="mark on" style="--c:var(--c0)"/>').count(" l") == 3
    assert "1.00 2.00 m 4.00 2.00 l 4.00 6.00 l 1.00 5.00 l h B" in drawing(
        '<path d="M1,2h3v4l-3,-1z" class="mark on" style="--c:var(--c0)"/>'
    )
    circle = drawing('<circle cx="10" cy="20" r="5"/>')
    ends = re.findall(r"([\d.]+) ([\d.]+) c", circle)
    assert ends == [("10.00", "25.00"), ("5.00", "20.00"), ("10.00", "15.00"), ("15.00", "20.00")]


def test_words_are_set_from_their_anchor_and_escaped() -> None:
    place = r"1 0 0 -1 ([\d.]+) 20.00 Tm 0 Tr \((.*?)\) Tj"
    starts = {}
    for anchor in ("start", "middle", "end"):
        found = re.search(place, drawing(f'<text x="50" y="20" text-anchor="{anchor}">iW</text>'))
        assert found is not None
        starts[anchor] = float(found[1])
    width = (222 + 944) / 1000 * 10.5
    assert starts == {
        "start": 50,
        "middle": pytest.approx(50 - width / 2, abs=0.01),
        "end": pytest.approx(50 - width, abs=0.01),
    }
    assert r"(a\(b\)\\c \x96 \x97)".replace(r"\x96", "–").replace(r"\x97", "…") in drawing(
        '<text x="0" y="0">a(b)\\c − …</text>'
    )


def test_an_element_without_a_counterpart_is_refused() -> None:
    with pytest.raises(ValueError, match="<ellipse> has no counterpart"):
        drawing('<ellipse cx="1" cy="1" rx="2" ry="1"/>')
    with pytest.raises(ValueError, match="path with 'C'"):
        drawing('<path d="M0,0C1,1,2,2,3,3"/>')


def test_the_cascade_does_what_a_browser_does() -> None:
    root = ET.fromstring(
        '<svg class="plot"><g class="series" style="--c:var(--c2)"><path class="line"/><g class="mark on"><circle/></g></g>'
        '<g class="cells"><rect/><rect class="none"/><text/></g><text class="label halo" style="--c:var(--c1)"/></svg>'
    )
    styles = [(element.tag, style) for element, style in cascade.styled(root)]
    variables = dict(re.findall(r"--(\w+): (#\w+)", svg.style_sheet().split("@media")[0]))
    line, circle = styles[2][1], styles[4][1]
    assert (line["stroke"], line["fill"]) == (variables["c2"], "none")
    assert (circle["fill"], circle["stroke-width"]) == (variables["c2"], "1.5")
    tile, empty, number = (styles[n][1] for n in (6, 7, 8))
    assert (tile["fill"], empty["fill"]) == (variables["heat"], variables["band"])
    assert (number["fill"], number["text-anchor"]) == (variables["ink"], "middle")
    assert styles[9][1]["stroke"] == variables["paper"]


def test_each_figure_is_two_files_of_its_own_name(make: Make, tmp_path: Path) -> None:
    records = [make(recipe=r, turn=t, depth=0.4) for r in ("full", "snapkv(keep=0.5)") for t in (1, 2)]
    study = collect(records)
    made = write_figures(study, tmp_path / "deep" / "figures")
    assert len(made) == len(set(made)) == 2 * len(list(panels(study)))
    assert {path.name for path in made} >= {
        "pareto-kv-multi_turn-hidden-256-peak.pdf",
        "depth-kv-multi_turn-hidden-256.svg",
    }
    for path in made:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag == f"{{{svg.NAMESPACE}}}svg"
        else:
            objects(path.read_bytes())


# ---- tables ----


def test_csv_holds_every_number_as_it_is(studied: Study, tmp_path: Path) -> None:
    made = write_tables(studied, tmp_path)
    names = {"numbers", "turns", "depth", "glance-1", "glance-2", *(f"critical-{number}" for number in range(1, 9))}
    assert {path.name for path in made} == {f"{name}.{kind}" for name in names for kind in ("csv", "tex")}
    with (tmp_path / "numbers.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(studied.everything)
    for row, line in zip(studied.everything, lines, strict=True):
        assert (line["recipe"], line["task"]) == (row.recipe, row.setting.task)
        assert float(line["score"]) == pytest.approx(row.score.mean, rel=1e-5)
        assert float(line["score low"]) == pytest.approx(row.score.low, rel=1e-5)
        assert float(line["peak bytes"]) == pytest.approx(row.memory.peak_bytes, rel=1e-5)
        assert (line["against full"] == "") == (row.against is None or row.full)
    with (tmp_path / "turns.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == sum(len(row.by_turn) for row in studied.everything)


def test_latex_has_as_many_cells_in_each_line_as_columns(studied: Study, tmp_path: Path) -> None:
    for path in write_tables(studied, tmp_path)[1::2]:
        text = path.read_text(encoding="utf-8")
        aligned = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert aligned is not None
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(body) > 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(aligned[1])}
        assert not re.search(r"(?<!\\)[%#]", text.split("\n", 1)[1])


def test_untrusted_words_cannot_leave_their_cell(make: Make, tmp_path: Path) -> None:
    evil = 'a,"b"\n& \\input{x} $ % _ ^ ~ # { }\x00'
    study = collect([make(recipe=evil, method=evil, task=evil)])
    assert tables(study)
    made = write_tables(study, tmp_path)
    with (tmp_path / "numbers.csv").open(encoding="utf-8", newline="") as file:
        (line,) = list(csv.DictReader(file))
    assert line["recipe"] == evil.replace("\x00", "")
    text = next(path for path in made if path.name == "numbers.tex").read_text(encoding="utf-8")
    assert r"\textbackslash{}input\{x\}" in text
    assert escape("50 %_") == r"50 \%\_"
