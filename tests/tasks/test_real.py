"""SCBench's published rows, by hand: every variant of columns, from a folder and from a hub that is played."""

from __future__ import annotations

import hashlib
import json

import pytest

from kvledger.tasks import TASKS, Unfit, scbench_real, suite
from kvledger.tasks.hub import Data
from kvledger.tasks.scbench_real import REPO, REVISION, SETS

FUNCTION = "def add(a, b):\n    total = a + b\n    return total"
OTHER = "def mul(a, b):\n    out = a * b\n    return out"
RAW = {
    "kv": {
        "id": 0,
        "context": 'JSON data:\n{"k1": "v-one", "k2": "v-two"}',
        "multi_turns": [{"input": '\nKey: "k1"\nThe value associated with the specified key is: ', "answer": "v-one"}],
    },
    "prefix_suffix": {"context": "abcdef xyzuvw", "multi_turns": [{"input": "ab…ef", "answer": "abcdef"}]},
    "vt": {
        "index": 3,
        "length": 9,
        "input": "VAR ABCDE = 12345. VAR FGHIJ = VAR ABCDE. ",
        "multi_turns": [{"input": "Find all variables …", "answer": ["ABCDE", "FGHIJ"]}],
    },
    "repoqa": {
        "id": 1,
        "context": f"{FUNCTION}\n\n{OTHER}\n",
        "lang": "python",
        "repo": "a/b",
        "multi_turns": [
            {"input": "adds", "name": "add", "answer": FUNCTION},
            {"input": "multiplies", "name": "mul", "answer": OTHER},
        ],
    },
    "qa_eng": {"id": 2, "context": "A book.", "multi_turns": [{"input": "Who?", "answer": "Ann Lee"}]},
    "qa_chn": {"id": 2, "context": "一本书。", "multi_turns": [{"input": "谁？", "answer": ["青山镇"]}]},
    "choice_eng": {
        "id": 5,
        "context": "A book.",
        "multi_turns": [{"input": "Who?", "answer": "Bob Smith", "options": ["Ann", "Bob Smith", "Cy", "Di"]}],
    },
    "mf": {
        "id": 6,
        "context": [5, 7, 9],
        "multi_turns": [
            {
                "input": "You should answer with only one number, no other words. The second largest number of the list is",
                "answer": 7,
            }
        ],
    },
    "many_shot": {
        "id": 7,
        "task": "date_understanding",
        "context": "Q: … A: (B)",
        "multi_turns": [{"input": "Q: …", "answer": "C"}],
    },
    "summary": {"id": 8, "context": "Paper one.", "multi_turns": [{"input": "Summarize.", "answer": "It shows that."}]},
    "summary_with_needles": {
        "id": 9,
        "context": "Paper. The pass key is 71839.",
        "multi_turns": [
            {"task": "scbench_summary", "input": "Summarize.", "answer": "It shows that."},
            {"task": "scbench_passkey", "input": "The pass key?", "answer": 71839},
        ],
    },
    "repoqa_and_kv": {
        "id": 1,
        "context": f'{FUNCTION}\n"k9": "v9"\n',
        "lang": "python",
        "repo": "a/b",
        "multi_turns": [
            {"task": "scbench_repoqa", "name": "add", "input": "adds", "answer": FUNCTION},
            {"task": "scbench_kv", "input": "k9?", "answer": "v9v9"},
        ],
    },
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the hub, with one row a set."""
    for name, row in RAW.items():
        write(tmp_path, name, [row])
    return tmp_path


def write(root, name, rows):
    path = root / REPO / SETS[name].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(root, name, index=0, tokens=1000, turns=8):
    return TASKS[f"scbench/{name}"].sample(0, index, tokens, len, turns, "real", Data(str(root)))


@pytest.mark.parametrize("name", SETS)
class TestEverySet:
    def test_a_row_becomes_a_sample_whose_answers_are_right(self, folder, name):
        made, task = read(folder, name), TASKS[f"scbench/{name}"]
        assert made == read(folder, name)
        assert len(made.turns) == len(RAW[name]["multi_turns"])
        for turn in made.turns:
            assert task.score(turn.gold, turn.golds) == 1.0
            assert task.score("", turn.golds) == 0.0
            if name != "qa_chn":  # legacy looks for single characters, see the scorers' tests
                assert task.legacy(turn.gold, turn.golds) == 1.0
            for start, end in turn.evidence:
                assert any(gold in made.text[start:end] for gold in turn.golds)

    def test_text_begins_with_the_instruction_and_ends_before_the_question(self, folder, name):
        made = read(folder, name)
        assert made.text.endswith("\n\n")
        assert str(RAW[name].get("context", RAW[name].get("input"))) in made.segments[-1].text
        assert [segment.role for segment in made.segments] == ["instruction", "context"][-len(made.segments) :]
        assert made.segments[0].text.startswith(SETS[name].instruction)

    def test_a_missing_column_is_named_with_its_row(self, folder, name):
        row = {key: value for key, value in RAW[name].items() if key not in ("context", "multi_turns")}
        write(folder, name, [row])
        with pytest.raises(ValueError, match=r"row 1: column '(context|multi_turns)' is missing; it has"):
            read(folder, name)

    def test_an_answer_of_the_wrong_type_is_named_with_its_turn(self, folder, name):
        turns = [{**turn, "answer": {"a": 1}} for turn in RAW[name]["multi_turns"]]
        write(folder, name, [{**RAW[name], "multi_turns": turns}])
        with pytest.raises(ValueError, match="row 1, turn 1: answer must be a string"):
            read(folder, name)

    def test_parquets_object_of_lists_is_the_same_turns(self, folder, name):
        turns = RAW[name]["multi_turns"]
        columns = {key: [turn.get(key) for turn in turns] for key in dict.fromkeys(k for t in turns for k in t)}
        before = read(folder, name)
        write(folder, name, [{**RAW[name], "multi_turns": columns}])
        assert read(folder, name).turns == before.turns

    def test_the_hub_must_hold_as_many_rows_and_turns_as_were_published(self, folder, name, monkeypatch):
        play_hub(monkeypatch, folder)
        monkeypatch.setitem(SETS[name].__dict__, "sha256", "")
        with pytest.raises(ValueError, match=f"1 rows and .* published were {SETS[name].rows}"):
            read("hub", name)


def play_hub(monkeypatch, folder):
    """The hub's download, played by the folder: the code path is the same but for the network."""
    import huggingface_hub

    def download(repo, file, repo_type, revision):
        assert (repo, repo_type, revision) == (REPO, "dataset", REVISION)
        return str(folder / repo / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_a_whole_set_from_the_hub(tmp_path, monkeypatch):
    rows = [{**RAW["kv"], "id": i, "multi_turns": RAW["kv"]["multi_turns"] * 5} for i in range(100)]
    write(tmp_path, "kv", rows)
    play_hub(monkeypatch, tmp_path)
    hubs, local = (Data(root) for root in ("hub", str(tmp_path)))
    task = TASKS["scbench/kv"]
    assert task.sample(0, 4, 1000, len, 5, "real", hubs) == task.sample(0, 4, 1000, len, 5, "real", local)
    assert hubs.fingerprint == local.fingerprint != ""


def test_rows_come_in_an_order_of_the_seed_and_no_row_is_unfit(tmp_path):
    write(tmp_path, "kv", [{**RAW["kv"], "context": f"row {i} v-one"} for i in range(6)])
    texts = [read(tmp_path, "kv", index).segments[-1].text for index in range(6)]
    assert len(set(texts)) == 6
    other = [TASKS["scbench/kv"].sample(1, i, 1000, len, 5, "real", Data(str(tmp_path))).text for i in range(6)]
    assert sorted(texts) != texts or other != texts
    with pytest.raises(Unfit, match="6 rows, there is no sample 6"):
        read(tmp_path, "kv", 6)


def test_a_row_that_is_too_long_is_left_out_and_not_cut(folder):
    long = len(read(folder, "kv").text)
    assert read(folder, "kv", tokens=long)
    with pytest.raises(Unfit, match=f"row 1 has {long} tokens, more than {long - 1}: left out, not cut"):
        read(folder, "kv", tokens=long - 1)


def test_what_belongs_to_each_set(folder):
    (turn,) = read(folder, "mf").turns
    assert turn.question.startswith("What is the second largest number of the list?\n\nYou should answer")
    assert read(folder, "mf").text == "[5, 7, 9]\n\n"
    (turn,) = read(folder, "choice_eng").turns
    assert turn.golds == ("B", "Bob Smith")
    assert turn.question == "Question: Who?\nA. Ann\nB. Bob Smith\nC. Cy\nD. Di\nThe the correct answer is"
    assert read(folder, "qa_eng").turns[0].question == "Question: Who?\nAnswer:"
    assert read(folder, "repoqa").turns[0].golds == (FUNCTION, OTHER)
    summary, needle = read(folder, "summary_with_needles").turns
    assert (summary.subtask, summary.max_new_tokens) == ("summary", 800)
    assert (needle.subtask, needle.max_new_tokens, needle.gold) == ("passkey", 15, "71839")
    repo, kv = read(folder, "repoqa_and_kv").turns
    assert (repo.max_new_tokens, kv.max_new_tokens, kv.golds) == (1024, 80, ("v9v9",))


def test_rivals_are_all_functions_asked_of_the_repository(folder):
    rows = [{**RAW["repoqa"], "multi_turns": [turn]} for turn in RAW["repoqa"]["multi_turns"]]
    write(folder, "repoqa", [*rows, {**RAW["repoqa"], "repo": "c/d"}])
    golds = {read(folder, "repoqa", i).turns[0].golds for i in range(3)}
    assert golds == {(FUNCTION, OTHER), (OTHER, FUNCTION)}


def test_what_is_wrong_with_a_folder_or_a_file_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="data folder '/nowhere' is not there"):
        read("/nowhere", "kv")
    path = folder / REPO / SETS["kv"].file
    path.write_text(json.dumps(RAW["kv"]) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"kv\.jsonl, line 2: not JSON"):
        [read(folder, "kv", i) for i in range(2)]
    path.unlink()
    with pytest.raises(ValueError, match=r"has no microsoft/SCBench/data/scbench_kv\.jsonl; lay the data out"):
        read(folder, "kv")
    write(
        folder, "choice_eng", [{**RAW["choice_eng"], "multi_turns": [{"input": "?", "answer": "x", "options": ["a"]}]}]
    )
    with pytest.raises(ValueError, match="options must be a list that holds the answer"):
        read(folder, "choice_eng")
    write(
        folder,
        "repoqa_and_kv",
        [{**RAW["repoqa_and_kv"], "multi_turns": [{"task": "odd", "input": "?", "answer": "x"}]}],
    )
    with pytest.raises(ValueError, match="task is 'odd'; choices: scbench_repoqa, scbench_kv"):
        read(folder, "repoqa_and_kv")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RevisionNotFoundError", "no revision 'abc' of a/b"),
        ("RepositoryNotFoundError", "no data set 'a/b', or it is gated"),
        ("LocalEntryNotFoundError", "without a network give --data DIR"),
        ("OSError", "could not be downloaded: the wire is cut"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(monkeypatch, error, said):
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error, OSError)

    def refuse(*args, **kwargs):
        raise kind.__new__(kind) if kind is not OSError else OSError("the wire is cut\nlong tail")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=said):
        Data("hub").path("a/b", "c.jsonl", "abc")


