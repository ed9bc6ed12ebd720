"""`kvledger serve` before it serves: addresses, options, what is missing."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest

from kvledger.cli import _Parser
from kvledger.serve import command


def arguments(*words: str) -> argparse.Namespace:
    parser = _Parser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_a_port_in_use_is_named() -> None:
    with command.listen("127.0.0.1", 0, "") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1 port {port}: .*in use.*--port"):
            command.listen("127.0.0.1", port, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_other_machines_are_let_in_with_a_key_only(host: str) -> None:
    with pytest.raises(ValueError, match=r"KVLEDGER_API_KEY.*127\.0\.0\.1"):
        command.listen(host, 0, "")


def test_with_a_key_any_address_may_listen() -> None:
    with command.listen("0.0.0.0", 0, "secret") as place:
        assert place.getsockname()[0] == "0.0.0.0"


def test_an_address_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot listen at 192\.0\.2\.1 port 9"):
        command.listen("192.0.2.1", 9, "secret")


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra was installed: none of these commands gets as far as using it."""
    for name in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, sys)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    "words, reason",
    [
        (["--port", "70000"], "--port 70000 is outside 0–65535"),
        (["--queue", "0"], "--queue 0"),
        (["--answer", "0"], "--answer 0"),
        (["--memory", "much"], "500MB or 2GiB"),
        (["--recipe", "snpkv"], "'snapkv'"),
        (["--host", "0.0.0.0"], "KVLEDGER_API_KEY"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvledger.hf import load

    def never(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load", never)
    monkeypatch.delenv(command.KEY, raising=False)
    made = arguments(*words)
    with pytest.raises(ValueError, match=reason):
        made.body(made)


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    made = arguments()
    with pytest.raises(ValueError, match=r"starlette: pip install 'kvledger\[serve\]'"):
        made.body(made)


def test_the_parsers_load_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, kvledger.serve.command, kvledger.serve.request\n"
        "print(sorted({'torch', 'transformers', 'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_address_is_this_machine_alone() -> None:
    made = arguments("--port", "0")
    with command.listen(made.host, made.port, "") as place:
        assert place.getsockname()[0] == "127.0.0.1"
