"""The embedded model: a tiny Llama that can do the small form of the tasks, and the script that trains it.

Importing this costs nothing; `path()` is what `from_pretrained` takes.
"""

from pathlib import Path


def path() -> Path:
    """The folder with the model and its tokenizer (plain transformers files)."""
    return Path(__file__).parent / "model"
