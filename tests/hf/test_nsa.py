"""NSA with trained branches: what a model computes is the paper's gated sum, written out, however a prompt is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from branches import SIZES, recipe, trained
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvledger.hf.cache import arenas, new_cache, run_of
from kvledger.hf.load import attach
from kvledger.hf.session import open_session
from kvledger.methods.nsafile import Branches, Trained
from kvledger.recipe import parse

TOKENS, L, D, BLOCK, SELECT, WINDOW = 45, 4, 2, 4, 4, 6


def model(**changes: Any) -> Any:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return tiny.model("llama", torch.float64, **{**sizes, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    trained().save(tmp_path / "nsa.safetensors")
    return tmp_path / "nsa.safetensors"


def ours(made: Any, text: str, tokens: Tensor, parts: list[int]) -> tuple[Tensor, Any]:
    """Logits of a prompt that is read in parts of these lengths, and the cache."""
    cache = new_cache(made, text)
    run_of(cache).auto, run_of(cache).ledger.kind = False, "read"
    with tiny.implementation(made, "kvledger"), torch.inference_mode():
        logits = [made(input_ids=x, past_key_values=cache, use_cache=True).logits[0] for x in tokens.split(parts, 1)]
    return torch.cat(logits), cache


# ---- the paper's formulas, a query and a head at a time --------------------------------------------------------------


def turned(x: Tensor, steps: int) -> Tensor:
    """A row of 16 numbers rotated by so many positions (llama, base 10,000)."""
    angle = steps * 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    a, b = x[:8], x[8:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def compressed(net: Branches, what: str, rows: list[Tensor]) -> Tensor:
    """Equation 7: a run's rows as one."""
    place, inner, weight = (getattr(net, f"{what}_{part}").double() for part in ("place", "inner", "weight"))
    told = [weight @ (x * torch.sigmoid(x)) for row, at in zip(rows, place) for x in [inner @ (row + at)]]
    counts = [torch.exp(x[-1]) for x in told]
    return sum(n * (row + x[:-1]) for n, row, x in zip(counts, rows, told)) / sum(counts)


