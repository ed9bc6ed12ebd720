"""The embedded models, tiny Llamas that can do the small form of the tasks, and the script that trains them.

Importing this costs nothing; `path()` is what `from_pretrained` takes.
"""

from pathlib import Path

MODELS = {"zoo": "model", "zoo-wide": "wide"}  # the second can do RULER's tasks and SCBench's look-alikes, too


def path(name: str = "zoo") -> Path:
    """The folder with the model and its tokenizer (plain transformers files)."""
    return Path(__file__).parent / MODELS[name]