def test_a_changed_hash_is_refused_and_the_right_one_is_not(folder):
    data, file = Data(str(folder)), SETS["kv"].file
    right = hashlib.sha256((folder / REPO / file).read_bytes()).hexdigest()
    assert data.path(REPO, file, REVISION, right).is_file()
    with pytest.raises(ValueError, match=f"SHA-256 is {right[:16]}…, not 0000"):
        data.path(REPO, file, REVISION, "0" * 64)
    before = data.fingerprint
    write(folder, "kv", [RAW["kv"], RAW["kv"]])
    data.path(REPO, file, REVISION)
    assert data.fingerprint != before


def test_only_what_was_published_is_real_and_only_what_is_generated_is_made():
    real = {task.name for task in suite("scbench", real=True)}
    assert real == {f"scbench/{name}" for name in scbench_real.SETS}
    with pytest.raises(ValueError, match="generated and has no published data: leave --data away"):
        suite("scbench/qa_eng_alike", real=True)
    with pytest.raises(
        ValueError, match="cannot be generated: give --data hub or --data DIR, or take scbench/qa_eng_alike"
    ):
        suite("scbench/qa_eng")
    with pytest.raises(ValueError, match="form 'real' needs data"):
        TASKS["scbench/qa_eng"].sample(0, 0, 100, len, 1, "real")
