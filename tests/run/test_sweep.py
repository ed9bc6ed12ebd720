"""The runner: what a cell means in each mode and visibility, what is refused, and what a killed run leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvledger.records import Record, read
from kvledger.run.sweep import Grid, sweep

ORDINARY = dict(context=(400,), chunk=128, samples=1, turns=2)


def play(
    model: Path, out: Path, recipes: tuple[str, ...] = ("full", "snapkv(keep=0.3)"), **options: object
) -> list[Record]:
    grid = Grid(str(model), recipes, ("scbench/kv",), **{**ORDINARY, **options})  # type: ignore[arg-type]
    sweep(grid, out, lambda progress: None, lambda line: None)
    return read(out)[0]


def facts(records: list[Record]) -> list[tuple[object, ...]]:
    """What must not depend on when or how often a run was started."""
    chosen = [
        (r.cell, r.sample, r.turn, r.prediction, r.score, r.footprint, r.byte_footprint, r.peak_bytes, r.stored_bytes)
        for r in records
    ]
    return sorted(chosen)


def test_every_turn_is_recorded_once_with_its_figures(tiny: Path, tmp_path: Path) -> None:
    records = play(tiny, tmp_path, modes=("multi-turn", "multi-request"), visibility=("hidden", "visible"))
    assert len(records) == len({(r.cell, r.sample, r.turn) for r in records}) == 2 * 2 * 2 * 2
    for record in records:
        full = record.recipe == "full"
        assert record.footprint == pytest.approx(1.0) if full else record.footprint < 1
        assert record.floor <= record.footprint + 1e-9
        assert record.stored_bytes >= record.full_bytes if full else record.stored_bytes < record.full_bytes
        assert record.seconds >= record.ttft_seconds > 0
        assert record.curve[-1][0] >= record.prompt_tokens


def test_hidden_compresses_before_the_question_and_visible_with_it(tiny: Path, tmp_path: Path) -> None:
    records = play(tiny, tmp_path, ("snapkv(keep=0.25)",), visibility=("hidden", "visible"), modes=("multi-request",))
    for record in records:
        share = record.stored_bytes / record.full_bytes
        assert share == pytest.approx(0.25, abs=0.02)
    hidden, visible = (next(r for r in records if r.visibility == v and r.turn == 0) for v in ("hidden", "visible"))
    assert hidden.prompt_tokens == visible.prompt_tokens
    assert visible.full_bytes > hidden.full_bytes, "the visible prompt holds the question when it is compressed"


def test_patched_reads_the_prompts_tail_with_every_chunk(tiny: Path, tmp_path: Path) -> None:
    options = dict(modes=("multi-request",), turns=1)
    (plain,) = play(tiny, tmp_path / "a", ("snapkv(keep=0.3, when='chunk')",), visibility=("visible",), **options)
    (patched,) = play(tiny, tmp_path / "b", ("snapkv(keep=0.3, when='chunk')",), visibility=("patched",), **options)
    assert plain.prompt_tokens == patched.prompt_tokens
    assert patched.stored_bytes == pytest.approx(plain.stored_bytes, rel=0.02)
    assert patched.footprint > plain.footprint, "the patch costs, and the ledger says so"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(recipes=("snapvk(keep=0.3)",)), "did you mean 'snapkv'"),
        (dict(recipes=("snapkv(kep=0.3)",)), "did you mean 'keep'"),
        (dict(recipes=("snapkv(keep=1.2)",)), "outside"),
        (dict(tasks=("scbench/kw",)), "scbench/kv"),
        (dict(modes=("multiturn",)), "did you mean 'multi-turn'"),
        (dict(visibility=("hiden",)), "did you mean 'hidden'"),
        (dict(recipes=("snapkv(keep=0.3, when='chunk')",), chunk=16), "smaller than the window"),
        (dict(context=(5000,)), "positions"),
        (dict(context=(4050,)), "positions"),
        (dict(visibility=("patched",), recipes=("snapkv(keep=0.3, when='chunk')",)), "patched"),
        (dict(visibility=("patched",), recipes=("snapkv(keep=0.3)",), turns=1), "when='chunk'"),
        (dict(visibility=("patched",), recipes=("snapkv(keep=0.3, when='chunk')",), turns=1, chunk=0), "--chunk"),
        (dict(samples=0), "samples=0"),
        (dict(chunk=-1), "chunk=-1"),
        (dict(model="nowhere"), "cannot load"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    options = {**dict(model=str(tiny), recipes=("full",), tasks=("scbench/kv",), **ORDINARY), **change}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        sweep(Grid(**options), tmp_path, lambda progress: None, lambda line: None)  # type: ignore[arg-type]
    assert not (tmp_path / "records").exists()


def test_running_again_plays_nothing_and_more_samples_play_only_the_new(tiny: Path, tmp_path: Path) -> None:
    first = play(tiny, tmp_path)
    grid = Grid(str(tiny), ("full", "snapkv(keep=0.3)"), ("scbench/kv",), **ORDINARY)  # type: ignore[arg-type]
    assert sweep(grid, tmp_path, lambda progress: None, lambda line: None) == 0
    more = play(tiny, tmp_path, samples=2)
    assert len(more) == 2 * len(first)
    assert facts(first) == [fact for fact in facts(more) if fact[1] == 0]


def test_a_damaged_line_is_reported_skipped_and_played_again(tiny: Path, tmp_path: Path) -> None:
    before = facts(play(tiny, tmp_path))
    path = tmp_path / "records" / "turns.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:50], *lines[1:-1], lines[-1][:40]]))  # one line damaged, the last one torn
    warnings: list[str] = []
    grid = Grid(str(tiny), ("full", "snapkv(keep=0.3)"), ("scbench/kv",), **ORDINARY)  # type: ignore[arg-type]
    assert sweep(grid, tmp_path, lambda progress: None, warnings.append) == 2
    assert len(warnings) == 2
    assert "turns.jsonl:1" in warnings[0]
    assert facts(read(tmp_path)[0]) == before


def test_a_method_that_drops_nothing_fails_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvledger.methods.snapkv import SnapKV

    monkeypatch.setattr(SnapKV, "allowance", lambda self, candidates, row_bytes: candidates)
    with pytest.raises(RuntimeError, match="dropped nothing"):
        play(tiny, tmp_path)


def test_killed_in_the_middle_the_same_command_finishes_the_run(tiny: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "kvledger.cli", "run", "--model", str(tiny), "--recipes", "full", "snapkv(keep=0.3)",
            "adakv(keep=0.5)", "--tasks", "scbench/kv", "--modes", "multi-turn", "multi-request", "--context", "400",
            "--chunk", "128", "--samples", "3", "--turns", "3", "--out", str(out),
        ]  # fmt: skip

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, capture_output=True)
    path = broken / "records" / "turns.jsonl"
    process = subprocess.Popen(command(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= 8:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    kept = path.read_text().splitlines()
    subprocess.run(command(broken), check=True, capture_output=True)
    lines = path.read_text().splitlines()
    torn = 0 if kept[-1].endswith("}") else 1
    assert lines[: len(kept) - torn] == kept[: len(kept) - torn], "what was recorded is never rewritten"
    records, damaged = read(broken)
    assert len(damaged) == torn
    assert len(lines) - torn == len(records) == 3 * 2 * 3 * 3, "no turn twice, none missing"
    assert facts(records) == facts(read(whole)[0])


def test_a_method_in_a_file_of_the_current_folder_is_run_by_its_path(tiny: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "value_norm.py"
    (tmp_path / "mine.py").write_text(example.read_text())
    command = [sys.executable, "-m", "kvledger.cli", "run", "--model", str(tiny), "--recipes", "mine.ValueNorm(keep=0.5)",
               "--tasks", "scbench/kv", "--context", "400", "--samples", "1", "--turns", "1", "--out", "out"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (record,) = read(tmp_path / "out")[0]
    assert (record.recipe, record.method, record.keep) == ("mine.ValueNorm(keep=0.5)", "mine.ValueNorm", 0.5)


def test_answers_written_at_once_are_those_written_one_by_one(tiny: Path, tmp_path: Path) -> None:
    options = dict(
        recipes=("full", "snapkv(keep=0.3)", "adakv(keep=0.4, when='chunk')", "full + int8()"),
        modes=("multi-turn", "multi-request"), visibility=("hidden", "visible"), samples=2, turns=3,
    )  # fmt: skip
    one_by_one = play(tiny, tmp_path / "one", together=1, **options)
    for together in (3, 64):
        assert facts(play(tiny, tmp_path / str(together), together=together, **options)) == facts(one_by_one)


def test_a_sample_that_cannot_be_played_is_left_out_alone(tiny: Path, tmp_path: Path) -> None:
    good, long = tmp_path / "good.jsonl", tmp_path / "long.jsonl"
    row = '{"context": "%s", "turns": [{"question": "Who?", "answer": "Ann"}, {"question": "Why?", "answer": "so"}]}\n'
    good.write_text((row % "Ann lives in Oslo. ") * 2)
    long.write_text(row % "Ann lives in Oslo. " + row % ("word " * 2000))
    warnings: list[str] = []
    grid = Grid(str(tiny), ("full",), (str(long), str(good)), ("multi-request",), context=(1000,), chunk=128, samples=2)
    assert sweep(grid, tmp_path / "out", lambda progress: None, warnings.append) == 2 + 4
    assert [line for line in warnings if "sample 1" in line] == warnings != []


def test_less_than_one_answer_at_once_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="together=0 must be at least 1"):
        play(tiny, tmp_path, together=0)
