"""LongProc's published data (arXiv 2501.05414; Apache-2.0), as `Task.real`.

Two shapes are read: the hub's (`PrincetonPLI/LongProc`, a config per task and tier; columns input_prompt, reference_output,
metadata) and, in a data folder, a checkout of the repository as `princeton-pli/LongProc` with `data/<task>/<task>_<tier>.json`
and `prompts.yaml`, from which the prompts are put together as LongProc does.  Rows come in the order of HELMET's sample
(shuffled with seed 42, whatever the run's seed).  A row has one question; where a prompt is cut in two, both parts joined are
the published prompt.  A prompt that is too long is refused: LongProc cuts none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvledger.tasks import sandbox
from kvledger.tasks.base import CountTokens, Sample, Segment, Turn, Unfit
from kvledger.tasks.hub import Data, table
from kvledger.tasks.longproc.countdown import Search, trace
from kvledger.tasks.longproc.frame import CAPS, Tier
from kvledger.tasks.longproc.travel_planning import requirements
from kvledger.tasks.longproc.trip import Search as TripSearch
from kvledger.tasks.longproc.trip import Trip, procedure

HUB, GITHUB = "PrincetonPLI/LongProc", "princeton-pli/LongProc"
REVISION = "main"  # neither has a tag: the hub's rows are counted, their hash is noted at the first reading (`sums`)
COUNTS = {
    **{f"{task}_{tier}": 200 for task in ("path_traversal", "tom_tracking", "countdown") for tier in CAPS},
    **{"html_to_tsv_0.5k": 100, "html_to_tsv_2k": 189, "html_to_tsv_8k": 120},
    **{"pseudo_to_code_0.5k": 199, "pseudo_to_code_2k": 200, "travel_planning_2k": 769, "travel_planning_8k": 239},
}
"""Rows of the hub's configs: 3,616 in all."""
SHA256 = {
    "countdown/countdown_0.5k.json": "2f0d1095158bcd87e955970cdabbff217dd1493b3e3d4a6439ffe631008965b8",
    "countdown/countdown_2k.json": "5dbc0320e3fc55ba5627b26a90f8c64a6f0bc44e350b065c6c5da620f9675a43",
    "countdown/countdown_8k.json": "d026d94ffdc3669396502c8586b812c2f9944365ca538c7ad5dfaad72613938f",
    "countdown/prompts.yaml": "ac6193f0168e5081343dc1fc8a79078281ddc33b27e7c5729826db1f6aefc396",
    "html_to_tsv/html_to_tsv_0.5k.json": "ca81580b39201ebf4705c089f2524b6026d39d07a6b86c0e26a3d5ba0615a881",
    "html_to_tsv/prompts.yaml": "1192cf2432084b49aff6ec8e0f1ed4f8b56f926826849041711b3733d2fe4dbb",
    "path_traversal/path_traversal_0.5k.json": "8abd1e2f437b8799d697f33cddbbfdbb1eb80ebe9acbb4736bd5de5d8a28fcb7",
    "path_traversal/path_traversal_2k.json": "100ca7c5215f275fd2d8686e95616af2a2edcfaa6e713f262b6f90f086322d61",
    "path_traversal/path_traversal_8k.json": "39ae8ec2adc0cc3ab1e3cdd884a4c6783c88ed5b0cb0312382368ca55c39b0a4",
    "path_traversal/prompts.yaml": "8625b1fe0c77b667b20bb2533b4116192f47aafb9069b0aa2295adb46cc7d685",
    "tom_tracking/tom_tracking_0.5k.json": "1471e084234821c22f01b22818e0d185d33b717f6ac57505c98bc8b422607b6f",
    "tom_tracking/prompts.yaml": "1a15f592f722eea0e2e8622de960ea38ee4b594d09a58ecd91704f34db56908b",
    "travel_planning/prompts.yaml": "69c73829e2677830af5320815c95378b5ae64b725a93f00699a45337cec21ddc",
    "travel_planning/travel_planning_all.json": "e7d07be7186ea3d964773c872a9116d4eb981ebb3bd4d77826b5c4ba51a2bf5a",
    "travel_planning/travel_planning_icl_examples.json": "f8a68e4216d0fac50bafe01dc230170621a554ebfb043adbd0afd8f0271cf8b8",
}
"""Of a checkout's files, as far as they are known."""
PARTS = {
    "countdown": ("[Problem]\n", "\nTarget: "),
    "path_traversal": ("[PROBLEM]\n", "\n\nNow find the route from "),
    "tom_tracking": ("[STORY]\n", "\n\n[QUESTION]\n"),
    "travel_planning": ("YOUR TASK:\n", "\n\nFind a trip plan of "),
    "html_to_tsv": ("[INPUT WEBPAGE]\n", "\n\n[TARGET INFORMATION]\n"),
    "pseudo_to_code": ("[PSEUDOCODE]:\n", "\n\n[CODE]:"),
}
"""Where the context of a published prompt begins, and where its question."""
DEMOS = (([40, 19, 23, 7], 29), ([9, 16, 6, 18], 12))
TRAVEL: dict[Tier, tuple[int, int]] = {"2k": (0, 2048), "8k": (4096, 8192)}
Item = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    prompt: str
    reference: str
    item: Item


