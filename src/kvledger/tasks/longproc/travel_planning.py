"""LongProc's travel planning (arXiv 2501.05414, section 3, after NATURAL PLAN, arXiv 2406.04520; data and code Apache-2.0,
none of the code is copied).

Arrange cities with given stays, some on fixed days, so that each step is a direct flight; a depth-first search is written
down.  `procedure` writes LongProc's reference texts character for character.  Right score: any plan that meets all
requirements counts; LongProc's (`gold_plan`) takes only the one its search finds first.  Deviations: the problems are ours
(3 to 8 cities, stays of 2 to 7 days, up to 2 fixed); the one worked example has two cities; a longer context has more
problems, one of which is asked for; the `small` form has 3 or 4 cities of syllables.
"""

from __future__ import annotations

import json
import random
import re
import string
from itertools import pairwise

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft
from kvledger.tasks.longproc.frame import Tier, numbered, seeded, tagged
from kvledger.tasks.longproc.trip import Search, Stay, Trip, problem, procedure
from kvledger.tasks.scorers import Golds
from kvledger.tasks.words import distinct, syllables

CITIES = (
    "Amsterdam,Athens,Barcelona,Berlin,Brussels,Bucharest,Budapest,Copenhagen,Dublin,Edinburgh,Florence,Frankfurt,Geneva,Hamburg,"
    "Helsinki,Istanbul,Krakow,Lisbon,London,Lyon,Madrid,Manchester,Milan,Munich,Naples,Nice,Oslo,Paris,Porto,Prague,Riga,Rome,"
    "Salzburg,Seville,Sofia,Split,Stockholm,Tallinn,Valencia,Venice,Vienna,Vilnius,Warsaw,Zurich"
)
LINES: dict[Form, dict[Tier, tuple[int, int]]] = {
    "small": {"2k": (41, 60), "8k": (61, 120)},
    "full": {"2k": (41, 100), "8k": (205, 410)},
}
COUNTS: dict[Form, dict[Tier, tuple[int, int]]] = {
    "small": {"2k": (3, 3), "8k": (4, 4)},
    "full": {"2k": (3, 5), "8k": (6, 8)},
}
INSTRUCTION = (
    "Plan a trip: visit every city for its stay, by direct flights only, which go one way. The day of a flight counts for both "
    "cities. Cities with a fixed schedule must be visited on those days. Any city may be the first. Search from Day 1: if the "
    "day is fixed follow it, else try the cities needing arrangement in order; check the flight, then the next fixed schedule. "
    "Write the search down as in the example between <Solving Procedure> and </Solving Procedure>, then the plan between "
    "<Plan> and </Plan>.\n\n"
)
ASK = "Find a trip plan of visiting the cities for {} days by taking direct flights to commute between them.\n\n"
VISIT = re.compile(
    r"Day (\d{1,4})-(\d{1,4})\W+(?:Arriving in .{1,40} and )?visit (.{1,40}?) for \d{1,4} days?", re.IGNORECASE
)
FLIGHT = re.compile(r".*Day (\d+).*from (\w+) to (\w+)")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
READ = 100_000  # characters of a plan


