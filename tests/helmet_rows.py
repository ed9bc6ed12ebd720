"""Hand-made rows of HELMET's data sets, in a folder that is laid out as the hub is."""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kvledger.tasks.base import Sample
from kvledger.tasks.helmet import ROWS, cut, files
from kvledger.tasks.hub import Data

TASKS = {task.name.split("/")[1]: task for task in ROWS}
HELMET = files.REPO


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def real(name: str, root: Path, index: int = 0, seed: int = 0, tokens: int = 4096) -> Sample:
    """A sample of published data, checked for what all of them promise."""
    made = TASKS[name].real(Data(str(root)), seed, index, tokens, count, 1)
    turn = made.turns[0]
    assert count(made.text) + count(turn.question) + turn.max_new_tokens <= tokens
    assert TASKS[name].score(turn.gold, turn.golds) == 1.0
    assert made.index == index
    return made


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def kv_rows(count=4):
    for i in range(count):
        pairs = {f"key-{i}-{n}": f"value-{i}-{n}" for n in range(9)}
        text = json.dumps(pairs).replace(", ", ",\n ")
        demos = [[f"d{n}", f"v{n}"] for n in range(3)]
        yield dict(context=text, question=f"key-{i}-5", answer=f"value-{i}-5", demos=demos, num_kvs=9)


def kilt_row(i, depth=0, with_id=False, **more):
    passages = [dict(title=f"T{n}", text=f"filler {i} {n}", psg_id=n) for n in range(3)]
    gold = dict(title="Gold", text=f"the answer is gold{i} here", id=9, score=1.0, has_answer=True)
    row = dict(question=f"which {i}?", answers=[f"gold{i}", "other"], ctxs=[*passages[:depth], gold, *passages[depth:]])
    row |= dict(positive_ctxs=[gold], hard_negative_ctxs=[]) | more
    return row | ({"id": i} if with_id else {})


def rank_row(qid, labels, **more):
    ctxs = [dict(id=str(100 + n), text=f"text {qid} {n}", label=label, **more) for n, label in enumerate(labels)]
    return dict(qid=qid, query=f"query {qid}", ctxs=ctxs)


def llama2(root, hello=(15043, 3186)):
    """A tokenizer that has Llama-2's ids of "Hello world", and takes a word for a token."""
    vocabulary = {"<s>": 1, "<unk>": 0, "Hello": hello[0], "world": hello[1]}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    path = root / cut.LLAMA2 / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    core.save(str(path))


def book_rows(count=4):
    for i in range(count):
        options = [f"option {i} {n}" for n in range(4)]
        yield dict(
            id=i, context=f"book{i} " + "word " * 5000, input=f"what {i}?", answer=[options[i % 4]], options=options
        )
