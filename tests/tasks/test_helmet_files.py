"""HELMET's tarball, and what may be wrong with it."""

import tarfile

import pytest
from helmet_rows import HELMET, TASKS, book_rows, count, kilt_row, kv_rows, llama2, real, write

from kvledger.tasks.base import Unfit
from kvledger.tasks.helmet import corpora, files


@pytest.fixture
def root(tmp_path):
    return tmp_path


def test_the_tarball_is_unpacked_once_and_gives_the_same_sample(root, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    write(flat / HELMET / "data/json_kv/test_k50_dep6.jsonl", list(kv_rows()))
    write(flat / HELMET / "data/json_kv/test_k105_dep6.jsonl", list(kv_rows()))
    (root / HELMET).mkdir(parents=True)
    with tarfile.open(root / HELMET / "data.tar.gz", "w:gz") as archive:
        archive.add(flat / HELMET / "data", "data")
        evil = flat / "evil.txt"
        evil.write_text("x")
        archive.add(evil, "../../evil.txt")
    assert real("json_kv", root) == real("json_kv", flat)
    unpacked = sorted(p.name for p in (root / HELMET / "unpacked").rglob("*.jsonl"))
    assert unpacked == ["test_k50_dep6.jsonl"]  # what this length needs, and no more
    assert not (root / "evil.txt").exists()
    before = (root / HELMET / "unpacked/data/json_kv/test_k50_dep6.jsonl").stat().st_mtime_ns
    real("json_kv", root, index=1)
    assert (root / HELMET / "unpacked/data/json_kv/test_k50_dep6.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another edition"):
        real("kilt_nq", root)


def test_a_published_file_that_changed_is_refused(root, monkeypatch):
    file = "data/msmarco/test_reranking_data_k14_dep3.jsonl"
    write(root / HELMET / file, [])
    monkeypatch.setattr(files, "SHA256", {file.removeprefix("data/"): "0" * 64})
    with pytest.raises(ValueError, match=r"k14_dep3\.jsonl of princeton-nlp/HELMET .* its SHA-256 is e3b0"):
        real("msmarco_rerank", root)


def test_a_broken_tarball_is_named(root):
    (root / HELMET).mkdir(parents=True)
    (root / HELMET / "data.tar.gz").write_bytes(b"\x1f\x8b\x08\x00nonsense")
    with pytest.raises(ValueError, match=r"data\.tar\.gz cannot be unpacked"):
        real("json_kv", root)


def test_missing_data_say_where_they_are_looked_for(root):
    with pytest.raises(ValueError, match=r"json_kv/test_k50_dep6\.jsonl of HELMET is looked for"):
        real("json_kv", root)
    with pytest.raises(ValueError, match="no contexts of 1000 tokens"):
        real("json_kv", root, tokens=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, r"row 1: column 'context' is missing; it has context, question"),
        ({"context": 3}, "column 'context' must be str, not int"),
        ({"answer": [3]}, "answer must be a string or a list of strings"),
        ({"answer": []}, "answer must be a string or a list of strings"),
        ({"demos": [["a"]]}, "demos must be pairs"),
        ({"demos": "ab"}, "column 'demos' must be list, not str"),
    ],
)
def test_a_row_of_another_shape_is_named(root, change, message):
    write(root / HELMET / "data/json_kv/test_k50_dep6.jsonl", [next(iter(kv_rows())) | change])
    with pytest.raises(ValueError, match=message):
        real("json_kv", root)


def test_a_line_that_does_not_parse_and_an_empty_file_are_named(root):
    path = root / HELMET / "data/json_kv/test_k50_dep6.jsonl"
    write(path, [])
    with pytest.raises(ValueError, match="has no rows"):
        real("json_kv", root)
    path.write_text("{broken\n")
    with pytest.raises(ValueError, match="1: not JSON"):
        real("json_kv", root)


@pytest.mark.parametrize("label", [6, -1, "1", True, 1.0])
def test_a_label_that_is_none_is_named(root, label):
    corpus = corpora.CORPORA[0]
    write(root / corpus.repo / "default/train/0000.jsonl", [{"text": "a", "coarse_label": label}])
    write(root / corpus.repo / "default/test/0000.jsonl", [{"text": "a", "coarse_label": 1}])
    with pytest.raises(ValueError, match="coarse_label must be a whole number below 6"):
        real("icl_trec_coarse", root, tokens=8192)


def test_a_model_too_short_for_the_demonstrations_is_told(root):
    write(root / HELMET / files.kilt_file("nq", 20), [kilt_row(1)])
    huge = kilt_row(100)
    huge["ctxs"] = [dict(title="T", text="word " * 5000)]
    write(root / HELMET / files.kilt_file("nq", 3, demos=True), [huge, kilt_row(101)])
    with pytest.raises(Unfit, match="not even the instruction and demonstrations"):
        real("kilt_nq", root)


def test_the_hub_is_read_as_a_folder_is(root, tmp_path_factory, monkeypatch):
    import huggingface_hub

    from kvledger.tasks.hub import Data

    flat, asked = tmp_path_factory.mktemp("flat"), []
    write(flat / HELMET / "data/json_kv/test_k50_dep6.jsonl", list(kv_rows()))
    llama2(root)
    write(root / "xinrongzhang2022/infinitebench/longbook_qa_eng.jsonl", list(book_rows()))
    (root / HELMET).mkdir(parents=True)
    with tarfile.open(root / HELMET / "data.tar.gz", "w:gz") as archive:
        archive.add(flat / HELMET / "data", "data")

    def download(repo, file, repo_type="model", revision=None):
        asked.append((repo, repo_type, revision))
        return str(root / repo / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    data = Data("hub")
    for name in ("json_kv", "infbench_qa_eng"):
        assert TASKS[name].real(data, 0, 0, 4096, count, 1) == real(name, root)
    assert (HELMET, "dataset", files.REVISION) in asked
    assert ("NousResearch/Llama-2-7b-hf", "model", None) in asked
    local = Data(str(root))
    for name in ("json_kv", "infbench_qa_eng"):
        TASKS[name].real(local, 0, 0, 4096, count, 1)
    assert data.fingerprint == local.fingerprint != ""
