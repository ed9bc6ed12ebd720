"""Training NSA's compressors and gates (arXiv 2502.11089 §3) on a frozen model, whose own attention they learn to give.

Each step reads one new sequence by full attention and takes, of each document, some queries of each layer: half of those that
predict a token to be learned, and others. Layers learn apart from each other, all at once: the error is the squared difference
of a head's output from full attention's, as a share of its square. Selecting has no gradient, so that the compressed branch
alone would teach the compressor; beside it stands, times `focus`, the divergence of the importance of blocks (equation 9) from
the mass that attention puts on them, over those blocks that are not selected anyway, each query counting by that mass.

Deviations: the paper trains all weights on the next token. A document is read whole, in one forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kvledger import __version__
from kvledger.hf.cache import check_supported
from kvledger.methods.base import Fresh, Method
from kvledger.methods.nsa import NEAR, NSA, compressed
from kvledger.methods.nsafile import Branches, Facts, Trained, fresh
from kvledger.methods.rope import Rope
from kvledger.train.checkpoint import Files, load_state, save_state
from kvledger.train.data import Packed, Stream
from kvledger.train.descent import descend
from kvledger.train.gates import rate
from kvledger.train.nsa_options import NSAOptions
from kvledger.train.targets import read_by


@dataclass(frozen=True)
class NSAStep:
    """One line of the log, of rows that were new: loss, relative squared error of the output, and the share of attention's mass
    that selected blocks and window hold, means over layers and heads."""

    step: int
    loss: float
    error: float
    held: float
    lr: float
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class Lesson:
    """One layer of one document: `queries` [H, G, S, Dk] of the rows `at` [S] and their inputs [S, E], all rows, and what full
    attention makes of them: its weights [H, G, S, N] and its output [H, G, S, Dv]; all after RoPE."""

    queries: Tensor
    at: Tensor
    hidden: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    wanted: Tensor
    scale: float
    rope: Rope


@dataclass(frozen=True, kw_only=True)
class Pupil(Method):
    """Writes down what each layer gives for the queries `at`."""

    at: tuple[int, ...] = ()
    lessons: list[Lesson] = field(default_factory=list, compare=False)

    learns: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rope", "hidden")

    def learn(self, fresh: Fresh, state: Any) -> Any:
        assert fresh.hidden is not None
        assert fresh.rope is not None
        at = torch.tensor(self.at, device=fresh.keys.device)
        queries, keys, values = (x.float() for x in (fresh.queries[:, :, at], fresh.keys, fresh.values))
        later = torch.arange(keys.shape[1], device=at.device) > at[:, None]
        weights = (queries @ keys.mT[:, None] * fresh.scale).masked_fill(later, -torch.inf).softmax(-1)
        known = (at, fresh.hidden[at].float(), keys, values, weights, weights @ values[:, None])
        self.lessons.append(Lesson(queries, *known, fresh.scale, fresh.rope))
        return ()


class NSATrainer:
    """Compressors and gates of all layers, their optimiser and the count of steps done."""

    def __init__(self, options: NSAOptions, model: Any):
        self.options, self.model = options, model
        self.pattern = NSA(**{f: getattr(options, f) for f in ("compress", "stride", "block", "select", "window")})
        self.step, self.spent = 0, 0.0
        look = Packed(tuple(range(4)), (0,), (False, True, True, True))
        draw = torch.Generator().manual_seed(options.seed)
        self.nets = [self._fresh(lesson, draw) for lesson in self._read(look, 0, 4, [1, 2])]
        self.optimizer = torch.optim.AdamW(
            list(self._parameters().values()),
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
        )

    def _fresh(self, lesson: Lesson, draw: torch.Generator) -> Branches:
        H, G, _, dim = lesson.queries.shape
        if lesson.values.shape[-1] != dim:
            raise ValueError(
                f"keys of {dim} and values of {lesson.values.shape[-1]} dimensions: nsa learns of equal ones"
            )
        made = fresh(self.options.compress, dim, self.options.hidden, H * G, lesson.hidden.shape[1], draw)
        device = lesson.keys.device
        return Branches(**{name: nn.Parameter(x.to(device)) for name, x in made.tensors().items()})  # type: ignore[arg-type]

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = {f"{i}.{name}": x for i, net in enumerate(self.nets) for name, x in net.tensors().items()}
        return named  # type: ignore[return-value]

    # ---- one step ------------------------------------------------------------------------------------------------

    def advance(self, sequence: Packed) -> NSAStep:
        """Look at a new sequence, then learn from it. FloatingPointError if something is no number."""
        began, o = time.perf_counter(), self.options
        lessons = list(self._lessons(sequence))
        if not lessons:
            raise ValueError(
                f"step {self.step} has no document longer than {self._least} tokens: take longer sequences"
            )
        lr = o.lr * rate(self.step, o)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        first: tuple[float, float, float] | None = None
        for _ in range(o.updates):
            loss, error, held = self._loss(lessons)
            first = first or (float(loss.detach()), error, held)
            descend(self.optimizer, loss, self._parameters().values(), self.options.clip)
        assert first is not None
        seconds = time.perf_counter() - began
        self.spent, self.step = self.spent + seconds, self.step + 1
        return NSAStep(self.step - 1, *first, lr, o.seq_len / seconds, self.spent)

    @property
    def _least(self) -> int:
        """Rows of a document some of whose blocks must be chosen."""
        return max(self.options.compress, (1 + NEAR) * self.options.block)

    def _lessons(self, sequence: Packed) -> Iterator[list[Lesson]]:
        draw = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        for a, b in pairwise((*sequence.starts, len(sequence.ids))):
            if b - a > self._least:
                asking = torch.tensor([t for t in range(b - a - 1) if sequence.learn[a + t + 1]], dtype=torch.long)
                half = self.options.queries // 2
                some = asking[torch.randperm(len(asking), generator=draw)[:half]]
                more = torch.randperm(b - a, generator=draw)[: self.options.queries - len(some)]
                yield self._read(sequence, a, b, sorted({*some.tolist(), *more.tolist()}))

    @torch.no_grad()
    def _read(self, sequence: Packed, start: int, stop: int, at: list[int]) -> list[Lesson]:
        method = Pupil(at=tuple(at))
        read_by(self.model, method, list(sequence.ids[start:stop]))
        return method.lessons

    def _loss(self, lessons: list[list[Lesson]]) -> tuple[Tensor, float, float]:
        parts = [examine(self.pattern, net, one) for lesson in lessons for net, one in zip(self.nets, lesson)]
        error, focus, held = (torch.stack(x).mean() for x in zip(*parts))
        return error + self.options.focus * focus, float(error.detach()), float(held)

    # ---- what is kept --------------------------------------------------------------------------------------------

    def resume(self, files: Files) -> None:
        self.step = load_state(files.state, self.options, self._parameters(), [self.optimizer])
        self.spent = files.cut_log(self.step)

    def save(self, files: Files, data: str) -> None:
        save_state(files.state, self.step, self.options, self._parameters(), [self.optimizer])
        self.trained(data).save(files.gates)

    def trained(self, data: str) -> Trained:
        """What is learned so far, a copy."""
        o = self.options
        layers = [Branches(**{name: x.detach().clone() for name, x in net.tensors().items()}) for net in self.nets]
        return Trained(Facts("nsa", o.model, data, self.step, o.seed, __version__), o.stride, tuple(layers))


def examine(pattern: NSA, net: Branches, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """Of one layer: the error of what the three branches give together, the divergence of the blocks' importance from the mass
    of attention, and the share of that mass which is read."""
    H, G = lesson.queries.shape[:2]
    blocks, rows = (
        -(-lesson.keys.shape[1] // pattern.block),
        torch.arange(lesson.keys.shape[1], device=lesson.at.device),
    )
    keys, values = summaries(pattern, net, lesson)
    coarse = pattern.weights(lesson.queries, keys[:, None], lesson.at, lesson.scale)
    seen = torch.stack([pattern.select_blocks(x, lesson.at, blocks) for x in coarse.detach()])
    chosen = seen.repeat_interleave(pattern.block, -1)[..., : len(rows)] & (rows <= lesson.at[:, None])
    near = (rows <= lesson.at[:, None]) & (lesson.at[:, None] - rows < pattern.window)
    gates = net.gates(lesson.hidden, slice(None)).unflatten(1, (H, G))[..., None]
    branches = (coarse @ values[:, None], *(_among(lesson, x) for x in (chosen[:, None], near)))
    given = sum(gate * branch for gate, branch in zip(gates, branches))
    error = ((given - lesson.wanted) ** 2).sum() / (lesson.wanted**2).sum()
    worth = torch.stack([pattern.importance(x, blocks) for x in coarse])
    held = (lesson.weights * (chosen[:, None] | near)).sum(-1).mean()
    return error, divergence(pattern, worth, lesson), held


def summaries(pattern: NSA, net: Branches, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Keys [H, C, Dk] and values [H, C, Dv] of all runs."""
    H, N, _ = lesson.keys.shape
    runs = [x.unfold(1, pattern.compress, pattern.stride).mT.flatten(0, 1) for x in (lesson.keys, lesson.values)]
    place = torch.arange(N, device=lesson.at.device).unfold(0, pattern.compress, pattern.stride).repeat(H, 1)
    keys, values = compressed(net, runs[0], runs[1], place, lesson.rope)
    return keys.unflatten(0, (H, -1)), values.unflatten(0, (H, -1))


