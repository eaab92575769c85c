"""``python -m tests.methods``: run every method and write docs/norm-methods.md."""

from tests.methods.page import row, write
from tests.methods.table import found, methods

write([row(method.name, found(method)) for method in methods()])
