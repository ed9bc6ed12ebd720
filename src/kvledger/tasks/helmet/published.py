"""HELMET's recall, RAG and re-ranking as published (arXiv 2410.02694; code MIT, commit 4526dfb): `Task.real` of each.

Rows, demonstrations and prompts are HELMET's: two demonstrations drawn by a hash of the question, 100 questions, all depth
copies of a KILT or MS MARCO question.  Licences are those of the sets (the tarball states none): NQ CC-BY-SA-3.0,
TriviaQA Apache-2.0, HotpotQA CC-BY-SA-4.0, PopQA MIT, MS MARCO non-commercial research.
Deviations: order of samples (`files.py`), the search for the cut (`cut.py`); the model's chat template is used if it has one,
where HELMET prompts these sets plainly; a ranking's gold is its labelled passages, since the others have no order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import log10
from pathlib import Path

from kvledger.tasks import hub
from kvledger.tasks.base import CountTokens, Sample, Segment, Turn, Unfit
from kvledger.tasks.helmet import cut, files, templates
from kvledger.tasks.helmet.files import Row
from kvledger.tasks.hub import Data

QUESTIONS, SHOTS, RARE = 100, 2, 3.0  # RARE: PopQA's log10 popularity stays below
Real = Callable[..., Sample]


def json_kv(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
    """JSON-KV: one question of its context, whatever `turns`."""
    file = f"data/json_kv/test_k{files.SIZES['json_kv'][files.tier(tokens)]}_dep6.jsonl"
    row = _shuffled(data, "helmet/json_kv", file, seed, index, tokens)
    context, key, gold = row.get("context", str), row.get("question", str), row.strings("answer")
    demos = [Row({"pair": pair}, row.where).strings("pair") for pair in row.get("demos", list)[:SHOTS]]
    if any(len(pair) != 2 for pair in demos):
        raise ValueError(f"{row.where}: demos must be pairs of a key and a value")
    shown = "".join(templates.KV_DEMO.format(key=k, value=v) for k, v in demos)
    question = templates.KV_ASK.format(demos=shown, question=key)
    turn = Turn(question, gold[0], gold, 100, _found(context, [f'"{key}": "{gold[0]}"']))
    return cut.sample("helmet/json_kv", [Segment("context", context)], turn, index, tokens, count)


def niah(task: str, folder: str, plural: bool, cap: int) -> Real:
    """RULER's needles as HELMET ships them, in the folder `folder`."""
    lead, asks = (
        (templates.NIAH_TASK_MANY, templates.NIAH_ASK_MANY) if plural else (templates.NIAH_TASK, templates.NIAH_ASK)
    )

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        file = f"data/ruler/{folder}/validation_{files.TIERS[files.tier(tokens)]}.jsonl"
        row = _shuffled(data, task, file, seed, index, tokens)
        kind, query = row.get("type_needle_v", str), row.get("query", str)
        golds = row.strings("answer", "outputs")
        instruction, context = lead.format(kind=kind), row.get("context", str)
        needles = [f"for {query} is: {gold}" for gold in golds]
        turn = Turn(
            asks.format(kind=kind, query=query), ", ".join(golds), golds, cap, _found(instruction + context, needles)
        )
        segments = [Segment("instruction", instruction), Segment("context", context)]
        return cut.sample(task, segments, turn, index, tokens, count)

    return real


def _shuffled(data: Data, task: str, file: str, seed: int, index: int, tokens: int) -> Row:
    table = files.table(data, file, tokens)
    number = files.pick(task, files.permutation(files.SEED + seed, len(table))[:QUESTIONS], index)
    return Row(table[number], f"{table.path.name}, row {number + 1}")


