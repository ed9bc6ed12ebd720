"""What has been read of the sample that is being played, so that cells which read the same tokens do it once.

Recipes that drop nothing before the prompt's end read together; any recipe reads the chunks that all its prompts begin with
(the context without its end) once for all modes and questions.  Records are the same as without (a test), but for time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kvledger.hf.chat import Chat
from kvledger.hf.reading import Reading, shares
from kvledger.hf.session import Session
from kvledger.recipe import Recipe, parse

BYTES_HELD = 4 << 30  # about, of all caches of one sample together
Spans = Callable[[Recipe], Sequence[tuple[int, int]]]  # what a recipe protects of the text


@lru_cache(maxsize=8)  # asked for each prompt of a sweep
def _sharing(recipes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in recipes if shares(parse(name)))


@dataclass
class Readings:
    """Of one sample by `model`. `recipes`: those that want it, in canonical form; others read alone."""

    model: Any
    tokenizer: Any
    recipes: tuple[str, ...] = ()
    sample: object = None
    chat: Chat = field(init=False)  # one for all, since it remembers the last context's tokens
    apart: bool = False  # of this sample: each recipe reads alone
    begun: dict[tuple[tuple[str, ...], int], Reading] = field(default_factory=dict)
    done: dict[tuple[tuple[str, ...], int, str | None], dict[str, Session]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chat = Chat(self.tokenizer)

    def turn_to(self, sample: object, recipes: tuple[str, ...] | None = None) -> None:
        """Another sample, or others that want it (None: the same as before): what was read before is let go."""
        recipes = self.recipes if recipes is None else recipes
        if (sample, recipes) != (self.sample, self.recipes):
            self.sample, self.recipes, self.apart = sample, recipes, False
            self.begun.clear()
            self.done.clear()

    def read(self, recipe: Recipe, chunk: int, text: str, question: str | None, spans: Spans) -> Session:
        """A session of `recipe` that has read `text`, and `question` behind it if there is one."""
        group = self._group(recipe, text)
        try:
            return self._read(group, chunk, text, question, spans)[str(recipe)].fork()
        except ValueError:  # one of them cannot do this: the others shall not suffer for it
            if len(group) == 1:
                raise
            self.apart = True
            return self.read(recipe, chunk, text, question, spans)

    def _read(
        self, group: tuple[str, ...], chunk: int, text: str, question: str | None, spans: Spans
    ) -> dict[str, Session]:
        key = group, chunk, question
        if key not in self.done:
            self.done[key] = self._finish(group, chunk, text, question, spans)
        return self.done[key]

    def _group(self, recipe: Recipe, text: str) -> tuple[str, ...]:
        """The recipes that read together with this one: as many as may be held at once."""
        name = str(recipe)
        if self.apart or not shares(recipe) or name not in self.recipes:
            return (name,)
        peers = _sharing(self.recipes)
        config = self.model.config.get_text_config(decoder=True)
        row = 2 * config.hidden_size * config.num_hidden_layers * self.model.dtype.itemsize  # or less
        most = max(1, BYTES_HELD // (row * max(1, len(text) // 2)))
        first = peers.index(name) // most * most
        return peers[first : first + most]

    def _finish(
        self, group: tuple[str, ...], chunk: int, text: str, question: str | None, spans: Spans
    ) -> dict[str, Session]:
        reading = self._begin(group, chunk, text)
        prompts = [one.prompt(text, question, spans(one.recipe)) for one in reading.sessions]
        reading.advance(prompts[0], len(prompts[0]))
        sessions = {str(one.recipe): one for one in reading.sessions}
        reading.end()
        for one in sessions.values():
            one.begin_turns(question is not None)
        return sessions

    def _begin(self, group: tuple[str, ...], chunk: int, text: str) -> Reading:
        """A fork of what all prompts of this text begin with: whole chunks of the text, but for its last."""
        key = group, chunk
        if key not in self.begun:
            recipes = [parse(name) for name in group]
            pinned = (
                not shares(recipes[0]) and recipes[0].protection is not None
            )  # what stays depends on the whole prompt
            self.begun[key] = self._new(recipes, chunk)
            if chunk and not pinned:
                lead = self.begun[key].lead
                ids = lead.prompt(text) if lead.recipe.source else self.chat.opening(text, "")[0]
                self.begun[key].advance(ids, (len(ids) - 1) // chunk * chunk)
        return self.begun[key].fork()

    def _new(self, recipes: list[Recipe], chunk: int) -> Reading:
        def session(recipe: Recipe) -> Session:
            made = Session(self.model, self.tokenizer, recipe, chunk)
            made.chat = self.chat
            return made

        if not shares(recipes[0]):
            return Reading(session(recipes[0]))
        dense = [recipe for recipe in recipes if not recipe.method.drops]
        lead = dense[0] if dense else parse("full")
        return Reading(session(lead), [session(recipe) for recipe in recipes if recipe is not lead])
