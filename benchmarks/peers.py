"""kvledger and NVIDIA kvpress on the same random model, the same prompt and the same kept fraction: reading and decoding.

kvpress needs an older transformers, so its half runs in the environment named by KVLEDGER_PARITY_PYTHON (`peer_kvpress.py`).
Reading is a whole prompt in one shot, dropping at its end, as kvpress does it; each library is held against its own reading
without compression. Decode steps are on caches filled with `--held` random rows, which kvpress's method has then compressed;
ours hold as many rows, unevenly so for methods whose heads compete.

    KVLEDGER_PARITY_PYTHON=... python benchmarks/peers.py --tokens 4096 --held 32768 --json peers.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from end_to_end import ours
from shapes import model_of
from timing import seconds, setting, table

from kvledger.hf.attention import use
from kvledger.hf.cache import new_cache
from kvledger.methods.gatefile import Gates

Spec = list[Any]
RATIO = {"compression_ratio": "RATIO"}
SNAP: Spec = ["SnapKVPress", {**RATIO, "window_size": 64, "kernel_size": 5}]
CASES: dict[str, tuple[str, Spec, str]] = {  # our recipe, their press, and how unequal the heads are
    "knorm": ("knorm(keep={keep})", ["KnormPress", RATIO], "even"),
    "streaming": ("streaming(keep={keep})", ["StreamingLLMPress", RATIO], "even"),
    "snapkv": ("snapkv(keep={keep}, window=64, kernel=5)", SNAP, "even"),
    "tova": ("tova(keep={keep})", ["TOVAPress", RATIO], "even"),
    "keydiff": ("keydiff(keep={keep})", ["KeyDiffPress", RATIO], "even"),
    "lagkv": ("lagkv(keep={keep})", ["LagKVPress", RATIO], "even"),
    "expected_attention": ("expected_attention(keep={keep})", ["ExpectedAttentionPress", RATIO], "even"),
    "chunkkv": ("chunkkv(keep={keep}, window=64)", ["ChunkKVPress", {"press": SNAP, "chunk_length": 20}], "even"),
    "adakv": ("adakv(keep={keep}, window=64, kernel=5)", ["AdaKVPress", {"press": SNAP}], "spread"),
    "criticalkv, heads compete": (
        "criticalkv(keep={keep}, window=64, kernel=5, allocator='heads')",
        ["CriticalAdaKVPress", {"press": SNAP}],
        "spread",
    ),
    "headgate": (
        "headgate(path={gates!r}, keep={keep}, inside='dense')",
        ["DuoAttentionPress", {"head_compression_ratio": "RATIO"}],
        "spread",
    ),
}


def read(model: Any, ids: torch.Tensor, recipe: str, rounds: int) -> float:
    use(model)

    def run() -> None:
        model(input_ids=ids, past_key_values=new_cache(model, recipe), logits_to_keep=1)

    return statistics.median([seconds(run) for _ in range(rounds)])


def step(model: Any, held: int, kind: str, keep: float, steps: int) -> float:
    cache, token = ours(model, held, kind, keep), torch.tensor([[5]])
    spent = [seconds(lambda: model(input_ids=token, past_key_values=cache)) for _ in range(steps + 2)]
    return statistics.median(spent[2:])


def theirs(request: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """{method: {"read": seconds, "step": seconds}} of kvpress; "" is without compression."""
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps(request))
    script = Path(__file__).with_name("peer_kvpress.py")
    command = [os.environ["KVLEDGER_PARITY_PYTHON"], str(script), str(question), str(answer)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return dict(json.loads(answer.read_text()))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="bench-4x1024")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt that is read")
    parser.add_argument("--held", type=int, default=32768, help="of the caches that are decoded on")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(CASES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not os.environ.get("KVLEDGER_PARITY_PYTHON"):
        parser.error(
            "KVLEDGER_PARITY_PYTHON must name a Python that has kvpress; docs/fidelity.md says how to make one"
        )
    model, tokens, keep = model_of(arguments.shape, arguments.layers), arguments.tokens, arguments.keep
    ids = torch.randint(5, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    scores = torch.rand(layers, heads, generator=torch.Generator().manual_seed(2)).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder, gates = Path(name), Gates(tuple(map(tuple, scores)), sink=128, window=256)
        gates.save(folder / "gates.json")
        model.save_pretrained(folder / "model")
        request = {"folder": name + "/model", "ids": ids[0].tolist(), "ratio": 1 - keep, "held": arguments.held,
                   "rounds": arguments.rounds, "steps": arguments.steps, "threads": torch.get_num_threads(),
                   "heads": [128, 256, scores], "presses": {m: CASES[m][1] for m in arguments.methods}}  # fmt: skip
        other, rows = theirs(request, folder), []
        plain = read(model, ids, "full", arguments.rounds)
        for method in ["", *arguments.methods]:
            recipe, _, kind = CASES[method] if method else ("full", [], "full")
            spent = (
                read(model, ids, recipe.format(keep=keep, gates=name + "/gates.json"), arguments.rounds)
                if method
                else plain
            )
            mine, peer = step(model, arguments.held, kind, keep, arguments.steps), other[method]
            rows.append({"method": method or "none", "kvpress read / none": peer["read"] / other[""]["read"],
                         "kvledger read / none": spent / plain, "kvpress / kvledger, read": peer["read"] / spent,
                         "kvpress step ms": 1e3 * peer["step"], "kvledger step ms": 1e3 * mine,
                         "kvpress / kvledger, step": peer["step"] / mine})  # fmt: skip
            print(method or "none", f"{peer['read'] / spent:.2f} {peer['step'] / mine:.2f}", flush=True)
    print(f"\n{arguments.shape}, {layers} layers, {tokens:,} tokens read, {arguments.held:,} held, keep {keep}, float32, "
          f"{setting()}\n\n{table(rows)}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
