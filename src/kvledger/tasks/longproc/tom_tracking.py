"""LongProc's theory-of-mind tracking (arXiv 2501.05414, section 3; data and code Apache-2.0, none of the code is copied).

Two people carry two objects about two rooms; where one is, where an object is and where it is believed to be is written
down after every step.  `track` gives LongProc's reference texts character for character.  Right score: the final answer
counts as well as every line; LongProc's never reads it.  Deviations: names and things are our lists; no worked example; a
longer context has more stories (of the shortest tier), one of which is asked for; the 8K tier has 150 steps (its real size
is not known); the `small` form has names of syllables and 3, 6 or 12 steps.
"""

from __future__ import annotations

import random
import re
import string

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft
from kvledger.tasks.longproc.frame import Tier, numbered, seeded
from kvledger.tasks.scorers import Golds
from kvledger.tasks.words import distinct, syllables

STEPS: dict[Form, dict[Tier, int]] = {
    "small": {"0.5k": 3, "2k": 6, "8k": 12},
    "full": {"0.5k": 10, "2k": 40, "8k": 150},
}
NAMES = "Ada,Ben,Clara,Dora,Edgar,Fiona,Gus,Hanna,Ivan,Julia,Karl,Lena,Max,Nora,Oscar,Paula,Rita,Simon,Tessa,Victor"
OBJECTS = "stapler,candle,screwdriver,notebook,whistle,magnet,thimble,postcard,marble,ruler,hairbrush,battery,coin,tape measure"
ROOMS = "kitchen,attic,garage,study,pantry,hallway,cellar,workshop,bedroom,laundry room,sunroom,library"
PLACES = "shelf,drawer,table,cupboard,stool,basket,windowsill,cabinet,crate,bench"
EVENTS = {"move": 34, "shift": 19, "carry": 18, "leave": 16}
"""How often each event is drawn, in percent, where it is possible; who has left can only enter."""
INSTRUCTION = (
    "In a story, people move objects about. Track where a person is, where an object is and where the person believes it is, "
    "step by step. Whoever is in the room of an object sees it and knows its place; otherwise the belief stays. Who left a "
    "room and entered none is nowhere (None). Write a line for each step:\n"
    "- Step 0: (initial state) {X location: ...; y location: ...; X sees y: ...; X's belief on y: ...}\n"
    "- Step 1: (X location changed; y location unchanged) {...}\n"
    "and at last: Final Answer: the ...\n\n"
)
EVENT = re.compile(
    r"Step \d+: (?P<who>.+?) (?:enters the (?P<enter>.+)|leaves the room he was in"
    r"|moves to the (?P<to>[^,]+?)(?:, and moves the (?P<carried>.+?) to the (?P<put>.+))?"
    r"|moves the (?P<moved>.+?) to the (?P<place>.+'s .+))\."
)
SEEN = re.compile(r"^- Step \d+:")
DULL = re.compile(r"\b(?:a|an|the|on|in|at|thinks?|believes?|step|is|are|of|location|knows?|belief)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation + "’")


def track(story: str, question: str) -> str:
    """The reference answer to "Where does X believe the y is?" about a story. ValueError for a line that cannot be read."""
    asked = re.fullmatch(r"Where does (.+) believe the (.+) is\?", question.strip())
    if not asked:
        raise ValueError(f"a question must read 'Where does X believe the y is?', not {question!r}")
    who, thing = asked.groups()
    first, *rest = story.strip().split("\n")
    here: str | None = _initial(first, rf"{re.escape(who)} is in the (.+)")
    there = _initial(first, rf"the {re.escape(thing)} is on the (.+)")
    belief = there if here == there.split("'s ")[0] else None
    lines = [f"{who}'s belief on the {thing}:", f"- Step 0: (initial state) {_state(who, thing, here, there, belief)}"]
    for number, line in enumerate(rest, 1):
        was = here, there
        here, there = _apply(line, who, thing, here, there)
        belief = there if here == there.split("'s ")[0] else belief
        words = ["unchanged" if old == new else "changed" for old, new in zip(was, (here, there), strict=True)]
        change = f"({who} location {words[0]}; {thing} location {words[1]})"
        lines.append(f"- Step {number}: {change} {_state(who, thing, here, there, belief)}")
    return "\n".join([*lines, f"Final Answer: {'the ' + belief if belief else belief}"])


def _initial(line: str, pattern: str) -> str:
    for clause in line.removeprefix("Step 0: ").rstrip(".").split("; "):
        if found := re.fullmatch(pattern, clause):
            return found.group(1)
    raise ValueError(f"the story's first line does not say {pattern!r}: {line[:200]!r}")


def _apply(line: str, who: str, thing: str, here: str | None, there: str) -> tuple[str | None, str]:
    """Where the person and the object are after one line of the story."""
    event = EVENT.fullmatch(line.strip())
    if not event:
        raise ValueError(f"this line of a story cannot be read: {line[:200]!r}")
    if event["who"] == who and not event["moved"]:
        here = event["enter"] or event["to"]
    if thing in (event["carried"], event["moved"]):
        there = event["put"] or event["place"]
    return here, there


def _state(who: str, thing: str, here: str | None, there: str, belief: str | None) -> str:
    sees = here == there.split("'s ")[0]
    places = f"{who} location: {here}; {thing} location: {there}"
    return f"{{{places}; {who} sees {thing}: {sees}; {who}'s belief on {thing}: {belief}}}"


def story(rng: random.Random, steps: int, form: Form) -> tuple[str, str]:
    """A story in which every event is possible where it stands, and a question about it."""
    names, things, rooms, spots = _cast(rng, form)
    at: dict[str, str | None] = {name: rng.choice(rooms) for name in names}
    lies = {thing: (rng.choice(rooms), rng.choice(spots)) for thing in things}
    clauses = [f"{name} is in the {at[name]}" for name in names]
    clauses += [f"the {thing} is on the {room}'s {spot}" for thing, (room, spot) in lies.items()]
    lines = [f"Step 0: {'; '.join(clauses)}."]
    for number in range(1, steps + 1):
        event = _event(rng, rng.choice(names), at, lies, rooms, spots)
        lines.append(f"Step {number}: {event}")
    return "\n".join(lines), f"Where does {rng.choice(names)} believe the {rng.choice(things)} is?"


def _cast(rng: random.Random, form: Form) -> list[list[str]]:
    if form == "small":
        words = distinct(lambda: syllables(rng, 1), 8)
        return [words[:2], words[2:4], words[4:6], words[6:]]
    return [rng.sample(words.split(","), 2) for words in (NAMES, OBJECTS, ROOMS, PLACES)]


def _event(
    rng: random.Random,
    who: str,
    at: dict[str, str | None],
    lies: dict[str, tuple[str, str]],
    rooms: list[str],
    spots: list[str],
) -> str:
    room = at[who]
    if room is None:
        at[who] = rng.choice(rooms)
        return f"{who} enters the {at[who]}."
    here = [thing for thing, (where, _) in lies.items() if where == room]
    possible = {event: share for event, share in EVENTS.items() if here or event in ("move", "leave")}
    event = rng.choices(list(possible), list(possible.values()))[0]
    other = rooms[1 - rooms.index(room)]
    if event == "leave":
        at[who] = None
        return f"{who} leaves the room he was in."
    if event == "shift":
        thing = rng.choice(here)
        lies[thing] = (room, spots[1 - spots.index(lies[thing][1])])
        return f"{who} moves the {thing} to the {room}'s {lies[thing][1]}."
    at[who] = other
    if event == "move":
        return f"{who} moves to the {other}."
    thing = rng.choice(here)
    lies[thing] = (other, rng.choice(spots))
    return f"{who} moves to the {other}, and moves the {thing} to the {other}'s {lies[thing][1]}."


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` stories; a question is about one of them."""
    own, hay = seeded(rng), seeded(rng)
    stories = [story(own, STEPS[form][tier], form) for _ in range(turns)]
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    steps = min(STEPS[form][tier], STEPS[form]["0.5k"])
    numbers, spans = numbered(draft, rng, [text for text, _ in stories], size, lambda: story(hay, steps, form)[0])
    asked = []
    for (text, question), number, span in zip(stories, numbers, spans, strict=True):
        which = f"of problem {number}" if size > 1 else "above"
        gold = track(text, question)
        asked.append(Turn(f"In the story {which}: {question}\n\n", gold, (gold,), 0, (span,)))
    return draft.sample(f"longproc/tom_tracking_{tier}", asked)


def _beliefs(text: str) -> list[str]:
    """The lines of the last trace in a text, without what does not matter."""
    lines = [line for line in text.splitlines() if line.strip().startswith("-")]
    start = max((i for i, line in enumerate(lines) if "- Step 0:" in line), default=0)
    if lines:
        lines[start] = lines[start][max(lines[start].rfind("- Step 0:"), 0) :]
    return [normal(line.split("-", 1)[1]) for line in lines[start:] if SEEN.match(line)]


def normal(text: str) -> str:
    """Lower case without punctuation and without the words that LongProc leaves out."""
    return " ".join(DULL.sub(" ", text.lower().translate(PUNCTUATION)).split())


def trace(prediction: str, golds: Golds) -> float:
    """LongProc's accuracy: 1 if every line of the trace is the gold's and there are as many. The answer is not read."""
    return float(_beliefs(prediction) == _beliefs(golds[0]))


def trace_and_answer(prediction: str, golds: Golds) -> float:
    """1 if the trace is right and the last "Final Answer" is the gold's."""
    said, meant = (
        normal(text.rpartition("Final Answer:")[2].strip().split("\n")[0][:200]) for text in (prediction, golds[0])
    )
    return float(said == meant and trace(prediction, golds) == 1)


def partial(prediction: str, golds: Golds) -> float:
    """LongProc's partial credit: right lines before the first wrong one, over the gold's number."""
    said, meant = _beliefs(prediction), _beliefs(golds[0])
    if said == meant:
        return 1.0
    pairs = list(zip(said, meant, strict=False))
    return next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs)) / len(meant)
