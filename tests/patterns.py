"""Options of prefill patterns for the tests' short prompts: `EVERYTHING` leaves nothing out, `SPARSE` does."""

from __future__ import annotations

from kvledger.recipe import registry

EVERYTHING = {
    "ashape": "ashape",
    "trishape": "trishape(window=3, last=4096)",
    "minference": "minference",
    "flexprefill": "flexprefill(gamma=1.0, block=8)",
    "xattention": "xattention(threshold=1.0, stride=4, block=8)",
    "moba": "moba(block=8, top=99)",
    "nsa": "nsa(compress=8, stride=4, block=8, select=99, window=0)",
}
SPARSE = {
    "ashape": "ashape(sinks=2, window=6)",
    "trishape": "trishape(sinks=2, window=6, last=5)",
    "minference": "minference(vertical=4, slash=6, queries=6, block=4)",
    "flexprefill": "flexprefill(gamma=0.3, tau=0.25, block=4)",
    "xattention": "xattention(threshold=0.4, stride=2, block=4)",
    "moba": "moba(block=4, top=3)",
    "nsa": "nsa(compress=4, stride=2, block=4, select=4, window=4)",
}
NAMES = sorted(name for name, part in registry().items() if part.role == "pattern")
