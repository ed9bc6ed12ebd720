"""Run by test_harnesses.py: RULER's niah_single_1 and a multiple choice as lm-eval has them, on the embedded model."""

from __future__ import annotations

import json
from typing import Any

import nltk

nltk.download = lambda *a, **k: True  # the task wants a sentence splitter only where there are essays

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.tasks.ruler import prepare_niah  # noqa: E402

import kvledger as kv  # noqa: E402
from kvledger import zoo  # noqa: E402
from kvledger.harness.lm_eval import CompressedLM  # noqa: E402

SNAP = "snapkv(keep=0.4, window=8)"
prepare_niah.download_nltk_resources = lambda: None
model, tokenizer = kv.load("zoo")
manager = TaskManager(metadata={"tokenizer": str(zoo.path()), "max_seq_lengths": [1024]})


def outputs(lm: Any) -> list[str]:
    found = lm_eval.simple_evaluate(
        lm, tasks=["niah_single_1"], task_manager=manager, limit=3, gen_kwargs="max_gen_toks=12", bootstrap_iters=0
    )
    info.append(found["config"])
    return [sample["resps"][0][0] for sample in found["samples"]["niah_single_1"]]


def likelihoods(lm: Any) -> list[Any]:
    asks = [("The sky is blue. The grass is green. " * 9, word) for word in (" blue", " green", " the sun")]
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asks)]
    return [[round(score, 3), greedy] for score, greedy in lm.loglikelihood(instances, disable_tqdm=True)]


def refused(lm: Any) -> bool:
    try:
        lm.loglikelihood_rolling([])
    except ValueError:
        return True
    return False


info: list[Any] = []
own = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
full = CompressedLM(model, tokenizer)
snap = CompressedLM(model, tokenizer, recipe=SNAP, batch_size=2)
model.set_attn_implementation("sdpa")
result = {"own": [outputs(own), likelihoods(own)], "full": [outputs(full), likelihoods(full)]}
result["compressed"] = [outputs(snap), likelihoods(snap)]
print(
    json.dumps(
        result
        | {
            "requests": snap.requests,
            "footprint": info[-1]["kv_footprint"],
            "refused": refused(snap) and snap.requests >= 6,
        }
    )
)
