"""Prints what became of each of several jobs: its id, or a JSON document."""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from jobworker.cli.options import Format
from jobworker.cli.render import print_json


class Report:
    """Ids and lines of JSON are printed at once; one JSON document when all have been tried.

    That document is an array where several jobs were asked for, and holds those that could be acted on.
    """

    def __init__(self, output: Format, ids: Sequence[str]) -> None:
        self._output = output
        self._is_about_several = len(ids) > 1
        self._documents: list[Mapping[str, Any]] = []

    def add(self, document: Mapping[str, Any]) -> None:
        """Reports one job by a document with its `id`."""
        match self._output:
            case Format.TABLE:
                print(document["id"])  # noqa: T201 - the data
            case Format.JSONL:
                print_json(document, is_compact=True)
            case Format.JSON:
                self._documents.append(document)
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._output is Format.JSON and self._is_about_several:
            print_json(self._documents)
        elif self._documents:
            print_json(self._documents[0])
        sys.stdout.flush()
