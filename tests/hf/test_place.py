"""Models that are not on one device: offloaded weights (as accelerate leaves them), and weights quantised by other libraries.
Those libraries are optional; without them a stand-in for accelerate's hooks is what the tests know."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import kvledger as kv
from kvledger.hf.load import fingerprint, load
from kvledger.hf.place import home, layer_home, stored

RECIPES = ("full", "snapkv(keep=0.3)", "criticalkv(keep=0.3)", "kvzip(keep=0.3)", "expected_attention(keep=0.4)")


def offload(model: Any) -> Any:
    """Every weight is fetched for the forward of its module, and only a shape before and after it: accelerate's way."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        weights = {name: p.detach() for name, p in own.items()}
        module._hf_hook = SimpleNamespace(execution_device="cpu", weights_map=weights)

        def fetch(module: nn.Module, *inputs: Any, weights: dict[str, torch.Tensor] = weights) -> None:
            for name, weight in weights.items():
                setattr(module, name, nn.Parameter(weight, requires_grad=False))

        def drop(module: nn.Module, *inputs: Any, names: tuple[str, ...] = tuple(own)) -> None:
            for name in names:
                setattr(module, name, nn.Parameter(getattr(module, name).detach().to("meta"), requires_grad=False))

        module.register_forward_pre_hook(fetch)
        module.register_forward_hook(drop)
        drop(module)
    return model


def model_of(seed: int = 0) -> Any:
    """A model of its own, since it will be changed."""
    made = tiny.model("llama")
    twin = type(made)(made.config).eval()
    twin.load_state_dict(made.state_dict())
    twin.generation_config.eos_token_id = None
    return twin


def answers(model: Any, recipe: str) -> list[str]:
    session = kv.open(model, tiny.tokenizer(), recipe, chunk=32)
    session.read(tiny.text(90))
    fork = session.fork()
    return [session.ask(tiny.text(5, 1), 6), session.ask(tiny.text(4, 2), 6), fork.ask(tiny.text(4, 3), 6)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_offloaded_layers_answer_as_those_in_memory(recipe: str) -> None:
    whole = model_of()
    expected, print_of = answers(whole, recipe), fingerprint(whole)
    away = offload(whole)
    assert away.device.type == "meta"
    assert home(away) == layer_home(away, 1) == torch.device("cpu")
    assert fingerprint(away) == print_of
    assert answers(away, recipe) == expected


def test_accelerate_itself() -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs the extra: pip install 'kvledger[devices]'")
    whole = model_of()
    expected, print_of = answers(whole, "criticalkv(keep=0.3)"), fingerprint(whole)
    away = accelerate.cpu_offload(whole, execution_device=torch.device("cpu"))
    assert next(away.parameters()).is_meta
    assert fingerprint(away) == print_of
    assert answers(away, "criticalkv(keep=0.3)") == expected


def test_the_place_of_a_layer_is_what_its_hook_says() -> None:
    model = model_of()
    assert home(model) == torch.device("cpu")
    model.model.layers[1]._hf_hook = SimpleNamespace(
        hooks=[SimpleNamespace(), SimpleNamespace(execution_device="meta")]
    )
    model.model.layers[1].self_attn._hf_hook = SimpleNamespace(execution_device="meta")
    assert layer_home(model, 0) == torch.device("cpu")
    assert layer_home(model, 1) == torch.device("meta")
    assert stored(model.lm_head, "weight") is model.lm_head.weight


def test_device_auto_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"kvledger\[devices\]"):
        load("zoo", device="auto")


def quantisers() -> list[Any]:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    def ao() -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())

    return [
        pytest.param("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True), id="bnb8"),
        pytest.param("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True), id="bnb4"),
        pytest.param("torchao", ao, id="torchao"),
    ]


@pytest.mark.parametrize("package, config", quantisers())
def test_quantised_weights_just_work(package: str, config: Any, tmp_path: Path) -> None:
    """The same answers as transformers' own cache gives, and a cache that is smaller by what was asked."""
    pytest.importorskip(package, reason=f"needs {package}: pip install {package}")
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'kvledger[devices]'")
    model_of().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model, _ = load(str(tmp_path), device="cpu", quantization=config())
    assert model.is_quantized if hasattr(model, "is_quantized") else model.hf_quantizer is not None
    assert len(fingerprint(model)) == 12
    ids = tiny.ids(40)
    expected = tiny.generated(model, ids, 5)
    with kv.attach(model, "full"):
        assert tiny.generated(model, ids, 5) == expected
    with kv.attach(model, "snapkv(keep=0.5)") as attached:
        tiny.generated(model, ids, 5)
        assert attached.ledger.footprint < 0.95


def test_layers_on_disk_answer_as_those_in_memory(tmp_path: Path) -> None:
    """A `device_map` over the host and the disk, as a model gets that is larger than all memory."""
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'kvledger[devices]'")
    whole = model_of()
    expected, print_of = answers(whole, "adakv(keep=0.3)"), fingerprint(whole)
    whole.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = type(whole).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "away", dtype="float32")
    spread.generation_config.eos_token_id = None
    assert spread.eval().model.layers[1].mlp.up_proj.weight.is_meta
    assert home(spread) == layer_home(spread, 1) == torch.device("cpu")
    assert fingerprint(spread) == print_of
    assert answers(spread, "adakv(keep=0.3)") == expected


def test_auto_spreads_what_a_name_says(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'kvledger[devices]'")
    whole = model_of()
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    spread, _ = load(str(tmp_path), device="auto", dtype="float32")
    spread.generation_config.eos_token_id = None
    assert answers(spread, "snapkv(keep=0.3)") == answers(whole, "snapkv(keep=0.3)")
