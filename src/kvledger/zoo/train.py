"""Train the embedded model: `python -m kvledger.zoo.train --out build/zoo --minutes 80`.

From random weights: repeating first, then lookups in bare tokens, then the tasks' conversations at growing length.  It
can be killed and run again at any time: the checkpoint in `--out` is picked up.  `--export` writes the model folder
from a checkpoint. `--kind mamba2` and `--kind bamba` train the state-space model and the hybrid on the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kvledger.tasks.retrieval import NOISE
from kvledger.zoo import data, primitives, start, tokenizer, wide


@dataclass(frozen=True)
class Stage:
    """Row length, tokens a step, and how often each kind of row is drawn: repeats, lookups, tasks, natural text."""

    length: int
    tokens: int
    repeats: float
    lookups: float
    tasks: float
    text: float


STAGES = (
    Stage(32, 4096, 0.2, 0.8, 0.0, 0.0),
    Stage(64, 4096, 0.1, 0.6, 0.3, 0.0),
    Stage(128, 6144, 0.02, 0.18, 0.8, 0.0),
    Stage(256, 6144, 0.0, 0.15, 0.83, 0.02),
    Stage(512, 6144, 0.0, 0.04, 0.94, 0.02),
    Stage(1024, 8192, 0.0, 0.0, 0.97, 0.03),
    Stage(2304, 9216, 0.0, 0.0, 0.95, 0.05),
    Stage(4608, 9216, 0.0, 0.0, 0.95, 0.05),
)
READY = 0.9
KINDS = ("repeats", "lookups", "tasks", "text")


class Run:
    """Everything a checkpoint holds: weights, optimiser, where the curriculum stands, random state, seconds spent."""

    def __init__(
        self, out: Path, lr: float, kind: str = "llama", most: int = 1 << 20, begin: Path | None = None, level: int = 0
    ) -> None:
        self.out, self.most = out, most
        self.taught = (*data.PLANS, *wide.WIDE) if begin else tuple(data.PLANS)
        self.lowest = 3 if begin else 2  # the wider tasks do not fit into shorter rows
        self.urge = 1 if begin else 2  # how much more often what lags is drawn: some of the wider tasks may never come
        out.mkdir(parents=True, exist_ok=True)
        self.texts = list(tokenizer.standard_library())
        self.tokenizer = self._tokenizer(begin)
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        self.model = LlamaForCausalLM.from_pretrained(begin, dtype="float32") if begin else start.model(kind, *special)
        if begin:
            wide.widen(self.model, self.tokenizer)
        self.letters = primitives.alphabet(self.tokenizer)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.lr, self.warm = lr, 100 if begin else 50  # steps in which the rate rises: what was learned is easily lost
        self.step, self.level, self.at_level, self.tokens, self.seconds = 0, level, 0, 0, 0.0
        self.right: dict[str, float] = defaultdict(float)
        if (out / "checkpoint.pt").exists():
            self._resume()

    def _tokenizer(self, begin: Path | None) -> PreTrainedTokenizerFast:
        folder = begin or self.out / "tokenizer"
        if not folder.exists():
            tokenizer.build([*self.texts, "".join(NOISE).lower() * 3000]).save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert isinstance(loaded, PreTrainedTokenizerFast)
        return loaded

    def save(self) -> None:
        state = {k: getattr(self, k) for k in ("step", "level", "at_level", "tokens", "seconds")}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "right": dict(self.right)}
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def _resume(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state.pop("model"))
        self.optimiser.load_state_dict(state.pop("optimiser"))
        self.right.update(state.pop("right"))
        for name, value in state.items():
            setattr(self, name, value)


def batch(run: Run, rng: random.Random) -> list[data.Row]:
    """Rows of one length: this stage's, or an earlier one's."""
    stage = STAGES[run.level]
    length, chance = stage.length, rng.random()
    if run.level > run.lowest and chance < (0.25 if stage is STAGES[-1] else 0.55):
        length = STAGES[rng.randint(run.lowest, run.level - 1)].length
    kinds = rng.choices(
        KINDS, (stage.repeats, stage.lookups, stage.tasks, stage.text), k=max(2, min(stage.tokens, run.most) // length)
    )
    return [data.fill(_row(run, rng, kind, length), length, run.tokenizer.pad_token_id) for kind in kinds]


def _row(run: Run, rng: random.Random, kind: str, length: int) -> data.Row:
    if kind == "text":
        return data.text_row(run.tokenizer, run.texts, rng, length)
    if kind == "tasks":
        task = _weakest(run, rng, tuple(task for task in run.taught if data.plan_of(task).shortest <= length))
        return data.conversation(run.tokenizer, task, data.sample(run.tokenizer, rng, task, length))
    shape = "repeat" if kind == "repeats" else _weakest(run, rng, primitives.SHAPES[1:])
    ids, answers = primitives.lesson(rng, run.letters, shape, length)
    return data.Row(shape, ids, answers, [float(answer >= 0) for answer in answers])


def _weakest(run: Run, rng: random.Random, names: tuple[str, ...]) -> str:
    return rng.choices(names, [(1.2 - run.right[name]) ** run.urge for name in names])[0]


def train_step(run: Run, rows: list[data.Row]) -> tuple[float, dict[str, list[bool]]]:
    """One update. Returns the loss on answers and, by task, whether each answer was right in every token."""
    ids = torch.tensor([row.ids for row in rows])
    weights = torch.tensor([row.weights for row in rows])[:, 1:]
    chosen = weights > 0
    hidden = run.model.base_model(input_ids=ids[:, :-1], use_cache=False)[0]
    logits = hidden[chosen] @ run.model.get_input_embeddings().weight.T  # tied
    wanted, weight = ids[:, 1:][chosen], weights[chosen]
    losses = F.cross_entropy(logits, wanted, reduction="none")
    ((losses * weight).sum() / weight.sum()).backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimiser.step()
    run.optimiser.zero_grad()
    answers = weight >= 1.0
    loss = float(losses.detach()[answers].mean()) if bool(answers.any()) else math.nan
    return loss, _graded(rows, chosen, logits.argmax(-1) == wanted)


def _graded(rows: list[data.Row], chosen: Tensor, correct: Tensor) -> dict[str, list[bool]]:
    grades: dict[tuple[int, int], bool] = {}
    places = chosen.nonzero().tolist()
    for (i, place), good in zip(places, correct.tolist(), strict=True):
        if (answer := rows[i].answers[place + 1]) >= 0:
            grades[i, answer] = grades.get((i, answer), True) and good
    by_task: dict[str, list[bool]] = defaultdict(list)
    for (i, _), good in grades.items():
        by_task[rows[i].task].append(good)
    return by_task


def advance(run: Run, patience: int) -> None:
    """Go on to the next stage once most of what it teaches is mastered, or when waiting longer does not pay."""
    run.at_level += 1
    taught = run.taught if STAGES[run.level].tasks else primitives.SHAPES
    ready = sorted(run.right[name] for name in taught)[min(1, len(taught) - 1)] > READY and run.at_level > 40
    if run.level < len(STAGES) - 1 and (ready or run.at_level > patience):
        run.level, run.at_level = run.level + 1, 0


def train(run: Run, minutes: float, patience: int) -> None:
    log = (run.out / "log.jsonl").open("a", encoding="utf-8")
    last = time.monotonic()
    while run.seconds < minutes * 60:
        done = run.seconds / (minutes * 60)
        for group in run.optimiser.param_groups:
            group["lr"] = run.lr * min(1.0, (run.step + 1) / run.warm) * (0.05 + 0.95 * min(1.0, 2.5 * (1 - done)))
        rng = random.Random(data.FIRST_TRAINING_SEED + run.step)
        rows = batch(run, rng)
        loss, grades = train_step(run, rows)
        for task, good in grades.items():
            keep = 0.97 ** (len(good) / 4)
            run.right[task] = keep * run.right[task] + (1 - keep) * sum(good) / len(good)
        advance(run, patience)
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        run.step, run.tokens = run.step + 1, run.tokens + sum(len(row.ids) for row in rows)
        if run.step % 10 == 0:
            scores = {name: round(right, 3) for name, right in sorted(run.right.items())}
            entry: dict[str, object] = {"step": run.step, "seconds": round(run.seconds), "tokens": run.tokens}
            entry |= {"stage": run.level, "length": STAGES[run.level].length, "loss": round(loss, 4), "right": scores}
            log.write(json.dumps(entry) + "\n")
            log.flush()
        if run.step % 50 == 0:
            run.save()
    run.save()


def export(run: Run, folder: Path) -> None:
    """Write plain transformers files, weights in bfloat16."""
    run.model.bfloat16().save_pretrained(folder)  # type: ignore[attr-defined]
    run.tokenizer.save_pretrained(folder)
    ids = run.tokenizer
    GenerationConfig(
        bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id, do_sample=False
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/zoo"))
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kind", choices=start.KINDS, default="llama")
    parser.add_argument("--tokens", type=int, default=1 << 20, help="most tokens a step, if less than the stage's")
    parser.add_argument("--start", type=Path, help="weights to begin with; what is taught are the wider tasks too")
    parser.add_argument("--level", type=int, default=0, help="the stage to begin with, 0 to 7")
    parser.add_argument("--patience", type=int, default=400, help="most steps at one length before going on")
    parser.add_argument("--export", type=Path, help="do not train; write the model folder from the checkpoint")
    options = parser.parse_args()
    torch.manual_seed(0)
    run = Run(options.out, options.lr, options.kind, options.tokens, options.start, options.level)
    if options.export:
        export(run, options.export)
    else:
        train(run, options.minutes, options.patience)


if __name__ == "__main__":
    main()
