"""Look-alikes of HELMET's RAG data (arXiv 2410.02694): passages about a generated world.

`rag_alike` has the shape of KILT's Natural Questions as HELMET prompts them, `rag_hop_alike` of HotpotQA's two hops (who
taught someone, and what is said of that teacher elsewhere).
Deviations: passages are made, not retrieved, so distractors are of the same kind but never contain the answer; several
questions share a context; the small form has no demonstrations.
"""

from __future__ import annotations

import random

from kvledger.tasks import facts
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.helmet.templates import QA_ASK, QA_TASK, passage

RELATIONS = {"small": 2, "full": 4}
SHOWN = 3  # passages of a demonstration


def rag(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` passages about a person each; a question asks for one fact of one of them."""
    world, draft, spans = _library(rng, size, form, teachers=False)
    asked = []
    for number, who in enumerate(stratify(rng, size, turns)):
        relation = list(world[who].facts)[number % RELATIONS[form]]
        asked.append(_turn(facts.ask(world[who], relation), world[who].facts[relation], (spans[who, relation],), form))
    return draft.sample("helmet/rag_alike", asked)


def rag_hop(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """As `rag`; a question asks for a fact of someone's teacher, whose name stands in the pupil's passage only."""
    world, draft, spans = _library(rng, size, form, teachers=True)
    where = {person.name: i for i, person in enumerate(world)}
    asked = []
    for number, who in enumerate(stratify(rng, size, turns)):
        relation = list(world[who].facts)[number % RELATIONS[form]]
        teacher = where[world[who].teacher]
        question = facts.RELATIONS[relation][1].format(s=f"the teacher of {world[who].name}")
        evidence = (spans[who, "teacher"], spans[teacher, relation])
        asked.append(_turn(question, world[teacher].facts[relation], evidence, form))
    return draft.sample("helmet/rag_hop_alike", asked)


def _library(
    rng: random.Random, size: int, form: Form, teachers: bool
) -> tuple[list[facts.Person], Draft, dict[tuple[int, str], Span]]:
    """People; the instruction, demonstrations and a passage about each; where each (person, relation) is stated."""
    taken: set[str] = set()
    draft = Draft()
    draft.add("instruction", QA_TASK)
    if form == "full":
        draft.add("demos", "".join(_demo(rng, taken) for _ in range(2)))
    world = facts.people(rng, size, form, RELATIONS[form], taken)
    spans: dict[tuple[int, str], Span] = {}
    for i, person in enumerate(world):
        draft.add("context", ("\n\n" if i else "") + passage(person.name, ""))
        said = {relation: facts.state(person, relation) for relation in person.facts}
        if teachers:
            said["teacher"] = facts.TEACHER.format(s=person.name, o=person.teacher)
        for number, relation in enumerate(rng.sample(list(said), len(said))):
            draft.add("context", " " if number else "")
            spans[i, relation] = draft.add("context", said[relation])
            if form == "full" and number % 2:
                draft.add("context", " " + rng.choice(facts.FILLER))
    return world, draft, spans


def _demo(rng: random.Random, taken: set[str]) -> str:
    """Passages of another world, with a question about one and its answer."""
    world = facts.people(rng, SHOWN, "full", 2, taken)
    asked = rng.choice(world)
    texts = (passage(person.name, " ".join(facts.state(person, r) for r in person.facts)) for person in world)
    return "\n\n".join(texts) + QA_ASK.format(question=facts.ask(asked, "home")) + f" {asked.facts['home']}\n\n"


def _turn(question: str, gold: str, evidence: tuple[Span, ...], form: Form) -> Turn:
    return Turn(QA_ASK.format(question=question), gold, (gold,), 10 if form == "small" else 20, evidence)