def _among(lesson: Lesson, mask: Tensor) -> Tensor:
    """Full attention's output had it seen only the rows of `mask`, which hold each query's own: [H, G, S, Dv]."""
    weights = lesson.weights * mask
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30) @ lesson.values[:, None]


def divergence(pattern: NSA, worth: Tensor, lesson: Lesson) -> Tensor:
    """Kullback-Leibler, of the importance of blocks `worth` [H, S, blocks] from the mass of attention, over those that are
    chosen between; mean over queries, each as often as that mass says."""
    blocks = worth.shape[-1]
    padded = nn.functional.pad(lesson.weights.mean(1), (0, blocks * pattern.block - lesson.weights.shape[-1]))
    mass = padded.unflatten(-1, (blocks, -1)).sum(-1)
    number = torch.arange(blocks, device=worth.device)
    free = (number > 0) & (lesson.at[:, None] // pattern.block - number >= NEAR)
    mass, worth = mass * free, (worth * free).clamp(min=1e-9)
    total = mass.sum(-1, keepdim=True)
    share = mass / total.clamp(min=1e-9)
    apart = share * (share.clamp(min=1e-9).log() - (worth / (worth * free).sum(-1, keepdim=True).clamp(min=1e-9)).log())
    return (total * (apart * free).sum(-1, keepdim=True)).sum() / total.sum().clamp(min=1e-9)


def check(model: Any) -> None:
    """ValueError for a model whose attention is more than a softmax over its rows."""
    check_supported(model)
    config = model.config.get_text_config(decoder=True)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if capped or any(hasattr(module, "sinks") for module in model.modules()):
        raise ValueError(f"{config.model_type!r} caps its logits or has sink logits, which nsa does not learn")


def train_nsa(
    options: NSAOptions,
    model: Any,
    stream: Stream,
    out: str | Path,
    watch: Callable[[NSAStep], None] = lambda step: None,
    fresh: bool = False,
) -> Trained:
    """Train compressors and gates for `model` on `stream`; they are written to `out` (.safetensors) and returned. The same call
    resumes. ValueError for what cannot be trained, RuntimeError once the loss is no number: the last good ones are in `out`
    then."""
    check(model)
    run, files = NSATrainer(options, model), Files(Path(out))
    if fresh:
        files.forget()
    run.resume(files)
    for sequence in islice(stream.sequences(run.step), options.steps - run.step):
        good = run.trained(stream.name)
        try:
            record = run.advance(sequence)
        except FloatingPointError as error:
            good.save(files.gates)
            raise RuntimeError(
                f"{error} in step {run.step}; what was learned before it is in {files.gates} (a smaller --lr may help)"
            ) from None
        files.append(asdict(record))
        watch(record)
        if run.step % options.save_every == 0 or run.step == options.steps:
            run.save(files, stream.name)
    made = run.trained(stream.name)
    made.save(out)
    return made
