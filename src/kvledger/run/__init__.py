"""Cells to records: one cell in one session (`cell.py`), a grid of cells minus what is done (`sweep.py`)."""
