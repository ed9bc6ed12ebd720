"""`kvledger inspect`: read one sample at several keeps and write down which tokens each head still holds.

What is looked at is the cache after the context has been read and before any question came ("hidden"). Each question is
then asked of a fork of its own, so that the answers at a keep do not disturb one another.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

FORMAT = "kvledger.inspection/1"
KEEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The subcommand, on argparse's sub-parsers. Loads no torch."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect", help="a page on which one sees which tokens each head kept of a sample", allow_abbrev=False
    )
    parser.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    parser.add_argument("--recipe", required=True, metavar="RECIPE", help='e.g. "snapkv(keep=0.3)"')
    parser.add_argument("--task", default="scbench/kv", help="whose sample is read (default: scbench/kv)")
    parser.add_argument(
        "--keeps", nargs="+", type=float, default=list(KEEPS), metavar="KEEP", help="places of the slider"
    )
    parser.add_argument("--sample", type=int, default=0, help="number of the sample (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=5, help="questions to the context (default: 5)")
    parser.add_argument("--context", type=int, default=1024, metavar="TOKENS", help="tokens of the context")
    parser.add_argument("--chunk", type=int, default=0, metavar="TOKENS", help="tokens read at a time; 0: in one shot")
    parser.add_argument("--out", default="inspect.html", metavar="FILE", help="the page (default: inspect.html)")
    return parser


def inspect(arguments: argparse.Namespace) -> str:
    """The inspection as a JSON document (`FORMAT`). ValueError for what cannot be read."""
    from kvledger.hf.load import load
    from kvledger.hf.session import check_chunk
    from kvledger.recipe import parse
    from kvledger.tasks import get

    task = get(arguments.task)
    if task.make is None:
        raise ValueError(f"{task.name} cannot be generated; inspect a task that can, like scbench/kv")
    recipes = at_keeps(parse(arguments.recipe), arguments.keeps)
    for recipe in recipes:
        check_chunk(recipe, arguments.chunk)
    model, tokenizer = load(arguments.model)
    sample = _sample(task, arguments, tokenizer)
    levels = [_level(model, tokenizer, recipe, sample, arguments) for recipe in recipes]
    return json.dumps(_facts(tokenizer, sample, arguments) | {"levels": levels}, ensure_ascii=False)


def at_keeps(recipe: Any, keeps: Sequence[float]) -> list[Any]:
    """The recipe at each of `keeps`, and at its own, from the smallest to the largest. ValueError if none of its parts has
    a keep that decides, or for a keep outside (0, 1]."""
    own = recipe.keep
    if getattr(recipe.source, "shortens", False):
        raise ValueError(
            f"{recipe} reads another text than the task's, so rows of it cannot be shown; leave the source away"
        )
    if not recipe.drops and own == 1:
        raise ValueError(f"{recipe} drops nothing, so there is nothing to see; try 'snapkv(keep=0.3)'")
    wrong = [keep for keep in keeps if not 0 < keep <= 1]
    if wrong:
        raise ValueError(f"--keeps {wrong[0]:g}: a keep lies above 0 and at most at 1")
    owner = next((p for p in (recipe.method, recipe.profile) if p is not None and p.drops and _has_keep(p)), None)
    if owner is None:
        raise ValueError(f"no part of {recipe} has a keep that a slider could move")
    return [
        type(recipe)(tuple(replace(part, keep=keep) if part == owner else part for part in recipe.parts))
        for keep in sorted({*keeps, owner.keep} - {1.0})
    ]


def _has_keep(part: Any) -> bool:
    """Whether a keep below 1 decides what the part holds, and not an absolute budget."""
    absolute = getattr(part, "rows", 0) or getattr(part, "bytes", 0)
    return any(field.name == "keep" for field in fields(part)) and part.keep < 1 and not absolute


def _sample(task: Any, arguments: argparse.Namespace, tokenizer: Any) -> Any:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    form = "small" if len(tokenizer) < 8192 else "full"
    return task.make(
        seed=arguments.seed,
        index=arguments.sample,
        tokens=arguments.context,
        count=count,
        turns=arguments.turns,
        form=form,
    )


def _facts(tokenizer: Any, sample: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is the same at every keep: the tokens, and the questions with the places of their evidence."""
    from kvledger import __version__
    from kvledger.hf.chat import Chat

    chat = Chat(tokenizer)
    turns = [
        {
            "question": turn.question.strip(),
            "gold": turn.gold,
            "evidence": sorted(chat.places(sample.text, turn.evidence, system=False)) if turn.evidence else [],
        }
        for turn in sample.turns
    ]
    names = ("model", "recipe", "task", "sample", "seed", "chunk")
    told = {name: getattr(arguments, name) for name in names}
    tokens = [tokenizer.decode([token]) for token in chat.opening(sample.text, "")[0]]
    return {"format": FORMAT, "version": __version__, **told, "tokens": tokens, "turns": turns}


def _level(model: Any, tokenizer: Any, recipe: Any, sample: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """One keep: for each layer and head a bit for each token, and what was answered."""
    from kvledger.hf import cache as caches
    from kvledger.hf.session import open_session
    from kvledger.tasks import get

    session = open_session(model, tokenizer, recipe, arguments.chunk)
    session.read(sample.text)
    count, footprint = session.tokens, session.ledger.footprint
    kept = [[_bits(layer.arena.positions(s).tolist(), count) for s in range(layer.arena.heads)]
            for layer in caches.arenas(session.cache) if layer.arena is not None]  # fmt: skip
    answers = []
    for turn in sample.turns:
        text = session.fork().turn(turn.question, turn.max_new_tokens).text
        answers.append({"text": text, "score": get(arguments.task).score(text, turn.golds)})
    return {"keep": recipe.keep, "recipe": str(recipe), "footprint": footprint, "kept": kept, "answers": answers}


def _bits(positions: Sequence[int], count: int) -> str:
    """Bit i % 8 of byte i // 8 says whether token i is held; base64."""
    held = bytearray((count + 7) // 8)
    for position in positions:
        held[position >> 3] |= 1 << (position & 7)
    return base64.b64encode(bytes(held)).decode("ascii")
