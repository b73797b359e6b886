"""`jobworkerd check`: what this host can enforce, found out by trying, and how to get the rest."""

import json
import os
import sys
from typing import Any, Final, Literal

from jobworker.runtime.controls import CONTROLS, Finding, Need, describe_isolation, judge, try_all

_INDENT: Final = " " * 4


def check(output: Literal["table", "json"]) -> int:
    """Prints a line for each control; returns 1 when jobs would be refused or run with less, else 0."""
    findings = try_all(CONTROLS)
    verdict = judge(findings, (), is_root=os.geteuid() == 0)
    if output == "json":
        sys.stdout.write(json.dumps([_document(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.writelines(_table(findings))
        if verdict.refused:
            sys.stdout.write(f"\nNo job can run here: {', '.join(verdict.refused)} missing.\n")
        else:
            sys.stdout.write(f"\nJobs run here with isolation: {describe_isolation(verdict.degraded)}.\n")
    return int(bool(verdict.refused or verdict.degraded))


def _document(finding: Finding) -> dict[str, Any]:
    control = finding.control
    return {
        "control": control.name,
        "works": finding.works,
        "required": control.need in {Need.ALL, Need.DEFAULT},
        "needed_by": control.need.value,
        "can_be_allowed_to_be_missing": control.can_be_done_without,
        "lost_without": control.lost_without,
        "remedy": control.remedy,
        "reason": finding.reason,
    }


def _table(findings: list[Finding]) -> list[str]:
    rows = [("CONTROL", "WORKS", "NEEDED BY", "LOST WITHOUT IT")]
    rows += [
        (
            finding.control.name,
            "yes" if finding.works else "no",
            finding.control.need.value,
            finding.control.lost_without,
        )
        for finding in findings
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown = [lines[0]]
    for line, finding in zip(lines[1:], findings, strict=True):
        shown.append(line)
        if not finding.works:
            shown += [f"{_INDENT}why: {finding.reason}", f"{_INDENT}how to get it: {finding.control.remedy}"]
    return [line + "\n" for line in shown]
