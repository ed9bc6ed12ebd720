"""LongProc's path traversal (arXiv 2501.05414, section 3; data and code Apache-2.0, none of the code is copied).

Every city has one way out, so there is one route; it is written down step by step.  `follow` gives LongProc's reference
texts character for character.  Deviations: the city names are made up; the route has the length of its tier (24, 29, 34 or
39 steps, or 4 or 16 times as many: the sizes of LongProc's longer tiers are taken from their answers' length), and a longer
context adds cities beside it; with several turns there are several routes, and as many cities without a way out; the
`small` form has cities of syllables and 3, 6 or 12 steps.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span
from kvledger.tasks.longproc.frame import Tier, tagged
from kvledger.tasks.scorers import Golds
from kvledger.tasks.words import distinct, syllables

TRANSIT = ("bus", "train", "plane", "ferry")
STEPS = (24, 29, 34, 39)
CITIES = 50  # of a context of the shortest tier
TIMES: dict[Tier, int] = {"0.5k": 1, "2k": 4, "8k": 16}
SMALL: dict[Tier, int] = {"0.5k": 3, "2k": 6, "8k": 12}
MANY = 6500  # cities; beyond so many, names are longer
EDGE = re.compile(r"You can travel from (.+?) to (.+?) by (\w+)\.")
Edge = tuple[str, str, str]
INSTRUCTION = (
    "Each city below has a one-way connection to only one other city. Find the route from one city to another by going on to "
    "the next city until you are there. Write it down between <Route> and </Route>, a line for each step:\n"
    "From <CITY>, take a <TRANSIT> to <CITY>.\n\n"
)
ASK = "\nNow find the route from {} to {} based on the information above.\n\n"
STEMS = (
    "alder amber arden ash barn beck birch black bram brook brun carl cedar chal clay cold corn crest dal dun east elm fair "
    "fal farn fen fern glen gold gran green hal ham hart hazel heath hol iron kel ken kirk lake lang lin lor lynd mar mel "
    "mill mor nor oak old pen pine ram red rose row salt sel shel stan stone thorn tor wal war west white wil win wood wyn"
)
ENDS = (
    "borough bridge bury by cester combe dale den fell field ford gate ham haven hill hurst ley mere mouth ness port ridge "
    "side stead stoke ton wall water well wick wood worth"
)
PLAIN = tuple((stem + end).capitalize() for stem in STEMS.split() for end in ENDS.split())
BEFORE = ("New ", "Port ", "Upper ", "Great ", "South ", *[""] * 10)


def city(rng: random.Random, longer: bool = False) -> str:
    """One of some 17,000 made-up names, a third of those drawn of two words; of many millions if it may be `longer`."""
    draw = rng.random
    name = BEFORE[int(draw() * len(BEFORE))] + PLAIN[int(draw() * len(PLAIN))]
    return f"{name} on {PLAIN[int(draw() * len(PLAIN))]}" if longer else name


def stated(edge: Edge) -> str:
    return f"{edge[0]} is a lively city. You can travel from {edge[0]} to {edge[1]} by {edge[2]}."


def step(edge: Edge) -> str:
    return f"From {edge[0]}, take a {edge[2]} to {edge[1]}."


def follow(context: str, start: str, goal: str) -> str:
    """The reference route, a line a step. ValueError if the goal cannot be reached from the start."""
    ways = {source: (source, target, by) for source, target, by in EDGE.findall(context)}
    lines: list[str] = []
    here = start
    while here != goal:
        if here not in ways or len(lines) > len(ways):
            raise ValueError(f"no route from {start!r} to {goal!r}")
        lines.append(step(ways[here]))
        here = ways[here][1]
    return "\n".join(lines)


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` cities besides those of the shortest context, with one route a turn."""
    lengths = [SMALL[tier] if form == "small" else rng.choice(STEPS) * TIMES[tier] for _ in range(turns)]
    on = sum(lengths) + turns
    cities = size + (on if form == "small" else max(on, CITIES * TIMES[tier]))
    names = distinct(
        lambda: city(rng, cities > MANY) if form == "full" else syllables(rng, 2 + (cities > MANY)), cities
    )
    edges, routes, at = [], [], 0
    for length in lengths:
        way = names[at : at + length + 1]
        at += length + 1
        routes.append([(a, b, rng.choice(TRANSIT)) for a, b in pairwise(way)])
        edges += routes[-1]
    for name in names[at:]:
        while (target := rng.choice(names)) == name:
            pass
        edges.append((name, target, rng.choice(TRANSIT)))
    rng.shuffle(edges)
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    spans = _written(draft, edges, {edge for route in routes for edge in route})
    return draft.sample(f"longproc/path_traversal_{tier}", [_turn(route, spans) for route in routes])


def _written(draft: Draft, edges: list[Edge], wanted: set[Edge]) -> dict[Edge, Span]:
    spans: dict[Edge, Span] = {}
    for edge in edges:
        span = draft.add("context", stated(edge))
        draft.add("context", "\n")
        if edge in wanted:
            spans[edge] = span
    return spans


def _turn(route: list[Edge], spans: dict[Edge, Span]) -> Turn:
    lines = "\n".join(map(step, route))
    evidence = tuple(sorted(spans[edge] for edge in route))
    return Turn(ASK.format(route[0][0], route[-1][1]), f"<Route>\n{lines}\n</Route>", (lines,), 0, evidence)


def exact(prediction: str, golds: Golds) -> float:
    """1 if what stands between the route's tags is the gold route (LongProc's accuracy)."""
    return float(tagged(prediction, "Route") == golds[0].strip())


def partial(prediction: str, golds: Golds) -> float:
    """LongProc's partial credit: lines up to and with the first wrong one, over all; one too many, as published."""
    said, meant = tagged(prediction, "Route"), golds[0].strip().split("\n")
    if said is None:
        return 0.0
    pairs = list(zip(meant, said.split("\n"), strict=False))
    wrong = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs) - 1)
    return (wrong + 1) / len(meant)
