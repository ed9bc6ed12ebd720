"""Head gates as a file: how much each KV head needs the whole cache, and what that was trained with.

`gates.json` holds *soft* scores, so one file serves every sparsity; which heads are full is decided when it is used.
Read and written as well: DuoAttention's `full_attention_heads.tsv` with its `config.json` (arXiv 2410.10819; code MIT,
github.com/mit-han-lab/duo-attention), and the 0/1 tables `masks_sp*.tsv` of PruLong (arXiv 2506.17121; code,
github.com/princeton-pli/PruLong).

Deviation from both: their binarisation adds unseeded noise to the scores and cuts at a quantile, which at some sparsities
turns a random head over.  Here heads are ranked by score, and equal scores by place: earlier layer, then earlier head.
A 0/1 table asked for another sparsity than its own is therefore filled up, or cut, by place.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from kvledger.recipe import nearest

FORMAT = 1
DUO_FILE, DUO_CONFIG = "full_attention_heads.tsv", "config.json"
PRULONG_SINK, PRULONG_WINDOW = 128, 1024  # what masks_sp*.tsv are trained with; the files do not say
EMBEDDED = "zoo/"
Scores = tuple[tuple[float, ...], ...]
Mask = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class Gates:
    """Trained gates of one model.

    scores: [slots][H] in [0, 1]; higher means the head needs the whole cache. Slots are the model's full-attention layers
    in order. sink, window: tokens that a streaming head keeps. target: the sparsity trained for; data, seed, steps,
    objective, model, revision, version: where it comes from.
    """

    scores: Scores
    sink: int
    window: int
    model: str = ""
    revision: str = ""
    objective: str = ""
    target: float = 0.0
    data: str = ""
    seed: int = 0
    steps: int = 0
    version: str = ""

    def __post_init__(self) -> None:
        if not self.scores or not self.scores[0]:
            raise ValueError("gates without scores: they need a row for each layer and a number for each KV head")
        for layer, row in enumerate(self.scores):
            if len(row) != len(self.scores[0]):
                raise ValueError(f"layer {layer} has {len(row)} scores and layer 0 has {len(self.scores[0])}")
            for head, score in enumerate(row):
                if not 0 <= score <= 1:
                    raise ValueError(f"the score of layer {layer}, head {head} is {score}, not a number in [0, 1]")
        if self.sink < 0 or self.window < 1:
            raise ValueError(
                f"sink={self.sink}, window={self.window}: a sink has 0 tokens or more, a window at least 1"
            )

    def full_heads(self, keep: float, budget: str = "global") -> Mask:
        """Which heads stay full, [slots][H]: the highest scores; equal ones by earlier layer, then earlier head.

        keep in (0, 1]: of all heads round(keep·slots·H) (budget="global"), or of each layer round(keep·H) ("layer"),
        halves rounded up. ValueError if that is no head.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is outside (0, 1]: it is the fraction of heads that stay full")
        if budget == "layer":
            return tuple(_top((row,), keep, "of a layer")[0] for row in self.scores)
        if budget != "global":
            raise ValueError(f"budget={budget!r} is not 'global' or 'layer'")
        return _top(self.scores, keep, "of all layers")

    def save(self, path: str | Path) -> None:
        """Write `gates.json`; an older file is replaced in one step, so that no reader meets half of one."""
        facts = {field.name: json.dumps(getattr(self, field.name)) for field in fields(self)}
        facts["scores"] = "[\n    " + ",\n    ".join(json.dumps(row) for row in self.scores) + "\n  ]"
        lines = [f'"format": {FORMAT}', *(f'"{name}": {value}' for name, value in facts.items())]
        _write(Path(path), "{\n  " + ",\n  ".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> Gates:
        """Gates from `gates.json`. ValueError names the file and what is wrong with it."""
        facts = _object(Path(path))
        try:
            return cls(**_checked(facts))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_tsv(cls, path: str | Path, sink: int | None = None, window: int | None = None) -> Gates:
        """DuoAttention's or PruLong's table. Scores are clipped to [0, 1] (Duo's stray a little below 0).

        Sink and window come from the arguments, else from `NAME.config.json` or `config.json` beside the table; of files
        named `masks_sp…` they are PruLong's 128 and 1024.
        """
        path = Path(path)
        scores, config, about = _table(path), _config(path), re.match(r"masks_sp([\d.]*\d)?", path.name)
        sink = config.get("sink_size", PRULONG_SINK if about else None) if sink is None else sink
        window = config.get("recent_size", PRULONG_WINDOW if about else None) if window is None else window
        if not isinstance(sink, int) or not isinstance(window, int):
            raise ValueError(
                f"{path} does not say its sink and window: put DuoAttention's {DUO_CONFIG} (sink_size, recent_size) "
                "beside it, or use Gates.from_tsv(path, sink=…, window=…) and save the result"
            )
        try:
            return cls(
                scores,
                sink,
                window,
                model=str(config.get("model_name", "")),
                objective="prulong" if about else "duo" if "reg_weight" in config else "",
                target=float(about[1] or 0) if about else 0.0,
                data=str(config.get("dataset_name", "")),
                seed=int(config.get("seed", 0)),
                steps=int(config.get("num_steps", 0)),
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def to_tsv(self, path: str | Path) -> None:
        """Write DuoAttention's form: layers × KV heads, tabs between floats, and its config beside it.

        A folder gets `full_attention_heads.tsv` and `config.json`; another file NAME.tsv gets NAME.config.json.
        """
        path = Path(path)
        path = path if path.suffix == ".tsv" else path / DUO_FILE
        facts = {"model_name": self.model, "dataset_name": self.data, "sink_size": self.sink}
        facts |= {"recent_size": self.window, "num_steps": self.steps, "seed": self.seed}
        _write(path, "".join("\t".join(f"{score:.18e}" for score in row) + "\n" for row in self.scores))
        _write(_siblings(path)[0], json.dumps(facts, indent=2) + "\n")


def read_gates(path: str | Path) -> Gates:
    """Gates of a `.json` or `.tsv` file, of a folder that holds DuoAttention's table, or of "zoo/NAME", embedded here."""
    if isinstance(path, str) and path.startswith(EMBEDDED):
        return Gates.load(_embedded(path.removeprefix(EMBEDDED)))
    path = Path(path)
    if path.is_dir():
        path = path / DUO_FILE
    if path.suffix not in (".json", ".tsv"):
        raise ValueError(
            f"{path} is not a gate file: these end in .json or .tsv, and embedded ones begin with {EMBEDDED}"
        )
    return Gates.from_tsv(path) if path.suffix == ".tsv" else Gates.load(path)


def embedded() -> dict[str, Path]:
    """The gate files inside this package, by name."""
    folder = Path(str(resources.files("kvledger"))) / "zoo" / "gates"
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def _embedded(name: str) -> Path:
    known = embedded()
    if not known:
        raise ValueError(f"there are no embedded gates, so no {EMBEDDED + name!r}; train some with `kvledger train`")
    if name not in known:
        raise ValueError(f"unknown gates {EMBEDDED + name!r}{nearest(EMBEDDED + name, [EMBEDDED + k for k in known])}")
    return known[name]


def _top(scores: Scores, keep: float, of: str) -> Mask:
    places = [(-score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row)]
    count = math.floor(keep * len(places) + 0.5 + 1e-9)
    if not count:
        least = 0.5 / len(places)
        raise ValueError(f"keep={keep} {of} {len(places)} KV heads leaves no full head; the least is {least:.4g}")
    full = {(layer, head) for _, layer, head in sorted(places)[:count]}
    return tuple(tuple((layer, head) in full for head in range(len(row))) for layer, row in enumerate(scores))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the gates {path}: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} holds no JSON object")
    return facts


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a format-1 file with their types."""
    number = facts.pop("format", None)
    if not _is(int, number) or not 1 <= number <= FORMAT:
        raise ValueError(f"format {number!r} is not known here (known: {FORMAT}); a newer kvledger may read it")
    known = {field.name: field for field in fields(Gates)}
    for name, field in known.items():
        if field.default is MISSING and name not in facts:
            raise ValueError(f"missing field {name!r}")
    if unknown := sorted(set(facts) - set(known)):
        raise ValueError(f"unknown field {unknown[0]!r}{nearest(unknown[0], known)}")
    for name, value in facts.items():
        kind = int if known[name].default is MISSING else type(known[name].default)
        if name != "scores" and not _is(kind, value):
            raise ValueError(f"{name} is {value!r}, not of type {kind.__name__}")
    table = facts["scores"]
    if not isinstance(table, list) or not all(isinstance(row, list) for row in table):
        raise ValueError("scores is not a table, [layers][KV heads]")
    if wrong := [score for row in table for score in row if not _is(float, score)]:
        raise ValueError(f"the score {wrong[0]!r} is not a number")
    return {**facts, "scores": tuple(tuple(float(score) for score in row) for row in table)}


def _is(kind: type, value: object) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _table(path: Path) -> Scores:
    """The numbers of a table, clipped to [0, 1]."""
    table = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{path}: line {number} holds {next(x for x in row if not math.isfinite(x))}")
        if row:
            table.append(tuple(min(1.0, max(0.0, score)) for score in row))
    return tuple(table)


def _siblings(path: Path) -> list[Path]:
    """Where a table's config is looked for; the first one is where it is written."""
    own = path.with_name(f"{path.stem}.{DUO_CONFIG}")
    shared = path.with_name(DUO_CONFIG)
    return [shared] if path.name == DUO_FILE else [own, shared]


def _config(path: Path) -> dict[str, Any]:
    return next((_object(file) for file in _siblings(path) if file.exists()), {})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
