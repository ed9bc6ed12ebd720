"""LongProc's HTML to TSV (arXiv 2501.05414, section 3; data and code Apache-2.0, none of it copied; its 255 pages are others').

The pages here are made up: tables of records, rendered as a table, as cards or as a list, between menus, scripts, styles and
prose; one section is asked for, as TSV, sometimes only the rows that meet a condition.  Each record's name is on the page
exactly once; other cells are not (a small set of values comes again and again).  Deviations: no real page; a longer context
has more of the page around the section, whose rows depend on the tier alone; the `small` form has two columns of syllables
and numbers, 3, 6 or 12 rows, and no conditions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.longproc.frame import Tier, seeded
from kvledger.tasks.longproc.path_traversal import city
from kvledger.tasks.prose import sentences
from kvledger.tasks.words import distinct, syllables

ROWS: dict[Form, dict[Tier, tuple[int, int]]] = {
    "small": {"0.5k": (3, 3), "2k": (6, 6), "8k": (12, 12)},
    "full": {"0.5k": (12, 28), "2k": (45, 75), "8k": (150, 210)},
}
KINDS = (
    "Museums,Libraries,Bakeries,Hotels,Gardens,Theaters,Bookshops,Markets,Harbors,Workshops,Schools,Clinics,Archives"
)
STATES = ("open", "closed", "by appointment", "seasonal")
BLOCK = 12  # lines of a section of the rest of the page
WAYS = ("table", "cards", "list")
INSTRUCTION = (
    "Extract information from the HTML page below as TSV. Give every item that is asked for, in the order of the page, with a "
    "tab between its properties, between ```tsv and ```. Leave out tags. Write N/A where a property is missing.\n\n"
)
Record = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading and its records; the columns name the cells."""

    title: str
    columns: tuple[str, ...]
    records: tuple[Record, ...]
    way: str

    def lines(self) -> Iterator[str]:
        """The rendered lines: opening, one per record, closing."""
        yield f"<section>\n<h2>{self.title}</h2>\n"
        if self.way == "table":
            yield "<table>\n<tr>" + "".join(f"<th>{name}</th>" for name in self.columns) + "</tr>\n"
            yield from ("<tr>" + "".join(f"<td>{cell}</td>" for cell in record) + "</tr>\n" for record in self.records)
            yield "</table>\n</section>\n"
        else:
            tag, item = ("div", "div class='card'") if self.way == "cards" else ("ul", "li")
            yield f"<{tag}>\n"
            for record in self.records:
                cells = "".join(f"<span>{name}: {cell}</span>" for name, cell in zip(self.columns, record, strict=True))
                yield f"<{item}>{cells}</{item.split()[0]}>\n"
            yield f"</{tag}>\n</section>\n"


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """A page with `size` lines besides the sections asked for."""
    own, hay = seeded(rng), seeded(rng)
    titles = distinct(lambda: _title(own, form), turns)
    names = set(titles)
    wanted = [_section(own, title, own.randint(*ROWS[form][tier]), form, names) for title in titles]
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    draft.add("context", "```html\n<html>\n<body>\n")
    blocks = -(-size // BLOCK)
    due: dict[int, list[int]] = {}
    for i, place in enumerate(stratify(rng, blocks + 1, turns)):
        due.setdefault(place, []).append(i)
    spans: list[list[Span]] = [[] for _ in wanted]
    for block in range(blocks + 1):
        for i in due.get(block, []):
            spans[i] = _add(draft, wanted[i])
        if block < blocks:
            _rest(draft, hay, min(BLOCK, size - block * BLOCK), form, names)
    draft.add("context", "</body>\n</html>\n```\n")
    filtered = form == "full" and tier != "0.5k"
    asked = [_turn(own, section, mine, filtered) for section, mine in zip(wanted, spans, strict=True)]
    return draft.sample(f"longproc/html_to_tsv_{tier}", asked)


def _title(rng: random.Random, form: Form) -> str:
    return syllables(rng, 3) if form == "small" else f"{rng.choice(KINDS)} in {city(rng)}"


def _section(rng: random.Random, title: str, rows: int, form: Form, taken: set[str]) -> Section:
    way = rng.choice(WAYS)
    if form == "small":
        names = distinct(lambda: syllables(rng, 3), rows, taken)
        return Section(title, ("name", "number"), tuple((name, str(rng.randint(10, 99))) for name in names), way)
    names = distinct(lambda: f"{city(rng)} {rng.choice(KINDS)[:-1]} {rng.randint(1, 999)}", rows, taken)
    columns = ("name", "street", "founded", "state", "price")[: rng.randint(3, 5)]
    if "state" not in columns:
        columns = (*columns[:2], "state")
    return Section(title, columns, tuple(_record(rng, name, columns) for name in names), way)


def _record(rng: random.Random, name: str, columns: tuple[str, ...]) -> Record:
    cells = {
        "name": name,
        "street": f"{rng.randint(1, 240)} {city(rng)} Road",
        "founded": str(rng.randint(1700, 2020)),
        "state": rng.choice(STATES),
        "price": f"${rng.randint(2, 90)}.{rng.choice(('00', '50', '95'))}" if rng.random() < 0.9 else "N/A",
    }
    return tuple(cells[column] for column in columns)


def _add(draft: Draft, section: Section) -> list[Span]:
    """Adds a section; the spans of its records' lines."""
    opening = 2
    return [
        span
        for i, line in enumerate(section.lines())
        if (span := draft.add("context", line)) and opening <= i < opening + len(section.records)
    ]


def _rest(draft: Draft, rng: random.Random, lines: int, form: Form, taken: set[str]) -> None:
    """Adds `lines` lines of the rest of a page: prose, a menu, a script, or another section."""
    kind = rng.choice(("prose", "menu", "script", "section", "section", "section"))
    if kind == "section" and lines > 2:
        draft.add("context", "".join(_section(rng, _fresh(rng, form, taken), lines - 2, form, taken).lines()))
    elif kind == "menu":
        draft.add(
            "context", "".join(f'<a href="#{rng.randint(10, 99)}">{_title(rng, form)}</a>\n' for _ in range(lines))
        )
    elif kind == "script":
        draft.add("context", "".join(f"<script>track({rng.randint(10, 99)}, {i})</script>\n" for i in range(lines)))
    else:
        text = sentences(rng)
        draft.add("context", "".join(f"<p>{next(text)}</p>\n" for _ in range(lines)))


def _fresh(rng: random.Random, form: Form, taken: set[str]) -> str:
    return distinct(lambda: _title(rng, form), 1, taken)[0]


def _turn(rng: random.Random, section: Section, spans: list[Span], filtered: bool) -> Turn:
    records, only = section.records, ""
    if filtered and rng.random() < 0.5:
        state = rng.choice(sorted({record[section.columns.index("state")] for record in records}))
        kept = [i for i, record in enumerate(records) if record[section.columns.index("state")] == state]
        records, spans = tuple(records[i] for i in kept), [spans[i] for i in kept]
        only = f" Give only the items whose state is {state}."
    header = "\t".join(section.columns)
    properties = "; ".join(f"({i}) {name}" for i, name in enumerate(section.columns, 1))
    tsv = "\n".join([header, *("\t".join(record) for record in records)])
    what = f"Extract these properties of the items under {section.title}: {properties}.{only}"
    return Turn(f"\n{what}\nThe header is: {header}\n\n", f"```tsv\n{tsv}\n```", (tsv,), 0, tuple(spans))
