"""LongProc's loaders on hand-made rows: the hub's columns and a checkout's files, and what is wrong with others."""

import json

import pytest

from kvledger.tasks import sandbox
from kvledger.tasks.base import Unfit
from kvledger.tasks.hub import Data
from kvledger.tasks.longproc import ROWS, countdown, path_traversal, published
from kvledger.tasks.longproc.published import COUNTS, GITHUB, HUB, PARTS, SHA256
from kvledger.tasks.longproc.trip import Search, Trip, procedure

TASKS = {task.name.removeprefix("longproc/"): task for task in ROWS}
TRIP = Trip((("A", 3), ("B", 2)), (("B", 3, 4),), (("A", "B"),))
TRAVEL = {
    "constraints": [
        {"type": "duration", "city": "A", "num_days": 3},
        {"type": "duration", "city": "B", "num_days": 2},
        {"type": "fixed", "city": "B", "start_day": 3, "end_day": 4},
    ],
    "connected_cities": [["A", "B"]],
    "disambig_question_text": "Visit A and B.\n\nFind a trip plan of visiting the cities.",
    "estimated_output_tokens": 900,
}
REFERENCES = {
    "html_to_tsv": "a\tb\nx\t1\n",
    "travel_planning": procedure(Search(TRIP)),
    "path_traversal": "From A, take a bus to B.",
    "tom_tracking": "A's belief on the o:\n- Step 0: (initial state) {x}\nFinal Answer: None",
    "countdown": countdown.trace(countdown.Search([21, 16, 17, 26], 46)),
}
METADATA = {"travel_planning": {"item": TRAVEL}}


@pytest.fixture(autouse=True)
def _hand_made(monkeypatch):
    """Hashes are those of the published files, which these rows stand in for."""
    monkeypatch.setattr(published, "SHA256", {})


def hub(root, task, tier, rows):
    folder = root / HUB / f"{task}_{tier}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Data(str(root))


def row(task, number=0):
    begin, ask = PARTS[task]
    return {
        "id": str(number),
        "input_prompt": f"Do this.\n{begin}context {number}{ask}question {number}?",
        "reference_output": REFERENCES[task],
        "metadata": json.dumps(METADATA.get(task, {})),
    }


def checkout(root, task, files):
    folder = root / GITHUB / "data" / task
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Data(str(root))


def real(data, name, index=0, tokens=10_000):
    return TASKS[name].real(data, 0, index, tokens, len, 1)


@pytest.mark.parametrize("task", REFERENCES)
def test_the_hubs_columns_are_read_and_the_prompt_cut_in_two(tmp_path, task):
    data = hub(tmp_path, task, "2k", [row(task, i) for i in range(3)])
    seen = set()
    for index in range(3):
        made = real(data, f"{task}_2k", index)
        (turn,) = made.turns
        assert made.text + turn.question in {row(task, i)["input_prompt"] for i in range(3)}
        assert turn.question.endswith("?")
        assert "context" not in turn.question
        assert [segment.role for segment in made.segments] == ["instruction", "context"]
        assert TASKS[f"{task}_2k"].score(turn.gold, turn.golds) == 1
        assert turn.max_new_tokens == 3072
        seen.add(made.text)
    assert len(seen) == 3
    assert data.fingerprint


def test_rows_that_do_not_fit_are_refused_one_by_one(tmp_path):
    data = hub(tmp_path, "tom_tracking", "2k", [row("tom_tracking")])
    with pytest.raises(Unfit, match="no row 1"):
        real(data, "tom_tracking_2k", 1)
    with pytest.raises(Unfit, match="it is not cut"):
        real(data, "tom_tracking_2k", tokens=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_prompt": None}, "must be text"),
        ({"metadata": "[1]"}, "JSON object"),
        ({"input_prompt": "no parts"}, "prompt has no"),
    ],
)
def test_rows_of_another_kind_are_an_error(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        real(hub(tmp_path, "countdown", "2k", [{**row("countdown"), **change}]), "countdown_2k")


def test_a_missing_column_or_file_is_named(tmp_path):
    held = {name: value for name, value in row("countdown").items() if name != "reference_output"}
    with pytest.raises(ValueError, match=r"no column 'reference_output'; it has id, input_prompt, metadata"):
        real(hub(tmp_path, "countdown", "2k", [held]), "countdown_2k")
    with pytest.raises(ValueError, match="tom_tracking_2k/test-00000-of-00001"):
        real(Data(str(tmp_path)), "tom_tracking_2k")


def test_a_changed_file_of_a_checkout_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SHA256", SHA256)
    assert {name.split("/")[0] for name in SHA256} == set(PARTS) - {"pseudo_to_code"}
    assert len(set(SHA256.values())) == len(SHA256)
    for name in ("path_traversal_2k", "countdown_8k"):
        data = checkout(tmp_path, name.rsplit("_", 1)[0], {f"{name}.json": []})
        with pytest.raises(ValueError, match="SHA-256"):
            real(data, name)


def test_the_hubs_rows_are_counted(tmp_path, monkeypatch):
    import huggingface_hub

    assert sum(COUNTS.values()) == 3616
    assert {name: TASKS[name].rows for name in COUNTS} == COUNTS
    hub(tmp_path, "countdown", "2k", [row("countdown", i) for i in range(199)])
    there = tmp_path / HUB / "countdown_2k"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(there / "test.jsonl"))
    with pytest.raises(ValueError, match="has 199 rows, published were 200: this is another edition"):
        real(Data("hub"), "countdown_2k")
    hub(tmp_path, "countdown", "2k", [row("countdown", i) for i in range(200)])
    assert real(Data("hub"), "countdown_2k") == real(Data(str(tmp_path)), "countdown_2k")