def _draw(rng: random.Random, cities: int, form: Form) -> Trip:
    names = rng.sample(CITIES.split(","), cities) if form == "full" else distinct(lambda: syllables(rng, 2), cities)
    stays = [(name, rng.randint(2, 7)) for name in names]
    schedule, day = [], 1
    for name, days in stays:
        schedule.append((name, day, day + days - 1))
        day += days - 1
    fixed = rng.sample(schedule, rng.randint(0, 2 if cities > 3 else 1))
    flights = {(a[0], b[0]) for a, b in pairwise(stays)}
    pairs = [(a, b) for a in names for b in names if a != b and (a, b) not in flights]
    flights |= set(rng.sample(pairs, rng.randint(0, len(pairs) // 2)))
    return Trip(tuple(rng.sample(stays, cities)), tuple(fixed), tuple(rng.sample(sorted(flights), len(flights))))


def _drawn(rng: random.Random, cities: tuple[int, int], lines: tuple[int, int], form: Form) -> Search:
    while True:
        search = Search(_draw(rng, rng.randint(*cities), form), lines[1])
        if search.found and lines[0] <= len(search.lines) <= lines[1]:
            return search


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` problems; those asked for have a search of the tier's length."""
    own, hay = seeded(rng), seeded(rng)
    low, high = COUNTS[form][tier]
    searches = [_drawn(own, (low, high), LINES[form][tier], form) for _ in range(turns)]
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    example = _drawn(own, (2, 2), (20, 36), form)
    ask = ASK.format(example.trip.days)
    draft.add("demos", f"# Example\n{problem(example.trip)}\n\n{ask}{procedure(example)}\n\n")
    asked = [problem(search.trip) for search in searches]
    numbers, spans = numbered(draft, rng, asked, size, lambda: problem(_draw(hay, hay.randint(low, high), form)))
    turns_ = []
    for search, number, span in zip(searches, numbers, spans, strict=True):
        which = f"For problem {number}: " if size > 1 else ""
        gold = procedure(search)
        golds = (gold, requirements(search.trip))
        turns_.append(Turn(which + ASK.format(search.trip.days), gold, golds, 0, (span,)))
    return draft.sample(f"longproc/travel_planning_{tier}", turns_)


def requirements(trip: Trip) -> str:
    """What a plan has to meet, as JSON."""
    return json.dumps({"stays": trip.stays, "fixed": trip.fixed, "flights": trip.flights})


def stays_of(text: str) -> list[Stay]:
    """The visits of a plan, in order: what stands between its tags, or the whole text where there are none."""
    said = tagged(text, "Plan")
    lines = (text if said is None else said)[:READ].split("\n")
    found = [read for line in lines if (read := VISIT.search(line[:300]))]
    return [(read[3], int(read[1]), int(read[2])) for read in found]


def valid_plan(prediction: str, golds: Golds) -> float:
    """1 if the plan meets every requirement of golds[1] (JSON of `requirements`); without one, if it is that of golds[0]."""
    if tagged(prediction, "Plan") is None:
        return 0.0
    plan = stays_of(prediction)
    if len(golds) < 2:
        return float(plan == stays_of(golds[0]))
    need = json.loads(golds[1])
    lengths = sorted([city, last - first + 1] for city, first, last in plan)
    flown = [[a[0], b[0]] for a, b in pairwise(plan)]
    meets = (
        lengths == sorted(need["stays"]),
        [stay[1] for stay in plan] == [1, *(stay[2] for stay in plan[:-1])],
        all(tuple(stay) in plan for stay in need["fixed"]),
        all(flight in need["flights"] for flight in flown),
    )
    return float(all(meets))


def gold_plan(prediction: str, golds: Golds) -> float:
    """LongProc's accuracy: cities and stays, read off the flights, begin with those of the gold plan."""
    said = tagged(prediction, "Plan")
    meant = [(city, last - first + 1) for city, first, last in stays_of(golds[0])]
    return float(bool(meant) and said is not None and _flown(said)[: len(meant)] == meant)


def _flown(plan: str) -> list[tuple[str, int]]:
    """City and days of each stay as NATURAL PLAN reads them: from the flights' days; the last range says the last day."""
    ranges, flights = [], []
    for line in plan[:READ].split("\n"):
        ranges += re.findall(r"\d{1,9}-\d{1,9}", line[:300])[:1]
        flights += FLIGHT.findall(line[:300])[:1]
    if not ranges or not flights:
        return []
    days = [1, *(int(day) for day, _, _ in flights), int(ranges[-1].split("-")[1])]
    cities = [flights[0][1], *(city for _, _, city in flights)]
    return [(city, days[i + 1] - days[i] + 1) for i, city in enumerate(cities)]


def partial(prediction: str, golds: Golds) -> float:
    """LongProc's partial credit: 1 for the gold plan, else lines before the first that does not hold the gold's, over all."""
    if gold_plan(prediction, golds):
        return 1.0
    said, meant = (_lines(text) for text in (prediction, golds[0]))
    pairs = list(zip(said, meant, strict=False))
    wrong = next((i for i, (mine, theirs) in enumerate(pairs) if theirs not in mine), len(pairs) - 1)
    return max(wrong, 0) / len(meant)


def _lines(text: str) -> list[str]:
    text = text.replace("Output the plan in the required format:", "")
    if "<Solving Procedure>" in text:
        text = "<Solving Procedure>" + text.split("<Solving Procedure>")[1]
    drop = str.maketrans("", "", string.punctuation)
    lines = (line.lower().translate(drop) for line in text.strip().split("\n") if line.strip())
    return [" ".join(ARTICLES.sub(" ", line).split()) for line in lines]
