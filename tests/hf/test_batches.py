"""A left-padded batch of unequal prompts keeps exactly the rows that each prompt keeps alone, for every method."""

from __future__ import annotations

import pytest
import tiny
import torch
from small import small

from kvledger.hf.load import attach
from kvledger.recipe import registry

NAMES = sorted(name for name, part in registry().items() if part.role == "compression" and name != "full")
LENGTHS = (40, 17, 31, 26)
STEPS = 9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [{"keep": 0.4}, {"rows": 12, "every": 3}])
def test_a_batch_keeps_what_each_prompt_keeps_alone(name: str, budget: dict[str, float]) -> None:
    if registry()[name].tally == "probe" and "every" in budget:
        pytest.skip("repeats nothing while decoding")
    if "rows" in budget and not registry()[name].exact:
        pytest.skip("a threshold decides, not a number of rows")
    made = tiny.model("llama", torch.float64, num_hidden_layers=2, num_key_value_heads=4)
    method = registry()[name](**{**small(name), **budget})
    prompts = [tiny.ids(n, seed=n) for n in LENGTHS]
    width = max(LENGTHS)
    ids = torch.cat([torch.cat([torch.zeros(1, width - p.shape[1], dtype=torch.long), p], 1) for p in prompts])
    mask = torch.cat([(torch.arange(width) >= width - n).long()[None] for n in LENGTHS])

    with attach(made, method, tiny.tokenizer()) as attached:
        written = tiny.generated(made, ids, STEPS, mask)
        together = tiny.alive(attached.cache)
        for b, prompt in enumerate(prompts):
            assert tiny.generated(made, prompt, STEPS)[0] == written[b]
            assert tiny.alive(attached.cache) == [layer[4 * b : 4 * b + 4] for layer in together]
