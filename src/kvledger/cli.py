"""The command line; `kvledger --help` lists its commands. Bodies import late: `--help` loads no torch."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

CHUNKED = ("random", "streaming", "snapkv", "adakv")
DEMO = {
    "recipes": [
        "full",
        # after the prompt (votes, a trained scorer), and trained heads, beside those that evict while reading
        *(f"{name}(keep={keep})" for keep in (0.2, 0.5) for name in ("snapkv", "kvzap", "headgate")),
        *(f"{name}(keep={keep}, when='chunk')" for keep in (0.2, 0.5) for name in CHUNKED),
    ],
    "tasks": ["scbench/kv", "scbench/many_shot"],
    "modes": ["multi-turn", "multi-request"],
    "visibility": ["hidden", "visible"],
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Errors a user can mend are one line on stderr and exit status 2."""
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(arguments.body(arguments) or 0)
    except (ValueError, RuntimeError) as error:
        print(f"kvledger: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kvledger: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest option or command."""

    def error(self, message: str) -> Any:
        from kvledger.recipe import nearest

        message, _, choices = message.partition(" (choose from ")
        wrong = message.split("'")[1] if choices else next((w for w in message.split() if w.startswith("--")), "")
        known = [option for action in self._actions for option in action.option_strings]
        if choices:
            known = [choice.strip("', ") for choice in choices.rstrip(")").split(",")]
        self.exit(2, f"kvledger: {message}{nearest(wrong, known) if 'unrecognized' in message or choices else ''}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kvledger", description="How many KVs does your model need?", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    demo = commands.add_parser("demo", help="a fixed run on the embedded model: table and page", allow_abbrev=False)
    demo.add_argument("--out", default="demo", metavar="DIR", help="where records and page go (default: demo)")
    demo.add_argument("--samples", type=int, default=3, help="contexts per task (default: 3)")
    demo.set_defaults(body=_demo, parser=demo)

    _run_parsers(commands)

    train = commands.add_parser(
        "train",
        help="learn which heads may forget, or what rows are worth; the same command resumes",
        allow_abbrev=False,
    )
    _train_options(train)
    train.set_defaults(body=_train, parser=train)

    _inspect_parser(commands)
    _serve_parsers(commands)

    report = commands.add_parser("report", help="table and page from the records of a run", allow_abbrev=False)
    report.add_argument(
        "dir", nargs="+", metavar="DIR", help="of one run; of two: what changed from the first to the second"
    )
    report.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    report.add_argument("--figures", metavar="OUT", help="also write every figure to OUT, as SVG and PDF")
    report.add_argument("--tables", metavar="OUT", help="also write every table to OUT, as CSV and LaTeX")
    report.set_defaults(body=_report, parser=report)

    for name, body, text in (("methods", _methods, "all methods"), ("tasks", _tasks, "all tasks")):
        listing = commands.add_parser(name, help=f"list {text}", allow_abbrev=False)
        listing.add_argument("--json", action="store_true", help="print one JSON document")
        listing.set_defaults(body=body, parser=listing)
        if name == "methods":
            listing.add_argument("--markdown", action="store_true", help="print docs/methods.md")
    return parser


def _train_options(train: argparse.ArgumentParser) -> None:
    from kvledger.train.command import add_options  # loads no torch

    add_options(train)


def _run_parsers(commands: Any) -> None:
    from kvledger.run import command, critical_command, drift, judge, probe  # load no torch

    command.add_parser(commands).set_defaults(body=_run)
    probe.add_parser(commands)
    judge.add_parser(commands)
    critical_command.add_parser(commands).set_defaults(body=_critical)
    drift.add_parser(commands, _drift_page)


def _critical(arguments: argparse.Namespace) -> None:
    from kvledger.report.critical import show
    from kvledger.run.critical_command import run

    run(arguments, show)


def _drift_page(out: Path, scores: str | None) -> None:
    from kvledger.report.drift import show

    show(out, scores)


def _serve_parsers(commands: Any) -> None:
    from kvledger.serve import command  # loads no torch

    command.add_parser(commands)
    command.add_export_parser(commands)


def _inspect_parser(commands: Any) -> None:
    from kvledger.run.inspect import add_parser  # loads no torch

    inspector = add_parser(commands)
    inspector.set_defaults(body=_inspect, parser=inspector)


def _inspect(arguments: argparse.Namespace) -> None:
    from kvledger.report import inspector
    from kvledger.run.inspect import inspect

    print(f"page: {inspector.write(inspect(arguments), arguments.out)}")


def _train(arguments: argparse.Namespace) -> None:
    from kvledger.train.command import run

    done = run(arguments)
    if done is not None:
        from kvledger.report import training

        gates, log = done
        if gates.suffix == ".safetensors":
            print(f"{'nsa' if arguments.objective == 'nsa' else 'scorer'}: {gates}\nlog: {log}")
            return
        training.write(log, gates, gates.with_suffix(".html"))
        print(f"gates: {gates}\npage: {gates.with_suffix('.html')}")


def _run(arguments: argparse.Namespace) -> None:
    from kvledger.run.command import run

    if run(arguments):
        _show(Path(arguments.out))


def _demo(arguments: argparse.Namespace) -> None:
    from kvledger.run.command import play
    from kvledger.run.sweep import Grid

    lists = {key: tuple(value) for key, value in DEMO.items()}
    play(Grid(model="zoo", context=(1024,), chunk=256, samples=arguments.samples, **lists), Path(arguments.out))  # type: ignore[arg-type]
    _show(Path(arguments.out))


def _show(out: Path) -> None:
    """The page, the table, and where the page is."""
    from kvledger.report.command import show

    show(out, _kinds())


def _kinds() -> dict[str, str]:
    """task -> category of the long-context paper, else capability: what the report shows as one."""
    from kvledger.tasks import TASKS

    return {name: getattr(task, "category", "") or task.capability for name, task in TASKS.items()}


def _report(arguments: argparse.Namespace) -> None:
    from kvledger.report.command import body

    body(arguments, _kinds())


def _methods(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from kvledger.recipe import registry

    parts = [cls for _, cls in sorted(registry().items())]
    if arguments.markdown:
        from kvledger.report import catalogue

        own = [cls for cls in parts if cls.__module__.startswith("kvledger.")]
        print(catalogue.page([_entry(cls) for cls in own]), end="")
        return
    _listing([asdict(cls.row) for cls in parts], arguments.json)  # type: ignore[attr-defined]


def _entry(cls: Any) -> Any:
    """What the catalogue says of a method: options of its own, or with a default of its own."""
    from dataclasses import asdict, fields

    from kvledger.methods.base import Method
    from kvledger.report.catalogue import Entry

    frame = {f.name: f.default for f in fields(Method)}
    own = [f for f in fields(cls) if f.name not in frame or f.default != frame[f.name]]
    options = ", ".join(f"{f.name}={f.default!r}" for f in own)
    explained = cls.__doc__ if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") else ""
    about = sys.modules[cls.__module__].__doc__ or ""
    return Entry(
        **asdict(cls.row), options=options, about=inspect.cleandoc(about), explained=inspect.cleandoc(explained)
    )


def _tasks(arguments: argparse.Namespace) -> None:
    from kvledger.tasks import TASKS
    from kvledger.tasks.suites import LEGEND, facts, shown

    _listing([(facts if arguments.json else shown)(task) for task in TASKS.values()], arguments.json)
    if not arguments.json:
        print(f"\n{LEGEND}")


def _listing(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=name == "task")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console()
    Console(width=console.width if console.is_terminal else 140).print(table)


if __name__ == "__main__":
    sys.exit(main())
