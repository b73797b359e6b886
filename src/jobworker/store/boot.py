"""Which boot of the host the newest server ran in, so that a reset can be told from a restart."""

import sqlite3


def known(connection: sqlite3.Connection) -> str:
    """The id of that boot; empty before the first."""
    row = connection.execute("SELECT id FROM boot").fetchone()
    return "" if row is None else str(row[0])


def replace(connection: sqlite3.Connection, boot_id: str) -> None:
    """Puts this boot on record in place of the one before."""
    connection.execute("DELETE FROM boot")
    connection.execute("INSERT INTO boot (id) VALUES (?)", (boot_id,))
