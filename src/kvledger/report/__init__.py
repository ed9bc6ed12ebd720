"""Records in, a terminal table, a JSON document and a page out.  (no torch)"""

from .document import to_json
from .page import write as write_page
from .terminal import print_table

__all__ = ["print_table", "to_json", "write_page"]
