"""A session: one context read once, and the questions asked of it. What `kvledger.open` returns."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.ledger import Ledger
from kvledger.hf import cache as caches
from kvledger.hf.attention import use
from kvledger.hf.chat import Chat
from kvledger.hf.hybrid import states
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.memory import explained
from kvledger.hf.place import home
from kvledger.hf.prompting import hash_of, prepare
from kvledger.hf.reading import Reading
from kvledger.hf.recurrent import parts
from kvledger.hf.together import Step, Steps, alone, answers
from kvledger.recipe import Recipe


@dataclass(frozen=True)
class Answer:
    """One answered turn. `prompt_tokens` counts all before the answer; the bytes are those held when the context had been
    read and, for later turns, before the question came. `ttft_seconds` runs from the question (first turn: from the start
    of reading) to the first token."""

    text: str
    prompt_tokens: int
    new_tokens: int
    stored_bytes: int
    full_bytes: int
    ttft_seconds: float
    seconds: float


def open_session(model: Any, tokenizer: Any, recipe: Any, chunk: int = 0) -> Session:
    """A session for `model` under `recipe`. `chunk` tokens are read at a time (0: all at once). ValueError for a model
    whose cache kvledger cannot hold, an unreadable recipe, or a chunk smaller than the method's window."""
    resolved = caches.resolve(recipe)
    check_chunk(resolved, chunk)
    caches.check_supported(model)
    return Session(model, tokenizer, resolved, chunk)


def check_chunk(recipe: Recipe, chunk: int) -> None:
    if chunk < 0:
        raise ValueError(f"chunk={chunk} is negative; 0 reads in one shot")
    if 0 < chunk < recipe.method.window:
        raise ValueError(f"chunk={chunk} is smaller than the window of {recipe} ({recipe.method.window} queries)")


def check_length(model: Any, tokens: int) -> None:
    """ValueError if the model's positions cannot hold that many tokens."""
    config = model.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ValueError(f"{tokens} tokens do not fit into the {most} positions of {config.model_type!r}")