def reader(task: str, tier: Tier) -> Callable[..., Sample]:
    """`Task.real` of a task and tier."""

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        if task == "pseudo_to_code":
            sandbox.check()
        row = _row(data, task, tier, index)
        sample = _sample(task, tier, index, row)
        if (used := count(sample.text)) > tokens:
            raise Unfit(f"longproc/{task}_{tier} row {index} has {used} tokens and the context {tokens}; it is not cut")
        return sample

    return real


def _row(data: Data, task: str, tier: Tier, index: int) -> Row:
    shipped = data.root != "hub" and (Path(data.root) / GITHUB).is_dir()
    file = f"{task}_all.json" if task == "travel_planning" else f"{task}_{tier}.json"
    path = _data(data, task, file) if shipped else data.path(HUB, _hub_file(data, f"{task}_{tier}"), REVISION)
    rows = table(path)
    if data.root == "hub" and len(rows) != COUNTS[f"{task}_{tier}"]:
        raise ValueError(
            f"{task}_{tier} of {HUB} has {len(rows)} rows, published were {COUNTS[f'{task}_{tier}']}: this is another edition"
        )
    chosen = [i for i, row in enumerate(rows) if _in_tier(row, path, task, tier)] if shipped else range(len(rows))
    if index >= len(chosen):
        raise Unfit(f"longproc/{task}_{tier} has {len(chosen)} rows, no row {index}")
    row = rows[chosen[_order(len(chosen))[index]]]
    return _from_json(data, task, row, path) if shipped else _from_hub(row, path)


def _data(data: Data, task: str, file: str) -> Path:
    return data.path(GITHUB, f"data/{task}/{file}", REVISION, SHA256.get(f"{task}/{file}", ""))


def _hub_file(data: Data, config: str) -> str:
    lines = f"{config}/test.jsonl"
    there = data.root != "hub" and (Path(data.root) / HUB / lines).is_file()
    return lines if there else f"{config}/test-00000-of-00001.parquet"


def _order(count: int) -> list[int]:
    import numpy as np

    return [int(i) for i in np.random.default_rng(42).permutation(count)]


def _in_tier(row: Item, path: Path, task: str, tier: Tier) -> bool:
    if task != "travel_planning":
        return True
    low, high = TRAVEL[tier]
    return low <= column(row, "estimated_output_tokens", path) < high


def column(row: Item, name: str, path: Path) -> Any:
    """A column of a row. ValueError, with those there are, if it is missing."""
    if name not in row:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(sorted(row))}")
    return row[name]


def _from_hub(row: Item, path: Path) -> Row:
    prompt, reference, held = (column(row, name, path) for name in ("input_prompt", "reference_output", "metadata"))
    item = json.loads(held) if isinstance(held, str) else held
    if not isinstance(prompt, str) or not isinstance(reference, str) or not isinstance(item, dict):
        raise ValueError(f"{path}: input_prompt and reference_output must be text, metadata a JSON object")
    return Row(prompt, reference, item.get("item", item))


