"""Writes docs/openapi.json from the routes; with --check it only says whether the file is fresh."""

import json
import sys
from pathlib import Path

from jobworker.api.http.app import document

TARGET = Path(__file__).parent.parent / "docs/openapi.json"


def main() -> None:
    """Writes the file, or compares it with what is there."""
    marked = {"x-generated": "by `make openapi` from src/jobworker/api/http; do not edit"} | document()
    fresh = json.dumps(marked, indent=2, ensure_ascii=False) + "\n"
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != fresh:
            sys.exit("stale: docs/openapi.json; run `make openapi` and commit the result")
        return
    TARGET.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