def _found(text: str, pieces: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Where each piece stands in the text, if it does."""
    places = ((text.find(piece), len(piece)) for piece in pieces)
    return tuple(sorted((at, at + length) for at, length in places if at >= 0))


# ---- RAG -----------------------------------------------------------------------------------------------------------


def kilt(task: str, name: str) -> Real:
    """A KILT set: `nq`, `triviaqa`, `hotpotqa`, or `popqa`, of whose questions only the unpopular are asked."""

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        table = files.table(data, files.kilt_file(name, files.SIZES["kilt"][files.tier(tokens)]), tokens)
        shots = files.table(data, files.kilt_file(name, 3, demos=True), tokens)
        number = files.pick(task, _kilt_rows(table.path, seed, name == "popqa"), index)
        row = Row(table[number], f"{table.path.name}, row {number + 1}")
        instruction = templates.QA_TASK
        demos = "".join(map(_kilt_demo, _kilt_shots(row, shots, name == "popqa")))
        passages = [_passage(one) for one in row.rows("ctxs")]
        golds, at = row.strings("answers"), len(instruction + demos)
        spans = _golden(passages, row, golds, at)
        question = templates.QA_ASK.format(question=row.get("question", str))
        turn = Turn(question, golds[0], golds, 20, spans)
        segments = [
            Segment("instruction", instruction),
            Segment("demos", demos),
            Segment("context", "\n\n".join(passages)),
        ]
        return cut.sample(task, segments, turn, index, tokens, count)

    return real


def _passage(ctx: Row) -> str:
    return templates.passage(ctx.get("title", str), ctx.get("text", str))


def _kilt_demo(demo: Row) -> str:
    texts = "\n\n".join(_passage(one) for one in demo.rows("ctxs"))
    question = templates.QA_ASK.format(question=demo.get("question", str))
    return f"{texts}{question} {demo.strings('answers')[0]}\n\n"


def _key(row: Row) -> str:
    """What tells questions apart: `id`, or the question where a set has none."""
    return str(row.facts["id"]) if row.facts.get("id") is not None else row.get("question", str)


def _rare(row: Row) -> bool:
    popularity = row.get("s_pop", object)
    if not isinstance(popularity, int | float) or popularity <= 0:
        raise ValueError(f"{row.where}: s_pop must be a positive number, not {popularity!r:.40}")
    return log10(popularity) < RARE


@lru_cache(maxsize=32)
def _kilt_rows(path: Path, seed: int, rare: bool) -> tuple[int, ...]:
    """Numbers of the rows that HELMET asks: those of 100 questions, shuffled. Reads the whole file once."""
    rows = enumerate(Row(facts, f"{path.name}, row {i + 1}") for i, facts in enumerate(hub.table(path)))
    keys = {number: (row.facts.get("id"), _key(row)) for number, row in rows if not rare or _rare(row)}
    wanted = sorted({id_ if id_ is not None else key for id_, key in keys.values()})
    chosen = set(map(str, random.Random(files.SEED + seed).sample(wanted, min(QUESTIONS, len(wanted)))))
    found = [number for number, (_, key) in keys.items() if key in chosen]
    return tuple(found[i] for i in files.permutation(files.SEED + seed, len(found)))


def _kilt_shots(row: Row, table: hub.Table, rare: bool) -> list[Row]:
    """Two demonstrations for a question, the same for each of its copies: never of itself, no question twice."""
    rows = [Row(facts, f"{table.path.name}, row {i + 1}") for i, facts in enumerate(table)]
    if rare:  # PopQA has one split only
        rows = [demo for demo in rows if _rare(demo) and _key(demo) != _key(row)]
    return _first_different(rows, files.own_seed(_key(row)), _key, table.path)


def _first_different(rows: list[Row], seed: int, key: Callable[[Row], str], path: Path) -> list[Row]:
    found: dict[str, Row] = {}
    for i in files.permutation(seed, len(rows)):
        found.setdefault(key(rows[i]), rows[i])
    if len(found) < SHOTS:
        raise ValueError(f"{path} has {len(found)} questions to show, {SHOTS} are needed")
    return list(found.values())[:SHOTS]


def _golden(passages: list[str], row: Row, golds: tuple[str, ...], at: int) -> tuple[tuple[int, int], ...]:
    """Spans of the passages that the set marks as positive and that hold an answer."""
    marked = {one.get("text", str) for one in row.rows("positive_ctxs")} if row.facts.get("positive_ctxs") else None
    spans = []
    for passage, ctx in zip(passages, row.rows("ctxs"), strict=True):
        text = ctx.get("text", str)
        positive = text in marked if marked is not None else bool(ctx.facts.get("has_answer", True))
        if positive and any(gold.lower() in text.lower() for gold in golds):
            spans.append((at, at + len(passage)))
        at += len(passage) + 2
    return tuple(spans)


# ---- re-ranking ----------------------------------------------------------------------------------------------------


def msmarco(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
    """MS MARCO passages with graded labels; golds are `id:label` of the labelled ones, best first."""
    task, k = "helmet/msmarco_rerank", files.SIZES["msmarco"][files.tier(tokens)]
    table = files.table(data, f"data/msmarco/test_reranking_data_k{k}_dep3.jsonl", tokens)
    chosen = _queries(table.path, seed)
    number = files.pick(task, chosen, index)
    row = Row(table[number], f"{table.path.name}, row {number + 1}")
    shown = files.table(data, "data/msmarco/test_reranking_data_k10_dep3.jsonl", tokens)
    demos = "".join(map(_ranked_demo, _ranking_shots(row, shown, table, chosen)))
    instruction, ranked = templates.RERANK_TASK, _ranked(row)
    passages = _ranked_passages(row)
    spans, at = {}, len(instruction + demos)
    for passage, ctx in zip(passages, row.rows("ctxs"), strict=True):
        spans[_id(ctx)] = (at, at + len(passage))
        at += len(passage) + 2
    golds = tuple(f"{id_}:{label}" for id_, label in ranked if label > 0)
    if not golds:
        raise Unfit(f"{task}: {row.where} has no passage with a label, so nothing can be ranked")
    gold = " > ".join(id_ for id_, label in ranked if label > 0)
    evidence = tuple(sorted(spans[id_] for id_, label in ranked if label > 0))
    turn = Turn(templates.RERANK_ASK.format(question=row.get("query", str)), gold, golds, 200, evidence)
    context = Segment("context", "\n\n".join(passages))
    segments = [Segment("instruction", instruction), Segment("demos", demos), context]
    return cut.sample(task, segments, turn, index, tokens, count)


def _id(ctx: Row) -> str:
    return str(ctx.get("id", object))


def _ranked(row: Row) -> list[tuple[str, int]]:
    pairs = []
    for ctx in row.rows("ctxs"):
        try:
            pairs.append((_id(ctx), int(ctx.get("label", object))))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            raise ValueError(f"{ctx.where}: label must be a whole number, not {ctx.facts.get('label')!r:.40}") from None
    return sorted(pairs, key=lambda pair: -pair[1])


def _ranked_passages(row: Row) -> list[str]:
    return [templates.ranked_passage(_id(c), c.get("text", str), c.facts.get("title")) for c in row.rows("ctxs")]


def _ranked_demo(demo: Row) -> str:
    question = templates.RERANK_ASK.format(question=demo.get("query", str))
    return "\n\n".join(_ranked_passages(demo)) + f"{question} {' > '.join(id_ for id_, _ in _ranked(demo))}\n\n"


def _qid(row: Row) -> str:
    return str(row.get("qid", object))


@lru_cache(maxsize=32)
def _queries(path: Path, seed: int) -> tuple[int, ...]:
    """Numbers of the rows of 100 queries, shuffled."""
    ids = [_qid(Row(facts, f"{path.name}, row {i + 1}")) for i, facts in enumerate(hub.table(path))]
    wanted = sorted(set(ids))
    chosen = set(random.Random(files.SEED + seed).sample(wanted, min(QUESTIONS, len(wanted))))
    found = [number for number, id_ in enumerate(ids) if id_ in chosen]
    return tuple(found[i] for i in files.permutation(files.SEED + seed, len(found)))


def _ranking_shots(row: Row, shown: hub.Table, table: hub.Table, chosen: tuple[int, ...]) -> list[Row]:
    """Two demonstrations: of queries that are not asked where there are plenty, else of any but this one."""
    rows = [Row(facts, f"{shown.path.name}, row {i + 1}") for i, facts in enumerate(shown)]
    taken = {_qid(row)}
    if len(rows) > 2 * len(chosen):
        taken = {_qid(Row(table[i], table.path.name)) for i in chosen}
    return _first_different(
        [demo for demo in rows if _qid(demo) not in taken], files.own_seed(_qid(row)), _qid, shown.path
    )
