"""The embedded model as a stranger meets it: plain transformers files, small, and able to do the work."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvledger import zoo
from kvledger.tasks import get
from kvledger.zoo import start
from kvledger.zoo.data import FIRST_TRAINING_SEED, PLANS, conversation, plan_of, sample
from kvledger.zoo.evaluate import evaluate
from kvledger.zoo.tokenizer import VOCABULARY
from kvledger.zoo.wide import PHRASES, WIDE, pieces

TRAINED = [f"scbench/{name}" for name in ("kv", "prefix_suffix", "vt", "mf", "many_shot", "mix")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.path())


@pytest.fixture(scope="module")
def wide_tokenizer():
    return AutoTokenizer.from_pretrained(zoo.path("zoo-wide"))


def test_both_models_fit_in_sixteen_mebibytes():
    assert sum(file.stat().st_size for name in zoo.MODELS for file in zoo.path(name).iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("name", zoo.MODELS)
def test_loads_as_any_other_model(name):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(zoo.path(name)),
        AutoTokenizer.from_pretrained(zoo.path(name)),
    )
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers >= 6
    assert model.config.num_key_value_heads == 4
    assert model.generation_config.do_sample is False
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_special_tokens_are_where_config_and_tokenizer_say(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(zoo.path())
    assert tokenizer.decode([model.config.eos_token_id]) == "<|end|>" == tokenizer.eos_token
    assert tokenizer.decode([model.config.bos_token_id]) == "<|bos|>" == tokenizer.bos_token
    assert len(tokenizer) == VOCABULARY


@pytest.mark.parametrize(
    "text", ["naïve Ωmega\t“quoted”\r\n\x00", "def f(x):\n    return x ** 2  # 1024\n", "BAKO bako Bako"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_pieces_are_single_tokens(tokenizer):
    assert tokenizer.tokenize('"BAKO": "TIMU"') == ['"', "BA", "KO", '": "', "TI", "MU", '"']
    assert tokenizer.tokenize("[47, 98]") == ["[", "47", ", ", "98", "]"]


@pytest.mark.parametrize("name", TRAINED)
def test_context_and_question_may_be_tokenised_apart(tokenizer, name):
    made = get(name).make(1, 0, 400, lambda text: len(tokenizer.encode(text)), 5)
    for turn in made.turns:
        apart = tokenizer.encode(made.text) + tokenizer.encode(turn.question)
        assert apart == tokenizer.encode(made.text + turn.question)


@pytest.mark.parametrize("name", TRAINED)
def test_chat_rendering_is_incremental(tokenizer, name):
    made = get(name).make(1, 0, 400, lambda text: len(tokenizer.encode(text)), 3)
    messages: list[dict[str, str]] = []
    grown: list[int] = []
    for number, turn in enumerate(made.turns):
        messages.append({"role": "user", "content": (made.text if number == 0 else "") + turn.question})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt[: len(grown)] == grown
        messages.append({"role": "assistant", "content": turn.gold})
        grown = tokenizer.apply_chat_template(messages, return_dict=False)
        assert grown[: len(prompt)] == prompt
        assert grown == prompt + tokenizer.encode(turn.gold + "<|end|>")
    assert grown.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("task", [*PLANS, *WIDE])
def test_training_rows_are_the_chat_format(request, task):
    tokenizer = request.getfixturevalue("wide_tokenizer" if task in WIDE else "tokenizer")
    made = sample(tokenizer, random.Random(FIRST_TRAINING_SEED), task, max(200, plan_of(task).shortest))
    messages = []
    for number, turn in enumerate(made.turns):
        messages.append({"role": "user", "content": (made.text if number == 0 else "") + turn.question})
        messages.append({"role": "assistant", "content": turn.gold})
    row = conversation(tokenizer, task, made)
    if task in PLANS:
        assert row.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    else:  # where a context ends in what a phrase begins with, only apart is as it is asked
        assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    learned = [token for token, weight in zip(row.ids, row.weights, strict=True) if weight]
    assert tokenizer.decode(learned) == "".join(turn.gold + "<|end|>" for turn in made.turns)


def test_the_wide_tokenizer_is_the_first_one_and_its_pieces(tokenizer, wide_tokenizer):
    assert wide_tokenizer.get_vocab().items() >= tokenizer.get_vocab().items()
    for piece in pieces():
        assert wide_tokenizer.decode(wide_tokenizer.encode(piece)) == piece
        assert len(wide_tokenizer.encode(piece)) == 1
    assert len(wide_tokenizer) == VOCABULARY + len(set(pieces())) == VOCABULARY + len(pieces())


def test_no_piece_is_for_nothing(wide_tokenizer):
    read = set()
    for task in WIDE:
        for index, turns in enumerate((1, 3, 6)):
            made = get(task).sample(0, index, 1500, lambda text: len(wide_tokenizer.encode(text)), turns)
            for text in (made.text, *(part for turn in made.turns for part in (turn.question, turn.gold))):
                read.update(wide_tokenizer.encode(text))
    assert [piece for piece in PHRASES if wide_tokenizer.convert_tokens_to_ids(piece) not in read] == []


@pytest.mark.parametrize("task", [*PLANS, *WIDE])
def test_every_row_that_a_task_may_go_into_holds_all_its_answers(request, task):
    tokenizer = request.getfixturevalue("wide_tokenizer" if task in WIDE else "tokenizer")
    for seed in range(10):
        for length in (plan_of(task).shortest, 1024):
            row = conversation(tokenizer, task, sample(tokenizer, random.Random(seed), task, length))
            assert len(row.ids) <= 1.05 * length
            assert max(row.answers) >= 0


@pytest.mark.parametrize("mode", ["multi-turn", "multi-request"])
def test_looks_up_keys_with_the_full_cache(mode):
    (result,) = evaluate(zoo.path(), ["scbench/kv"], 512, 4, 7, mode, 5)
    assert result["score"] >= 0.9


@pytest.mark.parametrize("task", ["ruler/niah_multikey_1", "ruler/qa_1_alike", "scbench/summary_with_needles_alike"])
def test_the_wide_model_does_more(task):
    (result,) = evaluate(zoo.path("zoo-wide"), [task], 512, 4, 7, "multi-request", 4)
    assert result["score"] >= 0.8


@pytest.mark.parametrize("kind", start.KINDS)
def test_every_kind_is_trained_through_tied_weights(kind):
    made = start.model(kind, 1, 2, 0).eval()
    ids = torch.randint(5, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = made.base_model(input_ids=ids, use_cache=False)[0]
        logits = made(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(hidden @ made.get_input_embeddings().weight.T, logits, rtol=1e-4, atol=1e-4)
    assert made.config.eos_token_id == 2
