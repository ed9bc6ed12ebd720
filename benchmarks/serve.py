"""A server under load, with its memory: many small requests, conversations over one long context, a flood, clients that leave.

The server is a process of its own (`kvledger serve`), its resident memory read from /proc (Linux); OpenAI's own client asks
(`pip install openai`). Ends with status 1 if answers are not those of `Session.ask`, if the server holds more than its bound,
if a prompt past the limit or a flood gets anything but its error, or if memory grew by more than --slack MB over the small
requests, after half as many that fill the stores.

    OMP_NUM_THREADS=1 python benchmarks/serve.py
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

import kvledger as kv
from kvledger.serve.request import bytes_of
from kvledger.tasks import get
from kvledger.tasks.base import Sample

CHUNK = 512


@dataclass
class Server:
    """A running server: its process and port."""

    process: subprocess.Popen[str]
    port: int

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)

    def ask(self, client: openai.OpenAI, messages: list[Any], **fields: Any) -> tuple[str, Any]:
        """What came of a request: the answer, or the code of its error; and its usage."""
        try:
            reply = client.chat.completions.create(model="zoo", messages=messages, **fields)
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.code}", None
        return reply.choices[0].message.content or "", reply.usage

    def health(self) -> dict[str, Any]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        line.request("GET", "/health")
        return dict(json.loads(line.getresponse().read()))

    @property
    def resident(self) -> float:
        """MB of memory that the process has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000


@contextlib.contextmanager
def server(recipe: str, memory: str) -> Iterator[Server]:
    words = ["serve", "--recipe", recipe, "--memory", memory, "--port", "0", "--chunk", str(CHUNK)]
    process = subprocess.Popen([sys.executable, "-m", "kvledger.cli", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        yield Server(process, int(re.findall(r":(\d+)/v1", said)[0]))
    finally:
        process.terminate()
        process.wait(60)


def sample_of(tokens: int) -> Sample:
    tokenizer = kv.load("zoo")[1]

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return get("scbench/kv").make(seed=1, index=0, tokens=tokens, count=count, turns=5, form="small")


def wanted(sample: Sample, recipe: str) -> list[str]:
    """What a session of our own answers."""
    session = kv.open(*kv.load("zoo"), recipe, chunk=CHUNK)
    session.read(sample.text)
    return [session.ask(turn.question, 8) for turn in sample.turns]


def converse(here: Server, sample: Sample) -> tuple[list[str], list[Any]]:
    """A conversation of all turns: answers and usages."""
    client, messages, usages = here.client, [], []
    for i, turn in enumerate(sample.turns):
        parts = [sample.text, turn.question] if i == 0 else [turn.question]
        messages.append({"role": "user", "content": [{"type": "text", "text": part} for part in parts]})
        answer, usage = here.ask(client, messages, max_tokens=8)
        usages.append(usage)
        messages.append({"role": "assistant", "content": answer})
    return [message["content"] for message in messages[1::2]], usages


def leave(here: Server, messages: list[Any]) -> None:
    """Ask for a long answer, and hang up."""
    more: Any = {"stream": True, "max_tokens": 512, "temperature": 2}
    stream = here.client.chat.completions.create(model="zoo", messages=messages, **more)
    next(iter(stream))
    stream.close()


def small(i: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"the key number {i:04d} is kolu, and it is asked for"}]


def settled(here: Server) -> float:
    """Resident memory, once nothing is left to do."""
    while here.health()["waiting"]:
        time.sleep(0.05)
    here.ask(here.client, small(0), max_tokens=1)
    return here.resident


def report(what: str, here: Server) -> float:
    """Print and return the resident memory after `what`."""
    resident = settled(here)
    print(f"{what:<62} {resident:8.1f} MB resident", flush=True)
    return resident


def conversations(here: Server, sample: Sample, mine: list[str], clients: int) -> bool:
    """Whether all are answered as `Session.ask` answers."""
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda _: converse(here, sample), range(clients)))
    report(f"{clients} conversations of {len(mine)} turns over one context", here)
    state = here.health()
    print(f"  contexts read: {state['contexts_read']}; last turn: {found[0][1][-1]}")
    return all(texts == mine for texts, _ in found)


def requests(here: Server, count: int) -> float:
    """MB by which memory grew over `count` small requests."""
    client = here.client
    for i in range(count // 2):
        here.ask(client, small(i), max_tokens=4)
    before = report(f"{count // 2} small requests that fill the stores", here)
    for i in range(count):
        here.ask(client, small(count + i), max_tokens=4)
    return report(f"{count} more", here) - before


def past(here: Server) -> bool:
    """Whether prompts past the model's positions are told so."""
    long = [{"role": "user", "content": "the key is kolu and " * 4000}]
    found = {here.ask(here.client, long)[0] for _ in range(20)}
    report(f"20 prompts past the limit: {', '.join(found)}", here)
    return found == {"400 context_length_exceeded"}


def flood(here: Server) -> bool:
    """Whether all of 200 requests at once are answered, or told to come back."""
    client = here.client
    with ThreadPoolExecutor(100) as pool:
        replies = list(pool.map(lambda i: here.ask(client, small(i), max_tokens=64), range(200)))
    found = Counter("answered" if usage is not None else text for text, usage in replies)
    report(f"a flood of 200: {', '.join(f'{n} {what}' for what, n in found.items())}", here)
    return set(found) == {"answered", "429 queue_full"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="snapkv(keep=0.3)")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--memory", default="96MB")
    parser.add_argument("--slack", type=float, default=10.0, help="MB that memory may grow")
    options = parser.parse_args()
    sample = sample_of(options.tokens)
    mine = wanted(sample, options.recipe)
    with server(options.recipe, options.memory) as here:
        print(f"{options.recipe}, {options.tokens} tokens, --memory {options.memory}")
        report("loaded", here)
        alike = conversations(here, sample, mine, options.clients)
        grown = requests(here, options.requests)
        for _ in range(20):
            leave(here, small(7))
        report("20 clients that left in the middle of an answer", here)
        proper = past(here) and flood(here)
        state = here.health()
    held = state["context_bytes"] + state["conversation_bytes"]
    print(f"answers alike: {alike}; grown by {grown:.1f} MB; stores hold {held / 1e6:.1f} MB")
    if not alike or not proper or grown > options.slack or held > bytes_of(options.memory):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
