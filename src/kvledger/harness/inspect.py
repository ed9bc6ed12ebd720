"""inspect_ai over a compressed cache: a model provider whose conversations keep their cache between turns.

    inspect eval my_task.py --model kvledger/zoo -M recipe="snapkv(keep=0.3)" -M chunk=512

A conversation that goes on from one this provider has answered reuses its cache; any other is read again. System messages
stand before the first question. Tools and images are refused.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)

from kvledger.harness.inspect_tasks import shared_context  # noqa: F401 (found by the entry point, as the provider is)
from kvledger.hf.load import load
from kvledger.hf.session import Answer, Session, open_session

SESSIONS = 8  # held at once; the one that was used longest ago goes first
TOKENS = 256  # of an answer, unless the task says otherwise


@modelapi(name="kvledger")
def kvledger() -> type[ModelAPI]:
    """What inspect_ai finds by the entry point."""
    return Provider


class Provider(ModelAPI):
    """Serves "zoo", a folder or a hub id under `recipe`, one request at a time."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (inspect_ai's own signature)
        recipe: str | list[str] = "full",
        chunk: int = 0,
        **options: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        if options:
            raise ValueError(f"unknown model options {sorted(options)}: there are recipe and chunk")
        # inspect_ai's command line splits what it is given at commas
        self.recipe, self.chunk = recipe if isinstance(recipe, str) else ",".join(recipe), chunk
        self.model, self.tokenizer = load(model_name)
        self.lock = asyncio.Lock()
        self.sessions: OrderedDict[tuple[str, ...], Session] = OrderedDict()  # by the conversation so far

    async def generate(
        self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        if tools:
            raise ValueError("tools are not served through a compressed cache")
        said = conversation(input)
        async with self.lock:
            answer, session, reused = await asyncio.to_thread(self.reply, said, config.max_tokens or TOKENS)
        usage = ModelUsage(
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.new_tokens,
            total_tokens=answer.prompt_tokens + answer.new_tokens,
            input_tokens_cache_read=reused,
        )
        message = ChatMessageAssistant(content=answer.text, source="generate")
        stop = "max_tokens" if answer.new_tokens >= (config.max_tokens or TOKENS) else "stop"
        books = session.ledger
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
            usage=usage,
            metadata={"recipe": self.recipe, "kv_footprint": books.footprint, "kv_peak_bytes": books.peak_bytes},
        )

    def reply(self, said: tuple[str, ...], tokens: int) -> tuple[Answer, Session, int]:
        """The answer to a conversation `said` (question, answer, question, …), and the tokens that needed no reading."""
        session = self.sessions.pop(said[:-1], None) if len(said) > 1 else None
        reused = session.tokens if session is not None else 0
        if session is None:
            session = self._replay(said[:-1])
        if len(said) == 1:
            session.read("", said[0])
            answer = session.answer(tokens)
        else:
            answer = session.turn(said[-1], tokens)
        self.sessions[*said, answer.text] = session
        while len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)
        return answer, session, reused

    def _replay(self, said: tuple[str, ...]) -> Session:
        """A session that has seen a conversation which others have written."""
        session = open_session(self.model, self.tokenizer, self.recipe, self.chunk)
        for i in range(0, len(said), 2):
            if i:
                session.turn(said[i], 1, gold=said[i + 1])
            else:
                session.read("", said[0])
                session.answer(1, gold=said[1])
        return session


def conversation(messages: list[ChatMessage]) -> tuple[str, ...]:
    """Questions and answers in turn, beginning and ending with a question; system messages stand before the first."""
    system: list[str] = []
    said: list[str] = []
    for message in messages:
        if isinstance(message.content, list) and any(part.type != "text" for part in message.content):
            raise ValueError("only text can be read by this provider")
        if message.role == "system":
            system.append(message.text)
        elif message.role not in ("user", "assistant"):
            raise ValueError(f"a message of role {message.role!r} is not served through a compressed cache")
        elif (message.role == "user") == (len(said) % 2 == 0):
            said.append(message.text)
        elif said:
            said[-1] += "\n\n" + message.text
        else:
            raise ValueError("a conversation begins with a question")
    if len(said) % 2 == 0:
        raise ValueError("a conversation ends with a question that waits for its answer")
    return ("\n\n".join([*system, said[0]]), *said[1:])
