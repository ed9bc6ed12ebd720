"""lm-evaluation-harness (0.4) over a compressed cache: any of its tasks, generated or by log-likelihood.

    import lm_eval, kvledger as kv
    from kvledger.harness.lm_eval import CompressedLM
    lm_eval.simple_evaluate(CompressedLM(*kv.load("zoo"), recipe="snapkv(keep=0.3)"), tasks=[...])

The harness hands over flat prompts, so every method sees the question when it drops rows ("visible"), and no cache lives from
one request to the next: numbers for shared contexts come from `kvledger run` only.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from kvledger.hf.cache import resolve
from kvledger.hf.load import Attached, attach


class CompressedLM(HFLM):
    """A loaded `model` and its `tokenizer` under `recipe`, as an lm-eval model. Prompts that do not fit are refused, not cut;
    so are rolling log-likelihoods, which have no prompt, and the harness's request cache, which does not know recipes."""

    def __init__(self, model: Any, tokenizer: Any, recipe: str = "full", **options: Any):
        self.recipe = resolve(recipe)
        self.requests, self.footprints, self.peak_bytes = 0, 0.0, 0
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)

    # ---- generation ----------------------------------------------------------------------------------------------

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        with attach(self.model, self.recipe, self.tokenizer) as attached:
            written = super()._model_generate(context, max_length, stop, **options)
        self._count(attached, len(context))
        return written

    def tok_batch_encode(
        self, strings: list[str], *args: Any, left_truncate_len: int | None = None, **more: Any
    ) -> Any:
        ids, mask = super().tok_batch_encode(strings, *args, **more)
        if left_truncate_len is not None and ids.shape[1] > left_truncate_len:
            raise ValueError(
                f"a prompt of {ids.shape[1]} tokens leaves no room for its answer: {left_truncate_len} fit, and cutting off "
                "its beginning would be another task"
            )
        return ids, mask

    # ---- log-likelihood ------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **more: Any) -> list[tuple[float, bool]]:
        results = []
        for (context, continuation), prompt, wanted in requests:
            if len(prompt) + len(wanted) > self.max_length:
                raise ValueError(f"{len(prompt) + len(wanted)} tokens do not fit into {self.max_length} positions")
            results.append(self._likelihood(prompt, wanted))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), results[-1])
        return results

    @torch.inference_mode()
    def _likelihood(self, prompt: list[int], wanted: list[int]) -> tuple[float, bool]:
        """Log-probability of the tokens `wanted` after `prompt` has been read and compressed, and whether greedy decoding
        would have written them."""
        with attach(self.model, self.recipe, self.tokenizer) as attached:
            out = self.model(torch.tensor([prompt], device=self.device), use_cache=True)
            logits = [out.logits[0, -1:]]
            for token in wanted[:-1]:  # one at a time: several would be taken for a chunk of the prompt
                step = torch.tensor([[token]], device=self.device)
                out = self.model(step, past_key_values=out.past_key_values, use_cache=True)
                logits.append(out.logits[0])
        self._count(attached, 1)
        scores, target = torch.cat(logits).float().log_softmax(-1), torch.tensor(wanted, device=self.device)
        return float(scores.gather(1, target[:, None]).sum()), bool((scores.argmax(-1) == target).all())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise ValueError("a rolling log-likelihood has no prompt to compress: kvledger cannot measure such a task")

    # ---- what the results say ------------------------------------------------------------------------------------

    def _count(self, attached: Attached, requests: int) -> None:
        ledger = attached.ledger
        if self.recipe.method.must_drop and not ledger.dropped:
            raise RuntimeError(f"{self.recipe} dropped nothing: this score would be the full cache's")
        self.requests += requests
        self.footprints += requests * ledger.footprint
        self.peak_bytes = max(self.peak_bytes, ledger.peak_bytes)

    def set_cache_hook(self, cache_hook: Any) -> None:
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError("lm-eval's request cache does not know recipes and would mix them up: leave use_cache out")
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """Also the recipe, the requests it served, their mean entry footprint and the largest peak."""
        mean = self.footprints / self.requests if self.requests else 0.0
        own = {"kv_recipe": str(self.recipe), "kv_requests": self.requests, "kv_footprint": mean}
        return {**super().get_model_info(), **own, "kv_peak_bytes": self.peak_bytes}