def test_a_checkouts_pages_are_put_into_the_prompt(tmp_path):
    held = {
        "html_path": "webpage/a.html",
        "task_topic": "foxes",
        "task_description": "(1) name",
        "filtering_instruction": " Only red ones.",
        "tsv_header": "name",
        "gt": "name\nfox\n",
    }
    template = (
        "USER_PROMPT: |-\n  [INPUT WEBPAGE]\n  {html_str}\n\n  [TARGET INFORMATION]\n  {task_topic}: {task_description}"
    )
    template += "{filtering_instruction}\n  {tsv_header}\n  {{Your TSV}}\n"
    files = {"html_to_tsv_0.5k.json": [held], "webpage/a.html": "<p>{task_topic} {{fox}}</p>", "prompts.yaml": template}
    made = real(checkout(tmp_path, "html_to_tsv", files), "html_to_tsv_0.5k")
    assert made.segments[1].text == "<p>{task_topic} {{fox}}</p>"
    assert made.turns[0].question == "\n\n[TARGET INFORMATION]\nfoxes: (1) name Only red ones.\nname\n{Your TSV}"
    outside = checkout(tmp_path, "html_to_tsv", {**files, "html_to_tsv_0.5k.json": [{**held, "html_path": "../../x"}]})
    with pytest.raises(ValueError, match="must lie in"):
        real(outside, "html_to_tsv_0.5k")
    with pytest.raises(ValueError, match="USER_PROMPT"):
        real(checkout(tmp_path, "html_to_tsv", {**files, "prompts.yaml": "PROMPT: x"}), "html_to_tsv_0.5k")


def test_a_checkouts_trips_are_sorted_into_tiers(tmp_path):
    long = {**TRAVEL, "estimated_output_tokens": 5000, "disambig_question_text": "Long.\n\nFind a trip plan of it."}
    between = {**TRAVEL, "estimated_output_tokens": 3000}
    template = "USER_PROMPT: |-\n  {demonstration}\n  YOUR TASK:\n  {problem}\n"
    files = {
        "travel_planning_all.json": [between, TRAVEL, long],
        "travel_planning_icl_examples.json": [TRAVEL],
        "prompts.yaml": template,
    }
    data = checkout(tmp_path, "travel_planning", files)
    made = real(data, "travel_planning_8k")
    assert made.segments[1].text == "Long."
    assert procedure(Search(TRIP)) in made.segments[0].text
    assert real(data, "travel_planning_2k").segments[1].text == "Visit A and B."
    with pytest.raises(Unfit, match="has 1 rows"):
        real(data, "travel_planning_2k", 1)


def test_pseudocode_is_read_only_where_code_may_run(tmp_path, monkeypatch):
    held = {"pseudocode_lines": ["print 3"], "code_lines": ["int main(){}"], "testcases": [[["1"], ["3"]]]}
    template = "USER_PROMPT: |-\n  [PSEUDOCODE]:\n  {pseudocode}\n\n  [CODE]:"
    data = checkout(tmp_path, "pseudo_to_code", {"pseudo_to_code_2k.json": [held], "prompts.yaml": template})
    monkeypatch.delenv(sandbox.SWITCH, raising=False)
    with pytest.raises(ValueError, match="KVLEDGER_RUN_CODE=1"):
        real(data, "pseudo_to_code_2k")
    monkeypatch.setenv(sandbox.SWITCH, "1")
    made = real(data, "pseudo_to_code_2k")
    assert made.segments[1].text == "print 3"
    assert made.turns[0].golds == ("int main(){}", json.dumps([[["1"], ["3"]]]))


def test_a_route_of_the_hub_is_scored_like_one_that_was_made():
    made = TASKS["path_traversal_0.5k"].make(0, 0, 2000, len, 1, "small")
    assert path_traversal.exact(made.turns[0].gold, made.turns[0].golds) == 1
