"""`kvledger drift`: how much of the full cache's attention falls on the rows that a recipe kept, by turn and decode step.

SCBench (arXiv 2412.10319 §4.4) says that what matters of a cache shifts from turn to turn, away from what a method saw when it
chose, and gives no number for it. Here a full cache holds the conversation (gold history), each recipe reads the same prompt
and drops its rows, and for every query of a question, and of the gold answer fed token by token, the full cache's attention
is summed over rows that the recipe still holds. Mean over queries, KV heads and layers alike, in [0, 1]:

- held: on all rows that are held: the prompt's that were kept, and every one that came after the prompt;
- context: of the attention on the shared context's rows, the share on kept ones. History is never dropped, so that `held`
  rises by itself as it grows, and a first question in the prompt is long gone at turn 5; this one compares like with like;
- evidence: of the attention on the rows that hold the answer, the share on kept ones; None where a task names none.

Measures are appended facts, one JSON line a turn in `DIR/drift/turns.jsonl`; the same command goes on where it was stopped.
The first question of a visible prompt is read before rows go: its queries are measured against what is held afterwards. The
query that writes an answer's first token is the question's last, and counts there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from kvledger.hf.watcher import Watcher
    from kvledger.recipe import Recipe
    from kvledger.records import Cell
    from kvledger.run.cell import Host
    from kvledger.tasks.base import Sample, Turn

FORMAT = "kvledger.drift/1"
Show = Callable[[Path, str | None], None]  # of a folder of measures, and of one of records to compare them with


@dataclass(frozen=True)
class Share:
    """Shares of attention in [0, 1], as told above."""

    held: float
    context: float
    evidence: float | None


@dataclass(frozen=True)
class Drift:
    """One turn under one recipe. `cell` is the key of the run whose records these rows belong to; `prompt_tokens` were read
    before rows went, `kept` is the share of them that a head holds, `steps` is `held` of each token of the answer."""

    format: str
    cell: str
    model: str
    recipe: str
    task: str
    visibility: str
    context: int
    chunk: int
    seed: int
    sample: int
    turn: int
    prompt_tokens: int
    kept: float
    question: Share
    answer: Share
    steps: tuple[float, ...]

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


# ---- one sample ------------------------------------------------------------------------------------------------------


def of_sample(cells: Sequence[Cell], host: Host, index: int) -> Iterator[Drift]:
    """Measures of all turns of sample `index` of one task, under each of `cells`. ValueError for a conversation that does not
    fit the model's positions."""
    from kvledger.hf.session import check_length
    from kvledger.hf.watcher import Watcher
    from kvledger.recipe import parse
    from kvledger.run.cell import room, sample_of

    one = cells[0]
    sample = sample_of(one, host, index)
    check_length(host.model, room(host, sample))
    readings = host.readings
    readings.turn_to((one.task, one.seed, index, one.context, one.turns, one.form, one.data))
    recipes, early = {cell.recipe for cell in cells}, any(cell.visibility == "hidden" for cell in cells)
    readings.recipes = tuple(sorted(recipes | ({"full"} if early else set())))  # else the full cache reads alone
    kept = [(cell, _kept(cell, host, sample)) for cell in cells]
    watcher = Watcher(readings.read(parse("full"), one.chunk, sample.text, None, lambda recipe: ()))
    before = watcher.tokens
    for number, turn in enumerate(sample.turns):
        evidence = sorted(readings.chat.places(sample.text, turn.evidence, system=False)) if turn.evidence else []
        question, steps = _played(watcher, readings.chat, sample, turn, number)
        for cell, rows in kept:
            asked, told = (share(masses, rows, before, evidence) for masses in ([question], steps))
            by_step = tuple(share([step], rows, before).held for step in steps)
            yield _drift(cell, index, number, rows, asked, told, by_step)


def _kept(cell: Cell, host: Host, sample: Sample) -> Tensor:
    """[S, P] bool: the prompt's rows that each head holds once the prompt has been read."""
    from kvledger.hf.watcher import held_rows
    from kvledger.recipe import parse
    from kvledger.run.cell import reader

    question = None if cell.visibility == "hidden" else sample.turns[0].question
    return held_rows(reader(cell, host, parse(cell.recipe), sample, question))


def _played(watcher: Watcher, chat: Any, sample: Sample, turn: Turn, number: int) -> tuple[Tensor, list[Tensor]]:
    """Mass [S, N] of the question's queries, and of each token of the gold answer, which are the tokens of a session."""
    ids = chat.follow_up(turn.question) if number else chat.opening(sample.text, turn.question)[1]
    question = watcher.feed(ids)
    return question, [watcher.feed([token]) for token in chat.answer(turn.gold)]


def _drift(
    cell: Cell, index: int, number: int, kept: Tensor, question: Share, answer: Share, steps: tuple[float, ...]
) -> Drift:
    return Drift(
        FORMAT, cell.key, cell.model, cell.recipe, cell.task, cell.visibility, cell.context, cell.chunk, cell.seed,
        index, number, kept.shape[1], round(kept.double().mean().item(), 6), question, answer, steps,
    )  # fmt: skip