def _from_json(data: Data, task: str, row: Item, path: Path) -> Row:
    def get(name: str) -> Any:
        return column(row, name, path)

    fields: dict[str, object] = {}
    reference = ""
    if task == "countdown":
        fields = {"nums": get("nums"), "target": get("target"), "demonstration": _countdown_demos()}
        reference = trace(Search(get("nums"), get("target")))
    elif task == "path_traversal":
        source, target = get("question_repr")
        fields = {"city_context": get("context_nl"), "src_city": source, "dst_city": target}
        reference = get("answer_nl")
    elif task == "tom_tracking":
        fields, reference = {"story": get("story"), "question": get("question")}, get("solution")
    elif task == "travel_planning":
        fields = {"problem": get("disambig_question_text"), "demonstration": _travel_demos(data)}
        reference = procedure(TripSearch(trip_of(row, path)))
    elif task == "html_to_tsv":
        names = ("task_topic", "task_description", "filtering_instruction", "tsv_header")
        fields = {"html_str": _page(data, get("html_path")), **{name: get(name) for name in names}}
        reference = get("gt")
    else:
        fields, reference = {"pseudocode": "\n".join(get("pseudocode_lines"))}, "\n".join(get("code_lines"))
    template = _template(_data(data, task, "prompts.yaml"))
    return Row(
        re.sub(r"\{\{|\}\}|\{(\w+)\}", lambda m: str(fields[m[1]]) if m[1] else m[0][0], template), reference, row
    )


def _template(path: Path) -> str:
    """The one value of prompts.yaml: a literal block, two blanks deep."""
    head, _, block = path.read_text(encoding="utf-8").partition("\n")
    if head.strip() != "USER_PROMPT: |-":
        raise ValueError(f"{path} must begin with 'USER_PROMPT: |-', not {head[:60]!r}")
    return "\n".join(line[2:] for line in block.split("\n")).rstrip("\n")


def _countdown_demos() -> str:
    return "\n\n".join(
        f"# Example\nNumbers: {nums}\nTarget: {target}\n\n{trace(Search(nums, target))}" for nums, target in DEMOS
    )


def _travel_demos(data: Data) -> str:
    path = _data(data, "travel_planning", "travel_planning_icl_examples.json")
    shown = []
    for row in table(path):
        text = column(row, "disambig_question_text", path)
        shown.append(f"# Example\n{text}\n\n{procedure(TripSearch(trip_of(row, path)))}")
    return "\n\n".join(shown)


def trip_of(row: Item, path: Path) -> Trip:
    """The requirements of a travel row."""
    limits = column(row, "constraints", path)
    stays = tuple((limit["city"], limit["num_days"]) for limit in limits if limit["type"] == "duration")
    fixed = tuple((limit["city"], limit["start_day"], limit["end_day"]) for limit in limits if limit["type"] == "fixed")
    return Trip(stays, fixed, tuple((a, b) for a, b in column(row, "connected_cities", path)))


def _page(data: Data, name: str) -> str:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"html_path must lie in the data set's folder, not {name!r}")
    return _data(data, "html_to_tsv", name).read_text(encoding="utf-8")


def _sample(task: str, tier: Tier, index: int, row: Row) -> Sample:
    """The prompt cut where its context begins and where its question begins."""
    begin, ask = PARTS[task]
    start, end = row.prompt.rfind(begin) + len(begin), row.prompt.rfind(ask)
    if not len(begin) <= start <= end:
        raise ValueError(f"longproc/{task}_{tier} row {index}: the prompt has no {begin!r} followed by {ask!r}")
    segments = (Segment("instruction", row.prompt[:start]), Segment("context", row.prompt[start:end]))
    gold, golds = _golds(task, row)
    return Sample(f"longproc/{task}_{tier}", index, segments, (Turn(row.prompt[end:], gold, golds, CAPS[tier]),))


def _golds(task: str, row: Row) -> tuple[str, tuple[str, ...]]:
    """What the history shows, and what the scorer takes."""
    text, where = row.reference, Path("metadata")
    if task == "path_traversal":
        return f"<Route>\n{text}\n</Route>", (text,)
    if task == "html_to_tsv":
        return f"```tsv\n{text.strip()}\n```", (text,)
    if task == "pseudo_to_code":
        return f"```cpp\n{text}\n```", (text, json.dumps(column(row.item, "testcases", where)))
    if task == "travel_planning" and "constraints" in row.item:
        return text, (text, requirements(trip_of(row.item, where)))
    return text, (text,)
