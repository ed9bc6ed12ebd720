"""`kvledger export`: what was found, in the form of other engines, with what the change of form costs.

duo: DuoAttention's table and config (arXiv 2410.10819; code MIT), scores as they are: nothing is lost.

vllm: settings of `vllm serve`. Head gates become per-layer windows: `layer_types` and `sliding_window` of the model's config by
`--hf-overrides`, which vLLM's own Llama, Mistral and Gemma follow; other types get `--model-impl transformers` (vLLM's own Qwen
refuses layers of two kinds); storage formats become `--kv-cache-dtype`.  vLLM has one window for all layers that have one and,
in it, no sinks.  What both cost is measured here, by the same windows under kvledger, and printed; vLLM itself is not run.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvledger.methods.gatefile import DUO_FILE, EMBEDDED, Gates, read_gates
from kvledger.recipe import Recipe, name_of, parse
from kvledger.serve.rounding import Rounded, rounded

DTYPES = {"fp8": "fp8_per_token_head", "int8": "int8_per_token_head"}  # the same codes: a scale per token and head
NATIVE = ("llama", "mistral", "gemma2", "gemma3", "gemma3_text")  # types whose code in vLLM reads `layer_types`
GATES, SETTINGS, LAYERS = "gates.json", "vllm.json", "layers.json"


@dataclass(frozen=True)
class Cost:
    """What one way of holding the cache came to: mean score of `turns` answers, bytes after reading over the full cache's."""

    what: str
    recipe: str
    score: float
    bytes: float
    turns: int


def body(arguments: argparse.Namespace) -> None:
    """Write the files and say what they cost. ValueError for what cannot be expressed."""
    if arguments.to == "duo":
        gates, path = gates_of(arguments.source), Path(arguments.out) / DUO_FILE
        gates.to_tsv(arguments.out)
        assert read_gates(path).scores == gates.scores
        print(f"{path}: {len(gates.scores)} layers × {len(gates.scores[0])} KV heads, scores as they were")
        print(f"heads that stay full at keep={arguments.keep}: {sum(map(sum, gates.full_heads(arguments.keep)))}")
        print(
            "DuoAttention picks them by a quantile, with noise on the scores: a head or two may differ from run to run"
        )
        return
    for line in to_vllm(arguments):
        print(line)


def gates_of(source: str) -> Gates:
    """The gates of a file, of a folder with gates.json or DuoAttention's table, or embedded ones."""
    path = Path(source) / GATES
    return read_gates(path if path.is_file() else source)


def recipe_of(source: str, keep: float) -> Recipe:
    """A recipe from its text, or from the gates that the text names."""
    if not (source.startswith(EMBEDDED) or Path(source).exists()):
        return parse(source)
    path = Path(source) / GATES
    return parse(f"headgate(path={str(path if path.is_file() else source)!r}, keep={keep})")


# ---- vLLM --------------------------------------------------------------------------------------------------------


def to_vllm(arguments: argparse.Namespace) -> Iterator[str]:
    """Write the settings; lines to show as they come."""
    recipe = recipe_of(arguments.source, arguments.keep)
    left = unexpressed(recipe)
    from kvledger.hf.load import load

    model, tokenizer = load(arguments.model)
    settings: dict[str, Any] = {"model": arguments.model, "recipe": str(recipe), "not_expressed": left}
    out = Path(arguments.out)
    ways = [("full cache", "full"), ("as asked for", str(recipe))]
    if recipe.profile is not None and recipe.profile.drops:
        gates, found = round_heads(model, recipe, arguments.round)
        out.mkdir(parents=True, exist_ok=True)
        found.gates(gates).save(out / LAYERS)
        settings["hf_overrides"] = overrides(model.config, found.layers, gates.window)
        settings["model_impl"] = "auto" if model.config.model_type in NATIVE else "transformers"
        settings["rounding"] = {"how": arguments.round, "full": found.full, **asdict(found)}
        ways += [(f"whole layers, {what}", text) for what, text in layered(recipe, found, gates, out / LAYERS)]
        yield f"{found.heads} KV heads: {found.opened} with a window become full, {found.closed} full ones get a window"
    if recipe.format is not None:
        settings["kv_cache_dtype"] = DTYPES[name_of(recipe.format)]
    for part in left:
        yield f"not expressed, vLLM has no such thing: {part}"
    costs = [measure(model, tokenizer, what, text, arguments) for what, text in ways] if arguments.samples else []
    settings["measured"] = {"task": arguments.task, "context": arguments.context, "ways": [asdict(c) for c in costs]}
    yield from table(costs)
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    yield f"settings: {out / SETTINGS}"
    yield shlex.join(command(settings))


