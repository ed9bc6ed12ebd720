"""Summaries of made-up reports, in place of SCBench's En.Sum and Mix.Sum+NIAH (arXiv 2412.10319, table 2).

Those concatenate arXiv papers and compare with summaries that GPT-4 wrote.  Here a text holds reports on surveys, each with
four findings that lie apart among prose, and a question asks for the findings of one report.  The score is the share of
its facts that the answer names in at most twice the reference's words, so neither copying nor fluent nothing helps.  The
mix asks for pass keys too, five of which lie between the sentences.  Named `_alike`: not to be set beside published scores.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

from kvledger.tasks import prose
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.qa import name
from kvledger.tasks.retrieval import NOISE
from kvledger.tasks.words import distinct, number, syllables

REPORTS = {"small": 3, "full": 8}  # at least
KEYS = 5
READ = "Read the reports below.\n\n"
SAYS = (
    "The {title} survey was led by {what}.",
    "The {title} survey was carried out at {what}.",
    "The {title} survey found a seam of {what}.",
    "The {title} survey counted {what} stones.",
)
SAYS_SMALL = ("{title} led by {what}.", "{title} was at {what}.", "{title} found {what}.", "{title} counted {what}.")
KEY_SAYS = "The pass key of {title} is {what}. Remember it."
ASK = (
    "\n\nSummarize the {title} survey in at most four sentences: who led it, where it was carried out, what it found and what "
    "it counted.\n"
)
ASK_SMALL = "\n\nWhat of {title}? Tell who led it, where it was, what it found and counted.\n"
KEY_ASK = "\n\nWhat is the pass key of {title}? The pass key is "


@dataclass
class Report:
    """Its title, the four values, and where the sentences stand that hold them."""

    title: str
    values: tuple[str, ...]
    spans: list[Span] = field(default_factory=list)


def summary(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` sentences of filler with the findings of the reports among them; a question asks for one report."""
    draft = Draft()
    draft.add("instruction", READ)
    reports = _reports(rng, turns, form)
    _write(rng, draft, reports, [], size, form)
    picks = [reports[i] for i in stratify(rng, len(reports), turns)]
    return draft.sample("scbench/summary_alike", [_turn(report, form, 200) for report in picks])


def with_needles(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """The same with pass keys; questions of both kinds take turns."""
    draft = Draft()
    draft.add("instruction", READ)
    reports = _reports(rng, (turns + 1) // 2, form)
    titles = distinct(lambda: _name(rng, form), max(KEYS, turns), {report.title for report in reports})
    values = distinct(lambda: number(rng, "full"), len(titles))
    keys = [Report(title, (value,)) for title, value in zip(titles, values, strict=True)]
    _write(rng, draft, reports, keys, size, form)
    half = (turns + 1) // 2
    sums = [_turn(reports[i], form, 800) for i in stratify(rng, len(reports), half)]
    needles = [_key_turn(keys[i]) for i in rng.sample(range(len(keys)), half)]
    both = [turn for pair in zip(sums, needles, strict=True) for turn in pair]
    first = rng.randrange(2)
    asked = both if first else [turn for i in range(0, len(both), 2) for turn in (both[i + 1], both[i])]
    return draft.sample("scbench/summary_with_needles_alike", asked[:turns])


def _name(rng: random.Random, form: Form) -> str:
    return syllables(rng, 2) if form == "small" else name(rng)


def _reports(rng: random.Random, turns: int, form: Form) -> list[Report]:
    count = max(turns, REPORTS[form])
    names = distinct(lambda: _name(rng, form), 4 * count)
    numbers = distinct(lambda: number(rng, "full"), count)
    return [Report(names[4 * i], (*names[4 * i + 1 : 4 * i + 4], numbers[i])) for i in range(count)]


def _write(rng: random.Random, draft: Draft, reports: list[Report], keys: list[Report], size: int, form: Form) -> None:
    """Report after report: its share of the filler with its findings in places of their own; the keys anywhere."""
    due: dict[int, list[tuple[Report, str, str]]] = {}
    says = SAYS_SMALL if form == "small" else SAYS
    for number_, report in enumerate(reports):
        low, high = (size * n // len(reports) for n in (number_, number_ + 1))
        for place, said, value in zip(sorted(rng.randint(low, high) for _ in says), says, report.values, strict=True):
            due.setdefault(place, []).append((report, said, value))
    for key, place in zip(keys, stratify(rng, size + 1, len(keys)), strict=True):
        due.setdefault(place, []).append((key, KEY_SAYS, key.values[0]))
    filler: Iterator[str] = prose.sentences(rng) if form == "full" else (text.strip() for text in cycle(NOISE))
    for place in range(size + 1):
        for report, said, value in due.get(place, []):
            report.spans.append(draft.add("context", said.format(title=report.title, what=value)))
            draft.add("context", " ")
        if place < size:
            draft.add("context", next(filler) + (" " if place % 12 < 11 else "\n\n"))


def _turn(report: Report, form: Form, cap: int) -> Turn:
    ask, says = (ASK_SMALL, SAYS_SMALL) if form == "small" else (ASK, SAYS)
    whole = " ".join(
        said.format(title=report.title, what=value) for said, value in zip(says, report.values, strict=True)
    )
    golds = (whole, *report.values)
    return Turn(
        ask.format(title=report.title),
        whole,
        golds,
        60 if form == "small" else cap,
        tuple(report.spans),
        0.0,
        "summary",
    )


def _key_turn(key: Report) -> Turn:
    return Turn(KEY_ASK.format(title=key.title), key.values[0], key.values, 15, tuple(key.spans), 0.0, "passkey")
