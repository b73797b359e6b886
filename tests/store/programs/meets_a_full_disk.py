"""Write to a database on a small disk before, while and after it is full; tell what happened as JSON."""

import json
import sys
from pathlib import Path

from jobworker.core.errors import JobError
from jobworker.store import users
from jobworker.store.database import Database

MIB = 1024 * 1024


def outcome_of_adding(database: Database, name: str, padding: int) -> str:
    try:
        database.write_now(lambda connection: users.add(connection, name, "r" * padding, 1.0))
    except JobError as error:
        return error.code.value
    return "durable"


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


def main() -> None:
    directory = Path(sys.argv[1])
    with Database.open(directory / "jobworker.db") as database:
        report = {"before": outcome_of_adding(database, "before", 10)}
        fill(directory / "ballast")
        report["full"] = outcome_of_adding(database, "full", 100_000)
        report["larger than the cache"] = outcome_of_adding(database, "larger", 8 * MIB)
        report["read while full"] = [user.name for user in database.read(users.everyone)]
        (directory / "ballast").unlink()
        report["after"] = outcome_of_adding(database, "after", 100_000)
        report["users"] = [user.name for user in database.read(users.everyone)]
        report["integrity"] = database.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()[0])
    print(json.dumps(report))


main()
