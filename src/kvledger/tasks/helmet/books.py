"""HELMET's LongQA and summarisation from their corpora (arXiv 2410.02694; code MIT, commits 4526dfb, fdd6333).

NarrativeQA (Apache-2.0; test questions whose story has more than 131,072 Llama-2 tokens), InfiniteBench's book questions,
choices and summaries (licence unstated), Multi-LexSum (ODC-BY; validation cases of at least 65,536 tokens, from HELMET's
tarball).  Texts are cut to length − 200 − answer Llama-2 tokens (Multi-LexSum − 300), see `cut.py`.
Deviations: demonstrations are drawn by a seed where HELMET has none; NarrativeQA's are of the first training file, and
Multi-LexSum's of other validation cases, since the tarball has no training split.  HELMET scores NarrativeQA and both
summaries by a judge; here the scorer is ROUGE-L, and the judge is `kvledger judge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvledger.tasks import hub
from kvledger.tasks.base import CountTokens, Sample, Segment, Turn
from kvledger.tasks.helmet import cut, files, templates
from kvledger.tasks.helmet.corpora import located
from kvledger.tasks.helmet.files import Row
from kvledger.tasks.hub import Data

NARRATIVE, NARRATIVE_REVISION = "deepmind/narrativeqa", "2e643e7363944af1c33a652d1c87320d0871c4e4"
NARRATIVE_TEST = tuple(f"data/test-{i:05d}-of-00008.parquet" for i in range(8))
NARRATIVE_TRAIN = "data/train-00000-of-00024.parquet"
LONG = 131_072  # Llama-2 tokens of a story that NarrativeQA is asked about
INFINITE, INFINITE_REVISION = "xinrongzhang2022/infinitebench", "main"
LEXSUM, LEXSUM_LEAST = "data/multi_lexsum/multi_lexsum_val.jsonl", 65_536
SAMPLES, SHOTS, MARGIN, LEXSUM_MARGIN = 100, 2, 200, 300
CAPS = {"narrative": 100, "qa_eng": 10, "choice_eng": 10, "sum_eng": 1200, "lexsum": 400}  # new tokens


def narrativeqa(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
    """A question of a long story; any of its two answers is right."""
    task, tokenizer = "helmet/narrativeqa", cut.llama2(data)
    paths = _test_files(data)
    chosen = _long_stories(paths, files.SEED + seed, tokenizer)
    which, number = files.pick(task, chosen, index)
    row = Row(hub.table(paths[which])[number], f"{paths[which].name}, row {number + 1}")
    question, golds = _story_question(row)
    shown = located(data, NARRATIVE, NARRATIVE_TRAIN, NARRATIVE_REVISION)
    demos = _narrative_demos(hub.table(shown), shown, seed, index)
    story = cut.to_llama2(_story(row), tokens - MARGIN - CAPS["narrative"], tokenizer)
    turn = Turn(templates.STORY_ASK.format(question=question), golds[0], golds, CAPS["narrative"])
    return _chat(task, templates.NARRATIVE_TASK, demos, story, turn, index, tokens, count)


def _test_files(data: Data) -> tuple[Path, ...]:
    """The test set's files; a folder may have the first one only, with other rows than the hub's."""
    if data.root == "hub":
        return tuple(data.path(NARRATIVE, file, NARRATIVE_REVISION) for file in NARRATIVE_TEST)
    return (located(data, NARRATIVE, NARRATIVE_TEST[0], NARRATIVE_REVISION),)


def _story(row: Row) -> str:
    return Row(row.get("document", dict), f"{row.where}, document").get("text", str)


def _story_question(row: Row) -> tuple[str, tuple[str, ...]]:
    question = Row(row.get("question", dict), f"{row.where}, question").get("text", str)
    answers = tuple(answer.get("text", str) for answer in row.rows("answers"))
    if not answers:
        raise ValueError(f"{row.where}: answers are empty")
    return question, answers


@lru_cache(maxsize=4)
def _long_stories(paths: tuple[Path, ...], seed: int, tokenizer: Any) -> tuple[tuple[int, int], ...]:
    """(file, row) of the first 100 questions, shuffled, whose story is long enough. Each story is counted once."""
    places = [(which, i) for which, path in enumerate(paths) for i in range(len(hub.table(path)))]
    longer: dict[int, bool] = {}
    found: list[tuple[int, int]] = []
    for at in files.permutation(seed, len(places)):
        which, number = places[at]
        story = _story(Row(hub.table(paths[which])[number], f"{paths[which].name}, row {number + 1}"))
        if hash(story) not in longer:
            longer[hash(story)] = len(story.encode()) + 2 > LONG and cut.llama2_tokens(story, tokenizer) > LONG
        if longer[hash(story)]:
            found.append(places[at])
        if len(found) == SAMPLES:
            break
    return tuple(found)


def _narrative_demos(table: hub.Table, path: Path, seed: int, index: int) -> str:
    picks = _others(len(table), files.own_seed(f"narrativeqa {seed} {index}"), path)
    shown = (_story_question(Row(table[i], f"{path.name}, row {i + 1}")) for i in picks)
    demos = "\n\n".join(f"Question: {question}\nAnswer: {golds[0]}" for question, golds in shown)
    return templates.FOR_EXAMPLE.format(demos=demos) + "Now, use the following story to answer the question:\n\n"


# ---- InfiniteBench -------------------------------------------------------------------------------------------------


def infinite(task: str, split: str, instruction: str) -> Any:
    """One of InfiniteBench's splits `qa_eng`, `choice_eng`, `sum_eng`."""

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        path = data.path(INFINITE, f"longbook_{split}.jsonl", INFINITE_REVISION)
        table = hub.table(path)
        order = files.permutation(files.SEED + seed, len(table))[:SAMPLES]
        number = files.pick(task, order, index)
        row = Row(table[number], f"{path.name}, row {number + 1}")
        cap = CAPS[split]
        text = cut.to_llama2(row.get("context", str), tokens - MARGIN - cap, cut.llama2(data))
        question, golds = _asked(row, split)
        turn = Turn(question, golds[0], golds, cap)
        demos = _book_demos(path, row.get("id", object), files.SEED + seed, split)
        return _chat(task, instruction, demos, text, turn, index, tokens, count)

    return real