class Session:
    """Reads a context in chunks, answers questions, branches. `ledger` knows what it has cost so far."""

    def __init__(self, model: Any, tokenizer: Any, recipe: Recipe, chunk: int):
        self.model, self.recipe, self.chunk = model, recipe, chunk
        self.chat = Chat(tokenizer)
        self.cache = caches.new_cache(model, recipe)
        self.run = caches.run_of(self.cache)
        self.run.auto, self.run.reading = False, False
        self.tokens, self.expected = 0, 0  # read so far, and of the whole prompt
        self.context_hash = ""  # of the tokens of the context
        self.logits: Tensor | None = None  # of the last token of a question that waits for its answer
        self._unread: list[int] = []  # history that the cache has not seen yet
        self.made_seconds = 0.0  # of what the recipe's source did, counted among those of reading
        self.chunks: list[int] = []  # where chunks begin that are read apart, and where the last one ends
        self.encoded: Any = None  # of earlier requests, chunks that were read apart
        self._turns = 0
        self._held = (0, 0)
        self.reading_seconds = 0.0  # of the context, charged to the first turn of each request
        self.argument = caches.argument(model)
        self.absent = 0.0  # seconds that went to others, while an answer was written together with theirs (together.py)
        self.short_logits = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )

    @property
    def ledger(self) -> Ledger:
        self.run.ledger.hold_other(caches.other_bytes(self.cache))
        return self.run.ledger

    # ---- what a user does ----------------------------------------------------------------------------------------

    def read(
        self,
        context: str,
        question: str | None = None,
        patched: bool = False,
        protect: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Read `context`, once. Without `question` it is compressed before any question is known ("hidden"); with it, the
        question is part of the prompt when rows are dropped ("visible"), and `answer` follows. `patched`: each chunk is
        judged by the prompt's last queries (arXiv 2506.17121 §3), at the price of reading them again with every chunk.
        `protect`: character spans [start, end) of the context that no method may drop."""
        if self.tokens:
            raise ValueError("this session has read its context; open another, or fork before reading")
        ids = self.prompt(context, question, protect)
        method = self.recipe.method
        patch = ids[-method.window :] if patched and method.window else []
        if patch and any(type(layer) is not ArenaLayer for layer in self.cache.layers):
            raise ValueError(
                "patched reading needs every layer to be a full-attention layer: others cannot forget the patch"
            )
        reading = Reading(self)
        reading.advance(ids, len(ids), patch)
        reading.end()
        self.begin_turns(question is not None)

    def prompt(self, context: str, question: str | None = None, protect: Sequence[tuple[int, int]] = ()) -> list[int]:
        """The tokens to read, checked; those that may not be dropped are noted."""
        return prepare(self, context, question, protect)

    def hash_of(self, context: str) -> str:
        """What `context_hash` is after `context` has been read."""
        return hash_of(self.chat.opening(context, "")[0])

    def begin_turns(self, asked: bool) -> None:
        """The context has been read, with a question behind it (`asked`) or without."""
        self._turns = int(asked)
        if not asked:
            self.logits = None
        self._note_bytes()

    def ask(self, question: str, max_new_tokens: int = 64, gold: str | None = None) -> str:
        """Answer greedily, and stay: the next question sees this turn. `gold`, if given, is what history shows instead of
        the model's answer."""
        return self.turn(question, max_new_tokens, gold).text

    def ask_each(self, questions: Sequence[str], max_new_tokens: int = 64, at_once: int = 16) -> list[str]:
        """Answers on forks, so that no question knows of another; up to `at_once` of them are written in one forward."""
        return [answer.text for answer in answers(self, questions, max_new_tokens, at_once)]

    def turn(self, question: str, max_new_tokens: int = 64, gold: str | None = None) -> Answer:
        """`ask` with its figures."""
        return alone(self.turn_steps(question, max_new_tokens, gold))

    def turn_steps(self, question: str, max_new_tokens: int = 64, gold: str | None = None) -> Steps[Answer]:
        """`turn` in steps, for who does several at a time."""
        if self.logits is not None:
            raise ValueError("the question that was read with the context has not been answered: call `answer` first")
        started = self.now()
        self._note_bytes()
        if not self.tokens:
            before, after = self.chat.opening("", question)
            ids = before + after
        else:
            ids = self.chat.opening("", question)[1] if not self._turns else self.chat.follow_up(question)
        ids = self._unread + ids
        if not ids:
            raise ValueError("the question is empty: there is nothing to answer")
        self.check_length(self.tokens + len(ids) + max_new_tokens)
        if self.recipe.protection is not None and self.recipe.protection.question:
            self.run.pinned |= frozenset(range(self.tokens + len(self._unread), self.tokens + len(ids)))
        self._unread = []
        self._turns += 1
        for start in range(0, len(ids), self.chunk or len(ids)):
            yield Step(self, ids[start : start + (self.chunk or len(ids))], "ask")
        self.reading_seconds += self.now() - started
        return (yield from self.answer_steps(max_new_tokens, gold))

    def answer(self, max_new_tokens: int = 64, gold: str | None = None) -> Answer:
        """Generate the answer to a question that has been read."""
        return alone(self.answer_steps(max_new_tokens, gold))

    def answer_steps(self, max_new_tokens: int = 64, gold: str | None = None) -> Steps[Answer]:
        """`answer` in steps."""
        if self.logits is None:
            raise ValueError("no question waits for an answer: read one with the context, or call `ask`")
        self.check_length(self.tokens + max_new_tokens)
        prompt_tokens, started = self.tokens, self.now() - self.reading_seconds
        marks = self._mark() if gold is not None else None
        new, first = yield from self._decode(max_new_tokens)
        if marks is not None:
            assert gold is not None
            self._rollback(marks)
            self._unread = self.chat.answer(gold)
        self.logits = None
        self.reading_seconds, seconds = 0.0, self.now() - started
        return Answer(self.chat.text(new), prompt_tokens, len(new), *self._held, first - started, seconds)

    def fork(self) -> Session:
        """An independent continuation from here; memory is shared until one side writes."""
        twin = copy.copy(self)
        twin.cache = caches.fork(self.cache)
        twin.run = caches.run_of(twin.cache)
        twin._unread = list(self._unread)
        return twin

    def save(self, path: str | Path) -> int:
        """Write this session to a file that `kvledger.reopen` continues from; returns its bytes."""
        from kvledger.hf.saved import save

        return save(self, path)

    def check_length(self, tokens: int) -> None:
        """ValueError if the model's positions cannot hold that many tokens."""
        check_length(self.model, tokens)

    # ---- how it is done ------------------------------------------------------------------------------------------

    def schedule(self, ids: list[int], start: int, patch: int = 0) -> bool:
        """Set what happens when the chunk of the prompt `ids` at `start` is read; whether rows go then."""
        method, run = self.recipe.method, self.run
        last = start + (self.chunk or len(ids)) >= len(ids)
        due = method.drops and (method.when == "chunk" or (last and method.when == "prompt"))
        run.reading, run.evict = method.drops, due and method.tally != "probe"
        run.probe, run.ends = 0 if last or not due else patch, last
        return due

    @torch.inference_mode()
    def forward(self, ids: list[int], kind: str) -> None:
        use(self.model)
        self.run.ledger.kind = kind
        for part in parts(self, ids, kind):
            tensor = torch.tensor([part], device=home(self.model))
            with explained(self, max(self.expected, self.tokens + len(ids))):
                out = self.model(input_ids=tensor, use_cache=True, **{self.argument: self.cache}, **self.short_logits)
            self.logits = out.logits[0, -1]
            caches.account(self.cache, self.run, len(part))
            self.tokens += len(part)

    def pick(self, logits: Tensor) -> int:
        """The next token: the likeliest."""
        return int(logits.argmax())

    def hear(self, token: int) -> None:
        """Told of each token of an answer as it comes."""

    def now(self) -> float:
        """Seconds on a clock that stands still while others are worked for."""
        return time.perf_counter() - self.absent

    def _decode(self, max_new_tokens: int) -> Steps[tuple[list[int], float]]:
        """The tokens that are picked, the stop token left out, and the moment of the first of them."""
        new: list[int] = []
        stop, first = self._stop_ids(), 0.0
        while len(new) < max_new_tokens:
            assert self.logits is not None
            token = self.pick(self.logits)
            first = first or self.now()
            if token in stop:
                return new, first
            new.append(token)
            self.hear(token)
            if len(new) < max_new_tokens:
                yield Step(self, [token], "decode")
        self._unread = new[-1:]
        return new, first

    def _stop_ids(self) -> set[int]:
        eos = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        eos = self.chat.tokenizer.eos_token_id if eos is None else eos
        return set(eos) if isinstance(eos, list) else {eos}

    def _note_bytes(self) -> None:
        self._held = (self.ledger.stored_bytes, self.ledger.full_bytes)

    def _mark(self) -> tuple[list[Any], int, int]:
        """Where each layer is, and how long ago the last eviction was. Layers that cannot be cropped (sliding windows,
        states, rows that go while an answer is written) are copied, ours by sharing their buffers."""

        def of(layer: Any) -> Any:
            if not isinstance(layer, ArenaLayer):
                return copy.deepcopy(layer)
            return layer.fork(self.run) if self.run.forgets or states(layer) else layer.columns

        return [of(layer) for layer in self.cache.layers], self.run.since, self.tokens

    def _rollback(self, marks: tuple[list[Any], int, int]) -> None:
        places, self.run.since, self.tokens = marks
        for i, mark in enumerate(places):
            layer = self.cache.layers[i]
            if isinstance(layer, ArenaLayer):
                back = layer.columns - (mark if isinstance(mark, int) else mark.columns)
                if back and isinstance(mark, int):
                    layer.take_back(back)
                elif back:
                    self.cache.layers[i] = mark
                    self.run.ledger.rollback(mark.slot, mark.arena.length, back)
                    mark.hold()
            else:
                self.cache.layers[i] = mark
