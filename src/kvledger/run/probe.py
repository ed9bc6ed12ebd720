"""`kvledger probe`: measure a model's heads on generated retrieval samples, once, for methods that want to know them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvledger.hf.probe import Needle


def add_parser(commands: Any) -> None:
    """The subcommand, on argparse's sub-parsers. Loads no torch."""
    parser = commands.add_parser("probe", help="measure a model's heads, for headkv and minference", allow_abbrev=False)
    parser.add_argument(
        "what",
        choices=["headkv", "minference"],
        help="headkv: how often a head looks at the needle it answers from; minference: which pattern suits a head",
    )
    parser.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    parser.add_argument("--out", required=True, metavar="FILE", help="what was found, JSON")
    parser.add_argument("--task", default="scbench/kv", help="whose evidence is the needle (default: scbench/kv)")
    parser.add_argument("--samples", type=int, default=10, help="contexts (default: 10)")
    parser.add_argument("--turns", type=int, default=4, help="questions per context (default: 4)")
    parser.add_argument(
        "--context", type=int, default=1024, metavar="TOKENS", help="tokens of a context (default: 1024)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the samples (default: 1, so that seed 0 is left for tests)"
    )
    parser.set_defaults(body=body, parser=parser)


def body(arguments: argparse.Namespace) -> None:
    """Load, measure, write. ValueError for what cannot be."""
    for name in ("samples", "turns", "context"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: there must be at least one")
    from kvledger.hf.load import load

    model, tokenizer = load(arguments.model)
    if arguments.what == "minference":
        search(model, tokenizer, arguments)
        print(f"head patterns: {arguments.out}")
        return
    probe(model, tokenizer, arguments)
    print(f"head importance: {arguments.out}")


def probe(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Measure and write the importance file. ValueError for a task whose questions have no evidence spans."""
    from kvledger import __version__
    from kvledger.hf.probe import head_importance

    facts = {"model": arguments.model, "task": arguments.task, "tokens": arguments.context, "seed": arguments.seed}
    measured = head_importance(model, tokenizer, needles(tokenizer, arguments))
    count = arguments.samples * arguments.turns
    replace(measured, samples=count, version=__version__, **facts).save(arguments.out)


def search(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Search and write the file of head patterns."""
    from kvledger import __version__
    from kvledger.hf.search import head_patterns

    facts = {"model": arguments.model, "task": arguments.task, "tokens": arguments.context, "seed": arguments.seed}
    prompts = ((one.context, one.question) for one in needles(tokenizer, arguments))
    found = head_patterns(model, tokenizer, prompts, arguments.context)
    count = arguments.samples * arguments.turns
    replace(found, samples=count, version=__version__, **facts).save(arguments.out)


def needles(tokenizer: Any, arguments: argparse.Namespace) -> Iterator[Needle]:
    """The questions of the task's samples, each with its evidence."""
    from kvledger.hf.probe import Needle
    from kvledger.tasks import get
    from kvledger.tasks.base import Form

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    form: Form = "small" if len(tokenizer) < 8192 else "full"
    for index in range(arguments.samples):
        sample = get(arguments.task).sample(
            seed=arguments.seed, index=index, tokens=arguments.context, count=count, turns=arguments.turns, form=form
        )
        for turn in sample.turns:
            if not turn.evidence:
                raise ValueError(
                    f"the questions of {arguments.task} name no evidence; take a retrieval task, like scbench/kv"
                )
            yield Needle(sample.text, turn.question, turn.gold, turn.evidence)
