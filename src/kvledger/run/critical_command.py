"""`kvledger critical`: its options, and what it does until there is a table to print. (Torch is imported by `search`.)"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvledger.critical import AXES, RULES, Question
from kvledger.records import Record, read
from kvledger.run.command import together_option
from kvledger.tasks import TASKS, suite

if TYPE_CHECKING:
    from kvledger.run.search import Field, Quest, Search


class Findings(NamedTuple):
    """What a table is made of, and what is to be said of how it came about."""

    records: list[Record]
    question: Question
    notes: list[str]


def add_parser(commands: Any) -> Any:
    """The subcommand, on argparse's sub-parsers. Loads no torch."""
    parser = commands.add_parser(
        "critical",
        help="the smallest footprint that keeps 90 %% of the full score: by search, or from the records of a run",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dir",
        nargs="?",
        default="critical",
        metavar="DIR",
        help="records to read, and with --recipes to add to (critical)",
    )
    parser.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", help="search these, written without keep: snapkv adakv"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks or suites to search on")
    parser.add_argument("--by", default="task", choices=("task", "category"), help="one answer a task, or a category")
    parser.add_argument("--target", type=float, default=0.9, metavar="F", help="of the full score (default: 0.9)")
    parser.add_argument("--rule", default="lowest", choices=RULES, help="of curves that cross more than once")
    parser.add_argument("--axis", default="entries", choices=AXES, help="the footprint (default: entries)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    _search_options(parser.add_argument_group("of a search"))
    parser.set_defaults(parser=parser)
    return parser


def _search_options(group: Any) -> None:
    group.add_argument("--width", type=float, default=0.1, help="stop when the 95 %% interval is this narrow")
    group.add_argument("--samples", type=int, default=20, help="contexts for one budget at most (default: 20)")
    group.add_argument("--first", type=int, help="contexts of a first look (default: 4, or all if fewer)")
    group.add_argument(
        "--budget", type=int, help="contexts for a recipe on a task at most (default: 4.5 times --samples)"
    )
    group.add_argument("--step", type=float, default=0.05, help="between neighbouring keeps (default: 0.05)")
    group.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    group.add_argument("--mode", default="multi-turn", help="multi-turn, multi-request")
    group.add_argument("--visibility", default="hidden", help="hidden, visible, patched")
    group.add_argument("--context", type=int, default=2048, metavar="TOKENS", help="tokens of the shared context")
    group.add_argument("--chunk", type=int, default=512, metavar="TOKENS", help="tokens read at a time; 0: in one shot")
    together_option(group)
    group.add_argument("--turns", type=int, help="questions per context; default: the task's own number")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--history", default="gold", help="what later turns see as earlier answers: gold, model")
    group.add_argument(
        "--form", default="auto", help="small or full SCBench shapes; auto: small for small vocabularies"
    )
    group.add_argument("--data", default="", metavar="hub|DIR", help="published data instead of generated samples")
    group.add_argument("--plan", action="store_true", help="print what it would cost, and stop")


def categories() -> dict[str, str]:
    """task -> its category of arXiv 2506.17121, else the capability that it is said to test."""
    return {name: task.category or task.capability for name, task in TASKS.items()}


def run(arguments: argparse.Namespace, show: Callable[[list[Record], Question, list[str], bool], None]) -> None:
    """Search, if recipes are named, and `show` what came of it (unless only the plan was asked for)."""
    if (found := _find(arguments)) is not None:
        show(*found, arguments.json)


def _find(arguments: argparse.Namespace) -> Findings | None:
    out = Path(arguments.dir)
    groups = categories() if arguments.by == "category" else {}
    question = Question(arguments.target, arguments.axis, arguments.rule, groups)
    if not arguments.recipes:
        if arguments.tasks:
            raise ValueError("--tasks without --recipes: a search needs both, and reading records neither")
        if not (out / "records").is_dir():
            raise ValueError(
                f"no records in {out}: expected {out / 'records'}/*.jsonl, or --recipes and --tasks to search"
            )
        records, damaged = read(out)
        return Findings(records, question, damaged)
    if not arguments.tasks:
        raise ValueError("--recipes without --tasks: name tasks or suites, like scbench/kv or scbench")
    return _search(arguments, question, out)


def search_of(arguments: argparse.Namespace, question: Question) -> Search:
    """The search that a command line asks for. ValueError for what cannot be."""
    from kvledger.critical.search import Aim
    from kvledger.run.search import Search
    from kvledger.run.sweep import Grid

    aim = Aim(
        question.target,
        arguments.width,
        min(4, arguments.samples) if arguments.first is None else arguments.first,
        arguments.samples,
        int(4.5 * arguments.samples) if arguments.budget is None else arguments.budget,
        question.rule,
    )
    names = tuple(dict.fromkeys(task.name for name in arguments.tasks for task in suite(name, bool(arguments.data))))
    grid = Grid(
        arguments.model, tuple(arguments.recipes), names, (arguments.mode,), (arguments.visibility,), (arguments.context,),
        arguments.chunk, arguments.samples, arguments.turns, arguments.seed, arguments.history, arguments.form,
        data=arguments.data, together=arguments.together,
    )  # fmt: skip
    columns: dict[str, tuple[str, ...]] = {}
    for name in names:
        column = question.column(name)
        columns[column] = (*columns.get(column, ()), name)
    return Search(grid, columns, aim, arguments.step, question.axis)


def _search(arguments: argparse.Namespace, question: Question, out: Path) -> Findings | None:
    from kvledger.run.plan import plan
    from kvledger.run.search import open_field, pursue, quests

    sys.path.insert(0, "")  # so that a recipe can name a class in a file of the current folder
    search = search_of(arguments, question)
    goals = quests(search)
    known = open_field(search, goals, out, lambda line: print(f"kvledger: {line}", file=sys.stderr))
    try:
        print(plan(search, goals, known, lambda record: None), file=sys.stderr)
        if arguments.plan:
            return None
        with _live(goals) as watch:
            played = pursue(search, goals, known, watch)
    finally:
        known.log.close()
    return findings(goals, known, question, played)


def findings(goals: list[Quest], known: Field, question: Question, played: int) -> Findings:
    """The records that a search made use of, and why each of its quests ended."""
    lines = {recipe: goal.line for goal in goals for recipe in goal.ladder}
    records = [r for key in known.used for _, r in sorted(known.heard[key].items())]
    ends: dict[str, list[str]] = {}
    for goal in goals:
        ends.setdefault(goal.end, []).append(f"{goal.line} on {goal.column}")
    notes = [f"search ended, {end}: {', '.join(who)}" for end, who in ends.items()]
    notes.append(f"{played} turns played, {len(records) - played} were on record")
    return Findings(records, replace(question, lines=lines), notes)


@contextmanager
def _live(goals: list[Quest]) -> Iterator[Any]:
    """A line on stderr: turns so far, quests that are over, and what is being played."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("searches"), BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.description}")]  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(goals))
        turns = 0

        def watch(record: Record) -> None:
            nonlocal turns
            turns += 1
            over = sum(bool(goal.end) for goal in goals)
            bar.update(task, completed=over, description=f"{turns} turns · {record.recipe} · {record.task}")

        yield watch
        bar.update(task, completed=len(goals))
