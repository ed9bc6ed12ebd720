"""The page docs/models.md: what was found of each type under the newest transformers tried, and how older ones differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
EQUAL, REFUSED, SKIPPED = "equal", "refused", "not tried"
SNAP = "snapkv(keep=0.5, window=4)"


@dataclass(frozen=True)
class Row:
    """What is found of a type: verdict; layers that are ours and those left to transformers; then one word a question."""

    kind: str
    verdict: str
    ours: str = ""
    left: str = ""
    chunks: str = ""
    batch: str = ""
    bytes: str = ""
    fork: str = ""
    reason: str = ""


HEAD = """# Models

Every causal type that transformers {version} lists, as a tiny random model under the ledger. The page is written by
`python tests/hf/test_models.py docs/models.md`, and the tests compare it with what they find. What is different under an older
transformers stands at the end, written by the same command run with that.

- **equal**: with the full cache, the logits are those of plain transformers (eager attention), in float32, at every token.
- **ours**: layers whose keys and values kvledger holds and compresses, of those of the tiny model, which has a layer of each
  kind of its type. The others are left to transformers as they are: sliding (and chunked) windows, recurrent states. Layers
  with attention and a state side by side are ours, and their state is left as it is. Of multi-head latent attention (DeepSeek)
  the latents are held, counted and dropped, one row a token for all heads of a layer.
- Where no layer is ours (Mamba, Mamba-2, RecurrentGemma) the model runs under `full`, its state is counted, forked and taken
  back with the rest, and a recipe that would compress is refused by name; `kvledger run` leaves such recipes out and says so.
- **chunks**: read in chunks and then token by token, a prompt gives the same logits. Where it does not, the model itself
  restarts its state when several tokens arrive (plain transformers does the same): a session then reads the context in one
  shot and questions token by token, and refuses `chunk`.
- **batch**: two prompts padded on the left give the logits of each alone.
- **bytes**: under `{recipe}` (or `full`, where no layer is ours) the ledger says what a walk over all tensors
  of the cache and, beside weights and buffers, of the model finds, other layers included.
- **fork**: a fork that goes on leaves its origin as it was.

Types with a state are also tested in conversation (`tests/hf/test_models_turns.py`): questions, forks, gold answers and a
session opened again from a file have the logits of the whole text read at once. Bamba takes the tokens of each forward for the
first ones unless it is told their positions; kvledger tells it.

Encoders that transformers lists as causal are run as decoders (`is_decoder`); models that wrap a language model with an encoder
of other inputs (Gemma 3, Llama 4) are given text. **refused**: `open` and `attach` raise a ValueError that says why; nothing
runs dense behind the user's back. **not tried**: more than a language model.

"""
COLUMNS = ("type", "verdict", "ours", "left to transformers", "chunks", "batch", "bytes", "fork")
OLDER = "## On transformers "
Cells = dict[str, tuple[str, ...]]  # by type: its verdict and, if that is "equal", the other columns


def cells_of(rows: list[Row]) -> Cells:
    return {row.kind: astuple(row)[1:-1] if row.verdict == EQUAL else (row.verdict,) for row in rows}


def count(rows: list[Row]) -> str:
    counts = Counter(row.verdict for row in rows)
    return f"{counts[EQUAL]} of {len(rows)} equal, {counts[REFUSED]} refused, {counts[SKIPPED]} not tried.\n\n"


def table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(astuple(row)[:-1]) + " |" for row in rows if row.verdict == EQUAL]
    lines += ["", "| type | verdict | reason |", "|---|---|---|"]
    lines += [f"| {row.kind} | {row.verdict} | {row.reason} |" for row in rows if row.verdict != EQUAL]
    return "\n".join(lines) + "\n"


def write(path: Path, version: str, rows: list[Row]) -> None:
    """The page anew or, for another version than the page's that is older, its section."""
    main, _, older = path.read_text().partition(OLDER) if path.exists() else ("", "", "")
    theirs = version_of(main)
    if not main or number(version) >= number(theirs):
        main = HEAD.format(version=version, recipe=SNAP) + count(rows) + table(rows) + ("\n" if older else "")
        path.write_text(main + (OLDER + older if older else ""))
        return
    known = read(main)
    other = [row for row in rows if known.get(row.kind) != cells_of([row])[row.kind]]
    gone = sorted(set(known) - {row.kind for row in rows})
    text = f"{OLDER}{version}\n\n{count(rows)}Unknown to it: {', '.join(gone) or 'none'}. Different from above:\n\n"
    path.write_text(main.rstrip("\n") + "\n\n" + text + table(other))


def version_of(text: str) -> str:
    return text.split("that transformers ", 1)[1].split()[0] if text else "0"


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def read(text: str) -> Cells:
    """The tables of a part of the page."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {line[0]: line[1:] if line[1] == EQUAL else line[1:2] for line in cells if line[0] != "type"}


def versions() -> list[str]:
    main, *older = PAGE.read_text().split(OLDER)
    return [version_of(main), *(part.split()[0] for part in older)]


def expected(version: str) -> Cells:
    """What the page says of each type under `version`; nothing if it is not on the page."""
    main, *older = PAGE.read_text().split(OLDER)
    if version == version_of(main):
        return read(main)
    for part in older:
        if part.split()[0] == version:
            gone = part.split("Unknown to it: ")[1].split(". Different")[0].split(", ")
            return {kind: cells for kind, cells in (read(main) | read(part)).items() if kind not in gone}
    return {}
