"""JUnit files as Jenkins reads them: by the schema of its xUnit plug-in, from the source archive of pytest 9.2."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import xmlschema


@cache
def _schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(Path(__file__).with_name("junit-10.xsd").as_posix())


def require_jenkins(text: str) -> None:
    """Refuse a text that the schema does not allow.

    Raises:
        xmlschema.XMLSchemaValidationError: with the element, and the rule.
    """
    _schema().validate(text)
