"""Find the function that is described, in place of SCBench's Code.RepoQA and Mix.RepoQA+KV (arXiv 2412.10319, 2406.06025).

RepoQA takes functions of GitHub repositories and lets GPT-4 describe them.  Here the functions come from the standard
library of the Python that runs (licence: PSF; read where it is installed, not copied), their docstrings are taken out of the
text, and the first paragraph of one is the description.  The same Python version gives the same samples; another may not.
A large model has seen this library: what it knows by heart needs no context, so the no-context baseline is its own to
measure, and the scores are not to be set beside RepoQA's.  The mix puts key-value pairs between the functions.
"""

from __future__ import annotations

import ast
import platform
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.functions import function_in
from kvledger.tasks.retrieval import KV_IS, kv_turn
from kvledger.tasks.words import distinct, identifier

SOURCE = f"stdlib of Python {platform.python_version()}"
LEFT_OUT = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "encodings",
    "__pycache__",
    "turtledemo",
}
SHORT, LONG = 14, 60  # lines of a function at most
FIRST = {"small": 64, "full": 8}  # so many short ones come first
READ = (
    "Based on the function description and code context, please retrieve and repeat the exact described function from the code "
    "context in a code block wrapped by ```:\n\n"
)
READ_SMALL = "Repeat the function that is described.\n\n"


@dataclass(frozen=True)
class Function:
    """`source` without its docstring, dedented; `about` is the first paragraph of the docstring, "" if it cannot be asked."""

    name: str
    source: str
    about: str

    @property
    def head(self) -> str:
        """Its first two lines."""
        return "\n".join(self.source.split("\n", 2)[:2])


@lru_cache(maxsize=1)
def files() -> tuple[Path, ...]:
    """The modules of the standard library and of its packages, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [*root.glob("*.py"), *root.glob("*/*.py")]
    kept = [path for path in found if not LEFT_OUT & set(path.relative_to(root).parts)]
    return tuple(sorted(kept, key=lambda path: path.relative_to(root).as_posix()))


@lru_cache(maxsize=1024)
def written(path: Path) -> tuple[Function, ...]:
    """The functions of a module and the methods of its classes that have a body of some lines."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ()
    lines = text.splitlines()
    inside = [child for node in tree.body if isinstance(node, ast.ClassDef) for child in node.body]
    nodes = [node for node in (*tree.body, *inside) if isinstance(node, ast.FunctionDef)]
    return tuple(made for node in nodes if (made := _function(node, lines)) is not None)


def _function(node: ast.FunctionDef, lines: list[str]) -> Function | None:
    doc, first = ast.get_docstring(node), node.body[0]
    if first.lineno == node.lineno or (doc and len(node.body) < 2):
        return None
    kept = lines[node.lineno - 1 : node.end_lineno]
    if doc:
        kept = [*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno : node.end_lineno]]
    source = "\n".join(line[node.col_offset :] for line in kept if line.strip())
    if (
        source.count("\n") < 2 or "```" in source or function_in(source) != source
    ):  # or text that leaves the indentation
        return None
    about = " ".join((doc or "").split("\n\n")[0].split())
    return Function(node.name, source, about if 40 <= len(about) <= 400 and node.name not in about else "")


def functions(seed: float, first: int) -> Iterator[Function]:
    """Module by module in an order of this seed, each parsed when it is needed: `first` short functions that can be asked, so
    that small contexts hold several, then all. Of those that can be asked no name and no description comes twice; no two begin
    with the same two lines, so none of them is found within another."""
    order = list(files())
    random.Random(seed).shuffle(order)
    seen: set[str] = set()
    yield from islice((made for made in _up_to(order, SHORT) if _askable(made, seen)), first)
    for made in _up_to(order, LONG):
        if _askable(made, seen):
            yield made
        elif made.head not in seen:
            seen.add(made.head)
            yield replace(made, about="")


def _askable(made: Function, seen: set[str]) -> bool:
    """Whether it can be asked beside those `seen`; if so, it is one of them from now on."""
    marks = {made.name, made.about, made.head}
    if not made.about or marks & seen:
        return False
    seen |= marks
    return True


def _up_to(order: list[Path], lines: int) -> Iterator[Function]:
    return (made for path in order for made in written(path) if made.source.count("\n") < lines)


def repoqa(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` functions; a question describes one of them."""
    draft = Draft()
    draft.add("instruction", READ_SMALL if form == "small" else READ)
    held = _held(rng, size, max(FIRST[form], turns))
    rng.shuffle(held)
    spans = [_put(draft, made) for made in held]
    return draft.sample("scbench/repoqa_alike", _turns(rng, held, spans, turns, form))


def repoqa_and_kv(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` functions with a key-value pair after each; questions of both kinds take turns."""
    draft = Draft()
    draft.add("instruction", READ_SMALL if form == "small" else READ)
    held, taken = _held(rng, size, max(FIRST[form], turns)), set[str]()
    rng.shuffle(held)
    spans, pairs = [], []
    for made in held:
        spans.append(_put(draft, made))
        key, value = distinct(lambda: identifier(rng, form, 2 * size), 2, taken)
        draft.add("context", '"')
        pairs.append((key, value, draft.add("context", f"{key}{KV_IS}{value}")))
        draft.add("context", '"\n\n')
    half = (turns + 1) // 2
    asked = _turns(rng, held, spans, half, form)
    keys = [kv_turn(*pairs[i], form, "kv") for i in stratify(rng, len(pairs), half)]
    first = rng.randrange(2)
    both = [turn for pair in zip(asked, keys, strict=True) for turn in (pair if first else pair[::-1])]
    return draft.sample("scbench/repoqa_and_kv_alike", both[:turns])


def _held(rng: random.Random, size: int, first: int) -> list[Function]:
    held = list(islice(functions(rng.random(), first), size))
    if len(held) < size:  # of a context of more than a million tokens
        raise ValueError(f"the standard library has {len(held)} such functions, not {size}: ask for a shorter context")
    return held


def _put(draft: Draft, made: Function) -> Span:
    span = draft.add("context", made.source)
    draft.add("context", "\n\n")
    return span


def _turns(rng: random.Random, held: list[Function], spans: list[Span], turns: int, form: Form) -> list[Turn]:
    """One question per depth bin. The golds are the function asked for, then the others that are asked: its rivals."""
    known = [i for i, function in enumerate(held) if function.about]
    picks = [known[i] for i in stratify(rng, len(known), turns)]
    made = []
    for i in picks:
        rivals = (held[j].source for j in dict.fromkeys(picks) if j != i)
        question = f"\n\nFunction description: {held[i].about}\n"
        gold, cap = f"```python\n{held[i].source}\n```", 200 if form == "small" else 1024
        made.append(Turn(question, gold, (held[i].source, *rivals), cap, (spans[i],), 0.0, "repoqa"))
    return made
