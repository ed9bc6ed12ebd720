"""What training gates costs: a step of it against plain forward and backward of the same model with frozen weights.

    python benchmarks/train.py --shape zoo --seq-len 2048
    python benchmarks/train.py --shape llama-3.1-8b --seq-len 32768 --device cuda --dtype bfloat16 --checkpointing

The plain run computes the same next-token loss in blocks with the model's own SDPA attention; its gradients go through the
frozen weights to the embeddings, as those of gates go to the gates. Ratios are of one run on one machine. Weights are random,
but for the zoo. Prints one JSON object: seconds and tokens/s of a step, the two taking turns in one process; and peak memory
(CUDA: what the allocator held at most; CPU: the resident set's peak), each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvledger.hf.load import load
from kvledger.train.attention import Gating
from kvledger.train.data import Packed
from kvledger.train.loop import _recomputed
from kvledger.train.objectives import head_of, next_token_loss, targets
from kvledger.train.options import changed, preset
from kvledger.train.parallel import Peers
from kvledger.train.trainer import Trainer

LLAMA = dict(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)  # fmt: skip


def model_of(shape: str, device: str, dtype: torch.dtype) -> Any:
    if shape == "zoo":
        return load("zoo", str(dtype).removeprefix("torch."), device)[0]
    config = AutoConfig.for_model("llama", **LLAMA)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        torch.set_default_dtype(torch.float32)
    return made


def plain_step(model: Any, ids: torch.Tensor, a: argparse.Namespace) -> Callable[[], None]:
    """Forward and backward through frozen weights to the embeddings of the input."""
    model.requires_grad_(False)
    model.set_attn_implementation("sdpa")
    head, wanted = head_of(model), targets(ids, torch.ones_like(ids, dtype=torch.bool))

    def step() -> None:
        model.set_attn_implementation("sdpa")
        inputs = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
        hidden = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        next_token_loss(head, hidden, wanted, len(ids), 1024).backward()

    return step


def train_step(model: Any, ids: torch.Tensor, a: argparse.Namespace) -> Callable[[], None]:
    """A step of training by the objective, one sequence of one document, every token labelled."""
    options = changed(
        preset(a.objective),
        dict(
            sink=a.sink,
            window=a.window,
            seq_len=a.seq_len,
            batch=1,
            steps=1000,
            start=None if a.objective == "prulong" else 0.5,
        ),
    )
    model.set_attn_implementation("sdpa")
    head = head_of(model)
    gating = Gating(model, options.sink, options.window)
    gating.__enter__()
    trainer = Trainer(options, gating, head, Peers())
    sequence = Packed(tuple(ids.tolist()), (0,), (False, *[True] * (a.seq_len - 1)))

    def step() -> None:
        model.set_attn_implementation(gating.name)
        trainer.advance([sequence])

    return step


STEPS = {"plain": plain_step, "train": train_step}


def measure(kinds: list[str], a: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step of each kind, taking turns; and the process's peak of memory in bytes."""
    cuda = a.device == "cuda"
    model = model_of(a.shape, a.device, getattr(torch, a.dtype))
    ids = torch.randint(5, model.config.vocab_size, (a.seq_len,), generator=torch.Generator().manual_seed(0)).to(
        a.device
    )
    held = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = {kind: STEPS[kind](model, ids, a) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with _recomputed(model, a.checkpointing):
        for _ in range(1 + a.repeat):  # the first one warms up
            for kind, step in steps.items():
                began = time.perf_counter()
                step()
                if cuda:
                    torch.cuda.synchronize()
                times[kind].append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {kind: sorted(values[1:])[a.repeat // 2] for kind, values in times.items()}
    return {"seconds": seconds, "model_bytes": held, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["zoo", "llama-3.1-8b"], default="zoo")
    parser.add_argument("--objective", choices=["prulong", "duo"], default="prulong")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--sink", type=int, default=128)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only:
        Path(a.to).write_text(json.dumps(measure(a.only, a)))
        return
    both, plain, train = (apart(kinds) for kinds in (["plain", "train"], ["plain"], ["train"]))
    seconds = both["seconds"]
    options = {name: value for name, value in vars(a).items() if name not in ("only", "to")}
    result = {
        **options,
        "torch": torch.__version__,
        "tokens_per_second": {kind: a.seq_len / value for kind, value in seconds.items()},
        "peak_bytes": {"plain": plain["peak_bytes"], "train": train["peak_bytes"], "before": train["model_bytes"]},
        "ratio": {
            "time": seconds["train"] / seconds["plain"],
            "peak": train["peak_bytes"] / plain["peak_bytes"],
        },
    }
    print(json.dumps(result, indent=2))


def apart(kinds: list[str]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([sys.executable, *sys.argv, "--only", *kinds, "--to", file.name], check=True)
        return json.loads(Path(file.name).read_text())


if __name__ == "__main__":
    main()