def share(masses: Sequence[Tensor], kept: Tensor, context: int, evidence: Sequence[int] = ()) -> Share:
    """Of queries whose attention is `masses`, each [S, N], where `kept` [S, P] says which of the first P rows are held. The
    first `context` of them are the context's, `evidence` rows among those. Each of `masses` counts alike."""
    import torch

    P = kept.shape[1]
    on_prompt = torch.stack([mass[:, :P].double() for mass in masses]).sum(0)
    after = sum(mass[:, P:].double().sum().item() for mass in masses)
    on_kept = on_prompt * kept
    held = (after + on_kept.sum().item()) / (len(masses) * len(kept))
    looked, found = (on[:, list(evidence)].sum().item() for on in (on_prompt, on_kept))
    inside = on_kept[:, :context].sum().item() / on_prompt[:, :context].sum().item()
    return Share(_part(held), _part(inside), _part(found / looked) if looked else None)


def _part(share: float) -> float:
    """Six digits; sums of float32 may be a millionth above 1."""
    return round(min(share, 1.0), 6)


# ---- the command -----------------------------------------------------------------------------------------------------


def add_parser(commands: Any, show: Show) -> None:
    """The subcommand, on argparse's sub-parsers; `show` tells what was measured. Loads no torch."""
    parser = commands.add_parser(
        "drift",
        help="how much of the full cache's attention falls on kept rows, turn by turn; the same command resumes",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    parser.add_argument("--recipes", nargs="+", required=True, metavar="RECIPE", help='e.g. "snapkv(keep=0.3)"')
    parser.add_argument("--tasks", nargs="+", default=["scbench/kv"], metavar="TASK", help="(default: scbench/kv)")
    parser.add_argument("--visibility", nargs="+", default=["visible", "hidden"], metavar="V", help="visible, hidden")
    parser.add_argument("--context", type=int, default=1024, metavar="TOKENS", help="tokens of the context")
    parser.add_argument(
        "--chunk", type=int, default=512, metavar="TOKENS", help="tokens read at a time; 0: in one shot"
    )
    parser.add_argument("--samples", type=int, default=3, help="contexts per task (default: 3)")
    parser.add_argument("--turns", type=int, default=5, help="questions per context (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scores", metavar="DIR", help="of `kvledger run` with the same options: how measures go with scores"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="measures go to DIR/drift, the page to DIR/drift.html"
    )
    parser.set_defaults(body=partial(run, show=show), parser=parser)


def path_of(directory: Path) -> Path:
    return directory / "drift" / "turns.jsonl"


def run(arguments: argparse.Namespace, show: Show) -> None:
    """Measure, and `show` the folder, beside the scores that were named."""
    measure(arguments)
    show(Path(arguments.out), arguments.scores)


def measure(arguments: argparse.Namespace) -> int:
    """Measure what `--out` does not hold yet; the number of lines written. ValueError, before any forward, for what cannot be
    measured, or an `--out` of other versions or weights."""
    from kvledger.records import claim
    from kvledger.run.fitting import left_out
    from kvledger.run.host import prepare
    from kvledger.run.sweep import Grid

    grid = Grid(
        arguments.model, tuple(arguments.recipes), tuple(arguments.tasks), ("multi-turn",), tuple(arguments.visibility),
        (arguments.context,), arguments.chunk, arguments.samples, arguments.turns, arguments.seed,
    )  # fmt: skip
    cells = grid.cells()
    check(cells)
    host, played = prepare(grid, cells)
    for line in left_out(cells, played):
        raise ValueError(line)
    cells = played
    claim(Path(arguments.out), host.identity)
    return _append(cells, host, path_of(Path(arguments.out)), lambda line: print(line, file=sys.stderr))


def check(cells: Sequence[Cell]) -> None:
    """ValueError for a recipe whose rows do not stay, or are not those of KV heads."""
    from kvledger.recipe import parse

    for recipe in map(parse, dict.fromkeys(cell.recipe for cell in cells)):
        if recipe.method.heads != "kv":
            raise ValueError(
                f"{recipe} stores rows by query head, and attention is measured by KV head: leave heads= out"
            )
        if _goes_on(recipe):
            raise ValueError(
                f"{recipe} drops rows while it answers; drift is measured on rows that stay after the prompt"
            )


def _goes_on(recipe: Recipe) -> bool:
    profile, method = recipe.profile, recipe.method
    return bool((profile is not None and profile.drops) or (method.drops and method.every))


def done(path: Path) -> set[tuple[str, int, int]]:
    """(cell, sample, turn) of the lines that are whole."""
    found = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            facts = json.loads(line)
            found.add((str(facts["cell"]), int(facts["sample"]), int(facts["turn"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(cells: Sequence[Cell], host: Host, path: Path, tell: Callable[[str], None]) -> int:
    have, written = done(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if torn else "")  # so that half a line damages no other
        for index, task in product(
            range(max(cell.samples for cell in cells)), dict.fromkeys(cell.task for cell in cells)
        ):
            some = [cell for cell in cells if cell.task == task and index < cell.samples]
            missing = [cell for cell in some if any((cell.key, index, turn) not in have for turn in range(cell.turns))]
            if not missing:
                continue
            for drift in of_sample(missing, host, index):
                if (drift.cell, index, drift.turn) not in have:
                    file.write(drift.line() + "\n")
                    file.flush()
                    written += 1
            tell(f"{task}, sample {index}: {len(missing)} cells measured")
    return written