def unexpressed(recipe: Recipe) -> list[str]:
    """Parts of a recipe that vLLM has no settings for. ValueError if that is all of them."""
    fits = [recipe.profile] if recipe.profile is not None and recipe.profile.drops else []
    fits += [recipe.format] if recipe.format is not None and name_of(recipe.format) in DTYPES else []
    left = [part for part in recipe.parts if part not in fits and name_of(part) != "full"]
    if not fits:
        raise ValueError(
            f"nothing of {recipe} can be said to vLLM: it has windows by layer (from headgate) and the formats "
            f"{' and '.join(DTYPES)}"
        )
    if recipe.format is not None and recipe.format in left:
        raise ValueError(
            f"{name_of(recipe.format)} is not among vLLM's formats; the same in both are {', '.join(DTYPES)}"
        )
    return [str(Recipe((part,))) if part.role != "protection" else name_of(part) for part in left]


def round_heads(model: Any, recipe: Recipe, how: str) -> tuple[Gates, Rounded]:
    """The recipe's gates for this model, and its full heads by whole layers."""
    from kvledger.hf.cache import arenas, new_cache

    config = model.config.get_text_config(decoder=True)
    slots = len(arenas(new_cache(model, "full")))
    profile: Any = recipe.profile
    gates = profile.gates(slots, config.num_key_value_heads)
    return gates, rounded(gates.full_heads(profile.keep, profile.budget), gates.scores, how)


def layered(recipe: Recipe, found: Rounded, gates: Gates, path: Path) -> Iterator[tuple[str, str]]:
    """The recipe with whole layers, and without the sinks that vLLM's windows do not have."""
    rest = "" if recipe.format is None else f" + {Recipe((recipe.format,))}"
    for what, sink in (("with sinks", gates.sink), ("as vLLM has them", 0)):
        yield what, f"headgate(path={str(path)!r}, keep={found.full!r}, sink={sink}, window={gates.window}){rest}"


def overrides(config: Any, full: Sequence[bool], window: int) -> dict[str, Any]:
    """What to change in the model's config. ValueError for one with windows of its own of another size."""
    text = config.get_text_config(decoder=True)
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)
    own = getattr(text, "sliding_window", None)
    if "sliding_attention" in kinds and own != window:
        raise ValueError(
            f"{text.model_type!r} has windows of {own} tokens of its own, and vLLM knows one size for all layers: the gates' "
            f"is {window}; train them with --window {own}"
        )
    left = iter(full)
    for i, kind in enumerate(kinds):
        if kind == "full_attention" and not next(left):
            kinds[i] = "sliding_attention"
    assert next(left, None) is None
    more = {"use_sliding_window": True} if hasattr(text, "use_sliding_window") else {}
    found = {"sliding_window": window, "layer_types": kinds, **more}
    return found if text is config else {"text_config": found}


def command(settings: dict[str, Any]) -> list[str]:
    words = ["vllm", "serve", settings["model"]]
    if "hf_overrides" in settings:
        words += ["--hf-overrides", json.dumps(settings["hf_overrides"])]
    if settings.get("model_impl", "auto") != "auto":
        words += ["--model-impl", settings["model_impl"]]
    if "kv_cache_dtype" in settings:
        words += ["--kv-cache-dtype", settings["kv_cache_dtype"]]
    return words


# ---- what it costs -----------------------------------------------------------------------------------------------


def measure(model: Any, tokenizer: Any, what: str, recipe: str, arguments: argparse.Namespace) -> Cost:
    """Ask the task's questions, each of the context alone. ValueError for a task that cannot be generated."""
    from kvledger.hf.session import open_session
    from kvledger.tasks import get

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    task, scores, held = get(arguments.task), [], []
    small = len(tokenizer) < 8192  # as in a run: a model of few words gets the small shapes
    for index in range(arguments.samples):
        sample = task.sample(1, index, arguments.context, count, arguments.turns, "small" if small else "full")
        session = open_session(model, tokenizer, recipe, 512)
        session.read(sample.text)
        held.append(session.ledger.stored_bytes / session.ledger.full_bytes)
        answers = [session.fork().ask(turn.question, turn.max_new_tokens) for turn in sample.turns]
        scores += [task.score(answer, turn.golds) for answer, turn in zip(answers, sample.turns)]
    return Cost(what, recipe, sum(scores) / len(scores), sum(held) / len(held), len(scores))


def table(costs: Sequence[Cost]) -> Iterator[str]:
    for cost in costs:
        yield f"{cost.what:<32} score {cost.score:.2f} of {cost.turns}   bytes {cost.bytes:.2f} of the full cache's"
