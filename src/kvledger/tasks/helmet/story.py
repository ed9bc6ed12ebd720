"""Look-alikes of HELMET's LongQA and summarisation (arXiv 2410.02694): stories of who did what where.

`longqa_alike` has the shape of InfiniteBench's En.QA as HELMET prompts it (a place is the answer), `choice_alike` of
En.MultiChoice (the other options are places of the same story), `summ_alike` of its summaries (one person's deeds in
order, among those of others).
Deviations: a story is a chain of generated events with plain sentences between them, not a novel; a summary asks for one
person, so that there is a right one; several questions share a context; no demonstrations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvledger.tasks import facts
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.helmet import templates
from kvledger.tasks.overall import stratify_apart
from kvledger.tasks.words import distinct

VERBS = (
    ("left", "leave"),
    ("hid", "hide"),
    ("found", "find"),
    ("sold", "sell"),
    ("buried", "bury"),
    ("mended", "mend"),
)
SIZES = ("small", "large", "narrow", "heavy", "cracked", "folded", "painted", "borrowed")
STUFFS = (
    "amber", "brass", "birch", "clay", "coral", "cotton", "crystal", "ebony", "felt", "flint", "glass", "granite", "iron",
    "ivory", "jade", "leather", "linen", "marble", "oak", "paper", "pearl", "pewter", "pine", "silk", "silver", "slate",
    "steel", "straw", "velvet", "walnut",
)  # fmt: skip
THINGS = (
    "anchor", "basket", "bell", "bottle", "bowl", "box", "bracelet", "brush", "candle", "chain", "chest", "clock", "coin",
    "compass", "crown", "cup", "drum", "fan", "flag", "flute", "frame", "glove", "hammer", "harp", "hat", "helmet", "horn",
    "jug", "kettle", "key", "knife", "ladder", "lamp", "lantern", "lock", "map", "mask", "mirror", "needle", "net", "oar",
    "pipe", "plate", "purse", "ring", "rope", "saddle", "scarf", "shield", "spoon", "stool", "sword", "table", "telescope",
    "tray", "trumpet", "vase", "violin", "wheel", "whistle",
)  # fmt: skip
CHAPTER = 25  # events of a chapter in the full form
DEEDS = {"small": 4, "full": 8}  # of each person that a summary is about
SUMMARY_TASK = (
    "You are given a story and you are tasked to summarize what one of its people does. Write one sentence for each deed, "
    "in the order of the story. Do not provide any analysis or commentary.\n\n"
)
SUMMARY_ASK = "\n\nNow summarize what {who} did."


@dataclass(frozen=True)
class Event:
    """Somebody did something with a thing in a place; thing and place occur in no other event."""

    actor: str
    verb: tuple[str, str]
    thing: str
    place: str

    def __str__(self) -> str:
        return f"{self.actor} {self.verb[0]} {self.thing} in {self.place}."

    @property
    def question(self) -> str:
        return f"Where did {self.actor} {self.verb[1]} {self.thing}?"


def longqa(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` events; a question asks where one of them took place."""
    events, draft, spans = _told(rng, templates.STORY_TASK, size, form, {})
    asked = []
    for i in stratify(rng, size, turns):
        question = templates.STORY_ASK.format(question=events[i].question)
        asked.append(Turn(question, events[i].place, (events[i].place,), 10, (spans[i],)))
    return draft.sample("helmet/longqa_alike", asked)


def choice(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """As `longqa`, with four places to choose from; the letter is right, or the letter with the place."""
    events, draft, spans = _told(rng, templates.CHOICE_TASK, size, form, {})
    asked = []
    for i in stratify(rng, size, turns):
        others = rng.sample([event.place for event in events if event is not events[i]], 3)
        shown = rng.sample([events[i].place, *others], 4)
        letter = "ABCD"[shown.index(events[i].place)]
        question = templates.CHOICE_ASK.format(question=events[i].question, options=templates.options(tuple(shown)))
        asked.append(Turn(question, letter, (letter, f"{letter}. {events[i].place}"), 10, (spans[i],)))
    return draft.sample("helmet/choice_alike", asked)


def summary(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` events, some of them deeds of the people that are asked about; the gold is their sentences in order."""
    places = stratify_apart(rng, size, turns * DEEDS[form])
    deeds = {place: i % turns for i, place in enumerate(places)}
    events, draft, spans = _told(rng, SUMMARY_TASK, size, form, deeds)
    asked = []
    for who in range(turns):
        own = sorted(place for place, actor in deeds.items() if actor == who)
        gold = "\n".join(str(events[i]) for i in own)
        question = SUMMARY_ASK.format(who=events[own[0]].actor)
        limit = 20 * len(own) if form == "small" else 400
        asked.append(Turn(question, gold, (gold,), limit, tuple(spans[i] for i in own)))
    return draft.sample("helmet/summ_alike", asked)


def _told(
    rng: random.Random, task: str, size: int, form: Form, deeds: dict[int, int]
) -> tuple[list[Event], Draft, list[Span]]:
    """`size` events, told after the instruction `task`, and where each is. Event i is a deed of the person `deeds[i]`, of
    somebody else where that does not say."""
    events = _events(rng, size, form, deeds)
    draft, spans = Draft(), []
    draft.add("instruction", task)
    for i, event in enumerate(events):
        if form == "full" and i % CHAPTER == 0:
            draft.add("context", f"{chr(10) * 2 if i else ''}Chapter {i // CHAPTER + 1}\n\n")
        elif i:
            draft.add("context", " ")
        spans.append(draft.add("context", str(event)))
        if form == "full":
            draft.add("context", " " + rng.choice(facts.FILLER))
    return events, draft, spans


def _events(rng: random.Random, size: int, form: Form, deeds: dict[int, int]) -> list[Event]:
    taken: set[str] = set()
    asked = len(set(deeds.values()))
    cast = facts.names(rng, asked + 12, form, taken)
    if form == "small":
        things = facts.names(rng, size, form, taken)
    else:
        things = distinct(lambda: f"the {rng.choice(SIZES)} {rng.choice(STUFFS)} {rng.choice(THINGS)}", size)
    places = facts.names(rng, size, form, taken)
    verbs = VERBS[:1] if form == "small" else VERBS
    return [
        Event(cast[deeds[i]] if i in deeds else rng.choice(cast[asked:]), rng.choice(verbs), things[i], places[i])
        for i in range(size)
    ]
