"""`kvledger serve`: the arguments, the socket, the model, the server; and the arguments of `kvledger export`. Loads no torch
before it must."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import socket
from typing import Any

KEY = "KVLEDGER_API_KEY"
CONNECTIONS = 512  # more than that are turned away before they are read


def add_parser(commands: Any) -> None:
    """The subcommand `serve`, on argparse's sub-parsers."""
    parser = commands.add_parser("serve", help="an OpenAI-compatible endpoint over a recipe", allow_abbrev=False)
    parser.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    parser.add_argument("--recipe", default="full", help='what is done to the cache, e.g. "snapkv(keep=0.3)"')
    parser.add_argument("--chunk", type=int, default=512, metavar="TOKENS", help="tokens read at a time (default: 512)")
    parser.add_argument(
        "--host", default="127.0.0.1", help=f"beyond this machine only with {KEY} set (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="of contexts and conversations (default: 1GiB)"
    )
    parser.add_argument("--queue", type=int, default=32, metavar="N", help="requests that may wait (default: 32)")
    parser.add_argument(
        "--answer", type=int, default=512, metavar="TOKENS", help="where a request does not say (default: 512)"
    )
    parser.set_defaults(body=body, parser=parser)


def add_export_parser(commands: Any) -> None:
    """The subcommand `export`, on argparse's sub-parsers."""
    parser = commands.add_parser("export", help="gates and recipes for other engines", allow_abbrev=False)
    parser.add_argument("source", metavar="GATES|RECIPE", help="gates.json or its folder, zoo/NAME, or a recipe")
    parser.add_argument("--to", required=True, choices=["duo", "vllm"], help="whose form")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--model", default="zoo", help="vllm: whose settings (zoo, a folder or a hub id)")
    parser.add_argument("--keep", type=float, default=0.5, help="of gates: the fraction of heads that stay full")
    parser.add_argument(
        "--round", default="budget", choices=["budget", "any"], help="to whole layers: at equal memory, or losing none"
    )
    parser.add_argument("--task", default="scbench/kv", help="on which the cost is measured (default: scbench/kv)")
    parser.add_argument("--context", type=int, default=1024, metavar="TOKENS", help="of a sample (default: 1024)")
    parser.add_argument("--samples", type=int, default=4, help="contexts; 0 measures nothing (default: 4)")
    parser.add_argument("--turns", type=int, default=4, help="questions of each (default: 4)")
    parser.set_defaults(body=_export, parser=parser)


def _export(arguments: argparse.Namespace) -> None:
    from kvledger.serve.export import body

    body(arguments)


def body(arguments: argparse.Namespace) -> None:
    """Serve until stopped. ValueError for what cannot be, before the model is loaded where that can be known."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'kvledger[serve]'") from error
    del starlette
    from kvledger.recipe import parse
    from kvledger.serve.request import bytes_of

    for name in ("queue", "answer"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: there must be at least one")
    recipe, memory = parse(arguments.recipe), bytes_of(arguments.memory)
    if recipe.source is not None:
        raise ValueError(f"{recipe}: a source changes the text before it is read, which is not served; leave it out")
    key = os.environ.get(KEY, "")
    with listen(arguments.host, arguments.port, key) as place:
        from kvledger.hf.load import load
        from kvledger.serve.app import build
        from kvledger.serve.engine import Engine

        model, tokenizer = load(arguments.model)
        engine = Engine(model, tokenizer, recipe, arguments.chunk, memory, arguments.queue, arguments.answer)
        host, port = place.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{arguments.model} under {recipe} at http://{shown}:{port}/v1", flush=True)
        config = uvicorn.Config(
            build(engine, arguments.model, key),
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has closed everything
            uvicorn.Server(config).run(sockets=[place])


def listen(host: str, port: int, key: str) -> socket.socket:
    """A listening socket. ValueError for a place that is taken or not there, and for one that others can reach unasked."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port {port} is outside 0–65535")
    if not key and not _loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines: set {KEY} to a secret that requests must carry "
            "(Authorization: Bearer …), or stay with 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(
            f"cannot listen at {host} port {port}: {reason}; choose another --port, or 0 for any"
        ) from error
    return place


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