def softmax_over(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    weights = (torch.stack(keys) @ q * scale).softmax(-1)
    return weights @ torch.stack(values), weights


def one_query(net: Branches, qs: Tensor, k: Tensor, v: Tensor, t: int, gates: Tensor, scale: float) -> Tensor:
    """Equations 5 to 12 for the query heads `qs` [G, D] of one KV head at row t, gates [3, G]: [G, D]."""
    starts = range(0, t + 2 - L, D)
    keys = [turned(compressed(net, "key", [turned(k[a + i], -a) for i in range(L)]), a) for a in starts]
    values = [compressed(net, "value", [v[a + i] for i in range(L)]) for a in starts]
    coarse = [softmax_over(q, keys, values, scale) if keys else (torch.zeros(16), []) for q in qs]
    own, worth = t // BLOCK, []
    for j in range(1, own + 2):  # equation 9, which counts from 1; summed over heads (10)
        places = [BLOCK // D * j - m - n for m in range(BLOCK // D) for n in range(L // D)]
        worth.append(sum(float(p[c - 1]) for _, p in coarse for c in places if 1 <= c <= len(keys)))
    worth = [torch.inf if j in (0, own - 1, own) else w for j, w in enumerate(worth)]
    chosen = sorted(range(own + 1), key=lambda j: -worth[j])[:SELECT]
    rows = [i for i in range(t + 1) if i // BLOCK in chosen]
    near = range(max(0, t + 1 - WINDOW), t + 1)
    out = []
    for g, q in enumerate(qs):
        selected, window = (softmax_over(q, [k[i] for i in x], [v[i] for i in x], scale)[0] for x in (rows, near))
        out.append(gates[0, g] * coarse[g][0] + gates[1, g] * selected + gates[2, g] * window)
    return torch.stack(out)


def written_out(made: Any, learned: Trained, tokens: Tensor) -> Tensor:
    """Logits [N, V] of one forward with that attention."""
    hidden: dict[int, Tensor] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden[module.layer_idx] = (args[0] if args else kwargs["hidden_states"])[0]

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any) -> Any:
        net, G = learned.layers[module.layer_idx], q.shape[1] // k.shape[1]
        gates = torch.sigmoid(
            torch.einsum("te,bhe->bht", hidden[module.layer_idx], net.gate.double()) + net.gate_bias.double()[..., None]
        )
        out = torch.zeros_like(q)
        for h in range(k.shape[1]):
            mine = slice(h * G, h * G + G)
            for t in range(q.shape[2]):
                out[0, mine, t] = one_query(net, q[0, mine, t], k[0, h], v[0, h], t, gates[:, mine, t], scaling)
        return out.transpose(1, 2), None

    hooks = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in made.base_model.layers]
    AttentionInterface.register("nsa_written_out", attention)
    AttentionMaskInterface.register("nsa_written_out", lambda **arguments: None)
    try:
        with tiny.implementation(made, "nsa_written_out"), torch.inference_mode():
            return made(input_ids=tokens, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("parts", [[TOKENS], [16, 8, 20, 1], [20] + [1] * 25], ids=len)
def test_reading_and_decoding_are_the_papers(kv_heads: int, parts: list[int], file: Path) -> None:
    made, tokens = model(num_key_value_heads=kv_heads), tiny.ids(TOKENS)
    got, cache = ours(made, recipe(file), tokens, parts)
    torch.testing.assert_close(got, written_out(made, trained(), tokens), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, ours(made, f"nsa({SIZES})", tokens, parts)[0], atol=1e-2)
    pairs = 0
    for t in range(TOKENS):
        blocks = min(t // BLOCK + 1, SELECT)
        pairs += max(0, (t + 1 - L) // D + 1) + (blocks - 1) * BLOCK + t % BLOCK + 1 + min(t + 1, WINDOW)
    assert run_of(cache).ledger.prefill_work == pytest.approx(pairs / (TOKENS * (TOKENS + 1) / 2))


def test_all_blocks_and_only_the_selected_branch_are_the_model_itself(tmp_path: Path) -> None:
    made, tokens = model(), tiny.ids(TOKENS)
    trained(gates=(-200.0, 200.0, -200.0)).save(tmp_path / "nsa.safetensors")
    everything = recipe(tmp_path / "nsa.safetensors", "compress=4, stride=2, block=4, select=99, window=6")
    got, _ = ours(made, everything, tokens, [20] + [1] * 25)
    torch.testing.assert_close(got, ours(made, "full", tokens, [TOKENS])[0], rtol=1e-6, atol=1e-6)


def test_going_back_and_the_books(file: Path) -> None:
    made, tokens = model(), tiny.ids(TOKENS)
    whole, cache = ours(made, recipe(file), tokens, [TOKENS])
    for layer in arenas(cache):
        layer.take_back(9)
    with tiny.implementation(made, "kvledger"), torch.inference_mode():
        again = made(input_ids=tokens[:, -9:], past_key_values=cache, use_cache=True).logits[0]
        torch.testing.assert_close(again, whole[-9:], rtol=1e-4, atol=1e-5)
        run_of(cache).ledger.kind = "decode"
        made(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)
    book = run_of(cache).ledger
    rows = sum(x.nbytes for layer in arenas(cache) for x in (layer.arena.k, layer.arena.v))
    runs = sum(one.table.nbytes for layer in arenas(cache) for one in layer.kept.values())
    assert runs == 2 * 2 * ((TOKENS + 1 - L) // D + 1) * 32 * 4
    assert book.stored_bytes == rows + runs
    read, full = book.bytes_read_per_step
    row = arenas(cache)[0].arena.row_nbytes
    assert runs + 4 * WINDOW * row <= read <= runs + 4 * (SELECT * BLOCK + WINDOW) * row < full + runs


@pytest.mark.parametrize("more", ["snapkv(keep=0.4, window=4, when='chunk')", "streaming(rows=20, sinks=2, every=2)"])
def test_beside_what_drops_rows_and_in_branches(more: str, file: Path) -> None:
    trunk = open_session(model(), tiny.tokenizer(), f"{recipe(file)} + {more}", 13)
    trunk.read(tiny.text(TOKENS - 1))
    first = trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=5)
    trunk.fork().ask(tiny.text(9, seed=4), max_new_tokens=5, gold=tiny.text(2, seed=3))
    assert trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=5) == first
    assert trunk.ledger.dropped > 0


def test_a_padded_batch_reads_as_each_alone(file: Path) -> None:
    made, prompts = model(), [tiny.ids(n, seed=n)[0] for n in (TOKENS, 30)]
    batch = torch.stack([torch.cat([x.new_zeros(TOKENS - len(x)), x]) for x in prompts])
    mask = torch.stack([torch.arange(TOKENS) >= TOKENS - len(x) for x in prompts]).long()
    with attach(made, recipe(file)), torch.inference_mode():
        at = (mask.cumsum(-1) - 1).clamp(min=0)
        together = made(input_ids=batch, attention_mask=mask, position_ids=at, use_cache=True).logits
    for b, prompt in enumerate(prompts):
        with attach(made, recipe(file)), torch.inference_mode():
            alone = made(input_ids=prompt[None], use_cache=True).logits[0]
        torch.testing.assert_close(together[b][mask[b].bool()], alone, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_shape_or_none_is_refused(file: Path, tmp_path: Path) -> None:
    assert parse(recipe(file)).fingerprint != ""
    with pytest.raises(ValueError, match="trained with compress=4, stride=2, and here they are 8 and 2"):
        new_cache(model(), recipe(file, "compress=8, stride=2, block=4"))
    with pytest.raises(ValueError, match=r"\(2, 4, 64, 16\), and this model has \(3, 4, 64, 16\)"):
        new_cache(model(num_hidden_layers=3), recipe(file))
    with pytest.raises(ValueError, match="window=0 is below 1"):
        parse(recipe(file, "window=0"))
    with pytest.raises(ValueError, match="cannot be turned back"):
        new_cache(tiny.model("glm4", num_hidden_layers=2, num_attention_heads=4), recipe(file))
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:999])
    for path in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(ValueError, match=r"cannot read .*safetensors.* which nsa is to go by"):
            new_cache(model(), recipe(tmp_path / path))