def _asked(row: Row, split: str) -> tuple[str, tuple[str, ...]]:
    """The question as it follows the book, and its golds: of a choice the letter, and the letter with its option."""
    golds = row.strings("answer")
    if split == "sum_eng":
        return templates.BOOK_ASK, golds
    if split == "qa_eng":
        return templates.STORY_ASK.format(question=row.get("input", str)), golds
    choices = row.strings("options")
    if len(choices) != 4 or golds[0] not in choices:
        raise ValueError(f"{row.where}: options must be four, with the answer {golds[0]!r:.40} among them")
    letter = "ABCD"[choices.index(golds[0])]
    asked = templates.CHOICE_ASK.format(question=row.get("input", str), options=templates.options(choices))
    return asked, (letter, f"{letter}. {golds[0]}")


@lru_cache(maxsize=512)
def _book_demos(path: Path, own: object, seed: int, split: str) -> str:
    """Two other items, the same for every item but themselves, without their book."""
    rows = [Row(facts, f"{path.name}, row {i + 1}") for i, facts in enumerate(hub.table(path))]
    rows = [row for row in rows if row.get("id", object) != own]
    shown = []
    for i in _others(len(rows), seed, path):
        question, golds = _asked(rows[i], split)
        lead, cue = ("", "Summary") if split == "sum_eng" else (question.removeprefix("\n"), "Answer")
        shown.append(f"[story text]{lead}\n{cue}: {golds[0].strip()}")
    return templates.FOR_EXAMPLE.format(demos="\n\n".join(shown)) + "Now, read the following story:\n\n"


# ---- Multi-LexSum --------------------------------------------------------------------------------------------------


def multi_lexsum(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
    """The documents of a lawsuit; gold is the expert's short summary."""
    task, tokenizer = "helmet/multi_lexsum", cut.llama2(data)
    table = files.table(data, LEXSUM, tokens)
    cases = _long_cases(table.path, files.SEED + seed, tokenizer)
    number = files.pick(task, cases, index)
    row = Row(table[number], f"{table.path.name}, row {number + 1}")
    demos = _case_demos(table, number, files.own_seed(f"multi_lexsum {seed} {index}"))
    text = cut.to_llama2("\n\n".join(row.strings("sources")), tokens - LEXSUM_MARGIN - CAPS["lexsum"], tokenizer)
    gold = row.get("summary/short", str)
    turn = Turn(templates.LAW_ASK, gold, (gold,), CAPS["lexsum"])
    return _chat(task, templates.LAW_TASK, demos + templates.LAW_OPEN, text, turn, index, tokens, count)


@lru_cache(maxsize=4)
def _long_cases(path: Path, seed: int, tokenizer: Any) -> tuple[int, ...]:
    found = []
    for number, row in _summarised(path):
        text = "\n\n".join(row.strings("sources"))
        if len(text.encode()) + 2 >= LEXSUM_LEAST and cut.llama2_tokens(text, tokenizer) >= LEXSUM_LEAST:
            found.append(number)
    if len(found) > SAMPLES:
        found = [found[i] for i in files.permutation(seed, len(found))[:SAMPLES]]
    return tuple(found)


def _summarised(path: Path) -> Iterator[tuple[int, Row]]:
    for number, facts in enumerate(hub.table(path)):
        if facts.get("summary/short") is not None:
            yield number, Row(facts, f"{path.name}, row {number + 1}")


def _case_demos(table: hub.Table, own: int, seed: int) -> str:
    cases = [row for number, row in _summarised(table.path) if number != own]
    shown = (cases[i].get("summary/short", str) for i in _others(len(cases), seed, table.path))
    demos = "\n\n".join(f"Summary: {text}" for text in shown)
    return f"Example summaries:\n\n{demos}\n\nNow, write a summary of the following legal documents.\n"


# ---- both ----------------------------------------------------------------------------------------------------------


def _others(count: int, seed: int, path: Path) -> list[int]:
    """The items shown: two of `count`."""
    if count < SHOTS:
        raise ValueError(f"{path} has {count} items to show, {SHOTS} are needed")
    return files.permutation(seed, count)[:SHOTS]


def _chat(
    task: str, instruction: str, demos: str, text: str, turn: Turn, index: int, tokens: int, count: CountTokens
) -> Sample:
    segments = [Segment("instruction", instruction), Segment("demos", demos), Segment("context", text)]
    return cut.sample(task, segments, turn, index, tokens, count)
