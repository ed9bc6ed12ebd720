"""RULER's question answering (arXiv 2404.06654, section 3; NVIDIA's code, Apache-2.0, none of it copied): qa_1 is SQuAD's
paragraphs with distractors, qa_2 HotpotQA's, whose questions need two of them.

Generated, the documents tell of a made-up world (`tasks/facts.py`), a person each, so nothing is known without reading and no
distractor holds the answer; qa_2 asks about somebody's teacher, who is named in the pupil's document only.  They are named
`_alike`: not to be set beside published scores.  The `full` form has RULER's prompt, letter by letter; the `small` form
syllables and short sentences.  With several turns the questions share the documents.
`published` reads the texts themselves, as HELMET's tarball holds them (`data/ruler/qa_1/validation_4096.jsonl`; columns
context, question or query, answer or outputs; SQuAD and HotpotQA: CC-BY-SA-4.0).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from kvledger.tasks import facts
from kvledger.tasks.base import CountTokens, Form, Sample, Segment, Turn
from kvledger.tasks.draft import Build, Draft, Span, stratify
from kvledger.tasks.hub import Data

RELATIONS = {"small": 2, "full": 4}  # told of each person
TASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
HEAD = f"{TASK}\n\nThe following are given documents.\n\n"
ASK = f"\n\n{TASK}\n\nQuestion: {{}} Answer:"
SMALL_HEAD = "Answer the questions from the documents below.\n\n"
SMALL_ASK = "\n\nQuestion: {} Answer: "
CAP = {"small": 10, "full": 32}


def qa(name: str, hops: int) -> Build:
    """The generator of `name`: a question needs one document, or with two `hops` a second that the first one names."""

    def build(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        world = facts.people(rng, size, form, RELATIONS[form], set())
        draft = Draft()
        draft.add("instruction", SMALL_HEAD if form == "small" else HEAD)
        spans = _documents(rng, draft, world, form, teachers=hops > 1)
        where = {person.name: i for i, person in enumerate(world)}
        asked = []
        for number, first in enumerate(stratify(rng, size, turns)):
            person, relation = world[first], list(facts.RELATIONS)[number % RELATIONS[form]]
            last = where[person.teacher] if hops > 1 else first
            who = f"the teacher of {person.name}" if hops > 1 else person.name
            question = facts.RELATIONS[relation][1].format(s=who)
            needed = {spans[last, relation], *([spans[first, "teacher"]] if hops > 1 else [])}
            asked.append(_turn(question, world[last].facts[relation], tuple(sorted(needed)), form))
        return draft.sample(name, asked)

    return build


def _documents(
    rng: random.Random, draft: Draft, world: list[facts.Person], form: Form, teachers: bool
) -> dict[tuple[int, str], Span]:
    """Adds a document for each person; where each (person, relation) is stated."""
    spans: dict[tuple[int, str], Span] = {}
    for i, person in enumerate(world):
        draft.add("context", f"{chr(10) * 2 if i else ''}Document {i + 1}:\n")
        said = {relation: facts.state(person, relation) for relation in person.facts}
        if teachers:
            said["teacher"] = facts.TEACHER.format(s=person.name, o=person.teacher)
        for number, relation in enumerate(rng.sample(list(said), len(said))):
            draft.add("context", " " if number else "")
            spans[i, relation] = draft.add("context", said[relation])
            if form == "full":
                draft.add("context", " " + rng.choice(facts.FILLER))
    return spans


def _turn(question: str, gold: str, evidence: tuple[Span, ...], form: Form) -> Turn:
    ask = SMALL_ASK if form == "small" else ASK
    return Turn(ask.format(question), gold if form == "small" else f" {gold}", (gold,), CAP[form], evidence)


def published(name: str) -> Callable[..., Sample]:
    """`Task.real` of "qa_1" or "qa_2": a row of HELMET's tarball, sampled and cut as HELMET does; one question a context."""

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        from kvledger.tasks.helmet import cut, files  # late: HELMET's tasks are built on this folder

        file = f"data/ruler/{name}/validation_{files.TIERS[files.tier(tokens)]}.jsonl"
        table = files.table(data, file, tokens)
        number = files.pick(f"ruler/{name}", files.permutation(files.SEED + seed, len(table)), index)
        row = files.Row(table[number], f"{table.path.name}, row {number + 1}")
        golds = row.strings("answer", "outputs")
        turn = Turn(ASK.format(row.get("question", str, "query")), f" {golds[0]}", golds, CAP["full"])
        segments = [Segment("instruction", HEAD), Segment("context", row.get("context", str))]
        return cut.sample(f"ruler/{name}", segments, turn, index, tokens, count)

    return real
