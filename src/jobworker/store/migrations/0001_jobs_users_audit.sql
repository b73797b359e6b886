-- "jobw": tells this database from any other SQLite file.
PRAGMA application_id = 1785684599;

-- `sequence` is the order in which jobs were recorded; no clock can change it.
CREATE TABLE jobs (
    sequence         INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    owner            TEXT NOT NULL,
    state            TEXT NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'STOPPED')),
    name             TEXT,
    created_at       REAL NOT NULL,
    started_at       REAL,
    attempt          INTEGER NOT NULL,
    desired          TEXT NOT NULL CHECK (desired IN ('run', 'stop')),
    idempotency_key  TEXT,
    node             TEXT NOT NULL,
    spec             TEXT NOT NULL,
    effective_limits TEXT NOT NULL,
    sandbox          TEXT NOT NULL,
    ending           TEXT,
    CHECK (state <> 'RUNNING' OR started_at IS NOT NULL),
    CHECK ((ending IS NOT NULL) = (state IN ('COMPLETED', 'FAILED', 'STOPPED')))
);

-- The two listings hold everything a filter looks at, so that the wide rows are read for the
-- jobs of one page only.
CREATE INDEX jobs_of_owner ON jobs (owner, sequence, state, name, id);
CREATE INDEX jobs_by_age ON jobs (sequence, state, name, id);
CREATE INDEX jobs_unfinished ON jobs (sequence, owner, state) WHERE state IN ('PENDING', 'RUNNING');
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE job_labels (
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
    PRIMARY KEY (key, value, sequence)
) WITHOUT ROWID;
CREATE INDEX job_labels_of_job ON job_labels (sequence);

-- A removed user keeps the row: the name's history decides about old certificates.
CREATE TABLE users (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    created_at REAL NOT NULL,
    removed_at REAL
) WITHOUT ROWID;

CREATE TABLE denied_credentials (
    kind   TEXT NOT NULL CHECK (kind IN ('serial', 'key', 'identity')),
    value  TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (kind, value)
) WITHOUT ROWID;

-- AUTOINCREMENT remembers the highest number ever given, so a removed tail shows.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    record   TEXT NOT NULL,
    hash     TEXT NOT NULL
);
CREATE TRIGGER audit_refuses_edits BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
CREATE TRIGGER audit_refuses_removals BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
