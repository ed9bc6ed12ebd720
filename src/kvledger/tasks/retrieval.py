"""String retrieval and tracing: SCBench's Retr.KV, Retr.Prefix-Suffix and Retr.MultiHop, rebuilt (arXiv 2412.10319).

Retr.KV keeps SCBench's prompt and data shape.  Prefix-Suffix is a list of strings of one length; a pair of prefix and
suffix picks one, each half of the pair alone also fits a planted other.  MultiHop is RULER's variable tracking (arXiv
2404.06654) with one chain per question, where SCBench asks five questions of two chains.
"""

from __future__ import annotations

import random

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.words import CODES, MANY, distinct, identifier, letters, name, number, syllables

KV_INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
KV_OPEN, KV_IS, KV_NEXT, KV_CLOSE = 'JSON data:\n{"', '": "', '", "', '"}'
KV_ASK, KV_END = '\n\nKey: "', '"\nThe value associated with the specified key is: '

PS_INSTRUCTION = "Find the string with the given prefix and suffix in the list below.\n\n"
PS_OPEN, PS_NEXT, PS_CLOSE = 'Strings:\n["', '", "', '"]'
PS_ASK, PS_AND, PS_END = '\n\nPrefix: "', '", suffix: "', '"\nThe string with this prefix and this suffix is: '
PS_LENGTH, PS_PART = 25, 4  # characters of a full string, and of its prefix and suffix

VT_INSTRUCTION = "Keep track of the variables assigned in the text below.\n\n"
VT_HOPS = 2
TRACK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
TRACK_ASK = "\n\nQuestion: Find all variables that are assigned the value {value} in the text above.\n"
TRACK_END = (
    "According to the chain(s) of variable assignment in the text above, {hops} variables are assigned the value "
)
VT_VAR, VT_VALUE, VT_COPY, VT_STOP = "VAR ", " = ", " = VAR ", ". "
VT_ASK, VT_END = "\n\nFind all variables that are assigned the value ", " in the text above: "
NOISE = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ")


def kv(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` pairs of unique keys and unique values in one JSON object; a question names a key."""
    words = distinct(lambda: identifier(rng, form, 2 * size), 2 * size)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    draft = Draft()
    draft.add("instruction", KV_INSTRUCTION)
    draft.add("context", KV_OPEN)
    spans: list[Span] = []
    for i, (key, value) in enumerate(pairs):
        spans.append(draft.add("context", f"{key}{KV_IS}{value}"))
        draft.add("context", KV_NEXT if i < size - 1 else KV_CLOSE)
    asked = [kv_turn(*pairs[i], spans[i], form) for i in stratify(rng, size, turns)]
    return draft.sample("scbench/kv", asked)


def kv_turn(key: str, value: str, span: Span, form: Form, subtask: str = "") -> Turn:
    cap = 8 if form == "small" else 150
    gap = "" if form == "small" else "\n"  # SCBench's input opens with a line break of its own
    return Turn(f"{gap}{KV_ASK}{key}{KV_END}", value, (value,), cap, (span,), subtask=subtask)


def prefix_suffix(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` strings; no two share both prefix and suffix, and each half asked for also begins or ends another."""
    asked = stratify(rng, size, turns)
    strings = _strings(rng, size, asked, form)
    draft = Draft()
    draft.add("instruction", PS_INSTRUCTION)
    draft.add("context", PS_OPEN)
    spans: list[Span] = []
    for i, parts in enumerate(strings):
        spans.append(draft.add("context", "".join(parts)))
        draft.add("context", PS_NEXT if i < size - 1 else PS_CLOSE)
    return draft.sample("scbench/prefix_suffix", [_ps_turn(strings[i], spans[i], form) for i in asked])


def _ps_turn(parts: tuple[str, str, str], span: Span, form: Form) -> Turn:
    whole = "".join(parts)
    return Turn(
        f"{PS_ASK}{parts[0]}{PS_AND}{parts[2]}{PS_END}", whole, (whole,), 8 if form == "small" else 150, (span,)
    )


def _strings(rng: random.Random, size: int, asked: list[int], form: Form) -> list[tuple[str, str, str]]:
    more = 1 if size <= MANY // 2 else 2  # syllables a part: the pairs of ends must not run out

    def part(length: int) -> str:
        return syllables(rng, more) if form == "small" else letters(rng, CODES, length)

    strings: list[tuple[str, str, str]] = [("", "", "")] * size
    ends: set[tuple[str, str]] = set()

    def put(i: int, prefix: str | None, suffix: str | None) -> None:
        while True:
            pair = (prefix or part(PS_PART), suffix or part(PS_PART))
            if pair not in ends:
                break
        ends.add(pair)
        strings[i] = (pair[0], part(PS_LENGTH - 2 * PS_PART), pair[1])

    free = [i for i in range(size) if i not in set(asked)]
    rng.shuffle(free)
    for i in dict.fromkeys(asked):
        put(i, None, None)
        for prefix, suffix in ((strings[i][0], None), (None, strings[i][2])):
            if free:
                put(free.pop(), prefix, suffix)
    for i in free:
        put(i, None, None)
    return strings


def vt(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` sentences of noise with one chain of assignments per question, its links in order and apart."""
    values = distinct(lambda: number(rng, form), turns)
    names = distinct(lambda: name(rng, form), turns * (VT_HOPS + 1))
    chains = [names[i::turns] for i in range(turns)]
    due: dict[int, list[tuple[int, int]]] = {}
    for chain, first in enumerate(stratify(rng, size, turns)):
        later = sorted(rng.randint(first, size) for _ in range(VT_HOPS))
        for link, place in enumerate((first, *later)):
            due.setdefault(place, []).append((chain, link))
    draft = Draft()
    draft.add("instruction", VT_INSTRUCTION if form == "small" else TRACK)
    spans: list[list[Span]] = [[] for _ in chains]
    for place in range(size + 1):
        for chain, link in due.get(place, []):
            spans[chain].append(draft.add("context", _assign(chains[chain], link, values[chain])))
            draft.add("context", VT_STOP)
        if place < size:
            draft.add("context", NOISE[place % len(NOISE)])
    asked = [_vt_turn(chains[i], values[i], spans[i], form) for i in range(turns)]
    return draft.sample("scbench/vt", asked)


def _assign(chain: list[str], link: int, value: str) -> str:
    return f"{VT_VAR}{chain[link]}" + (f"{VT_COPY}{chain[link - 1]}" if link else f"{VT_VALUE}{value}")


def _vt_turn(chain: list[str], value: str, spans: list[Span], form: Form) -> Turn:
    if form == "small":
        return Turn(f"{VT_ASK}{value}{VT_END}", " ".join(chain), tuple(chain), 10, tuple(spans))
    asked = (TRACK_ASK + TRACK_END + "{value}, they are: ").format(value=value, hops=len(chain))
    return Turn(asked, " ".join(chain), tuple(chain), 30, tuple(spans))
