"""The sandbox: off unless switched on, and what a program can and cannot do in it."""

import json
import shutil
import sys

import pytest

from kvledger.tasks import sandbox
from kvledger.tasks.longproc import pseudo_to_code

GOLD = ("int main(){int a,b;cin>>a>>b;cout<<a+b<<endl;}", json.dumps([[["1 2"], ["3"]], [["5 6"], ["11"]]]))
NO_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv(sandbox.SWITCH, "1")

    def start(program, stdin="", **limits):
        return sandbox.run(
            [sys.executable, "-c", program], tmp_path, stdin, sandbox.Limits(**{"seconds": 20, **limits})
        )

    return start


def test_nothing_runs_unless_it_was_switched_on(tmp_path, monkeypatch):
    monkeypatch.delenv(sandbox.SWITCH, raising=False)
    with pytest.raises(ValueError, match="set KVLEDGER_RUN_CODE=1"):
        sandbox.run(["touch", "ran"], tmp_path)
    with pytest.raises(ValueError, match="set KVLEDGER_RUN_CODE=1"):
        pseudo_to_code.passes("```cpp\n```", GOLD)
    assert not (tmp_path / "ran").exists()


def test_input_goes_in_and_output_comes_out(run):
    result = run("print(input()[::-1])", "abc\n")
    assert (result.ok, result.output) == (True, "cba\n")
    assert not run("raise SystemExit(3)").ok


def test_secrets_of_the_environment_are_not_there(run, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hush-hush")
    assert "hush-hush" not in run("import os; print(dict(os.environ))").output


def test_time_memory_and_output_have_limits(run):
    assert run("import time; time.sleep(60)", seconds=0.5).status is None
    assert not run("x = bytearray(10**9)").ok
    loud = run("while True: print('x' * 10000)", written=100_000)
    assert not loud.ok
    assert len(loud.output) == 100_000


def test_children_do_not_outlive_it(run, tmp_path):
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {!r}]); {}"
    child = "import time, pathlib; time.sleep(1.0); pathlib.Path('late').touch()"
    for after in ("print('done')", "import time; time.sleep(60)"):
        run(program.format(child, after), seconds=0.7)
    import time

    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_there_is_no_network(run):
    program = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 2)"
    result = run(program)
    if not result.isolated:
        pytest.skip("this machine lets nobody make namespaces; Result.isolated says so")
    assert "unreachable" in result.errors or "Cannot assign" in result.errors


@NO_COMPILER
def test_programs_are_compiled_and_tested(monkeypatch):
    monkeypatch.setenv(sandbox.SWITCH, "1")
    assert pseudo_to_code.passes(f"Here:\n```c++\n{GOLD[0]}\n```", GOLD) == 1
    assert pseudo_to_code.passes("```cpp\nint main(){cout<<3<<endl;}\n```", GOLD) == 0  # passes the first test only
    assert pseudo_to_code.passes("```cpp\nint main(){ return x; }\n```", GOLD) == 0
    assert pseudo_to_code.passes(GOLD[0], GOLD) == pseudo_to_code.passes("", GOLD) == 0


def test_the_code_is_between_the_first_and_the_last_fence():
    assert pseudo_to_code.code("a ```cpp\nx\n``` b ``` c") == "\nx\n``` b "
    assert pseudo_to_code.code("```cpp x") is None
    with pytest.raises(ValueError, match="tests are missing"):
        pseudo_to_code.tests(("code",))
