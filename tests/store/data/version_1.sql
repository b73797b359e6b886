-- A database as the release with version 1 wrote it, as text.
PRAGMA application_id = 1785684599;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    record   TEXT NOT NULL,
    hash     TEXT NOT NULL
);
INSERT INTO "audit" VALUES(1,'{"action":"job.start","credential":"serial:02","decision":"allowed","detail":"","previous":"0000000000000000000000000000000000000000000000000000000000000000","principal":"alice","sequence":1,"source":"127.0.0.1","target":"6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01","time":1767225600.0}','c2a2c40b0f76a82f4a6c7b64b1c3c70ce926741e4995298532a64dad2dfdc37a');
CREATE TABLE denied_credentials (
    kind   TEXT NOT NULL CHECK (kind IN ('serial', 'key', 'identity')),
    value  TEXT NOT NULL,
    reason TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (kind, value)
) WITHOUT ROWID;
INSERT INTO "denied_credentials" VALUES('serial','01','key lost',1767225000.0);
CREATE TABLE job_labels (
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
    PRIMARY KEY (key, value, sequence)
) WITHOUT ROWID;
INSERT INTO "job_labels" VALUES('env','prod',1);
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
INSERT INTO "jobs" VALUES(1,'6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01','alice','COMPLETED','greeting',1767225600.0,1767225600.5,1,'run','first','here','{"program":"/bin/echo","args":["hello"],"env":{},"workdir":null,"name":"greeting","labels":{"env":"prod"},"network":"none","limits":{"cpu":0.5,"memory":536870912,"pids":256,"io_read_bps":null,"io_write_bps":null,"io_read_iops":null,"io_write_iops":null,"io_device":null,"timeout":null,"output_bytes":1073741824,"on_output_limit":"drop"}}','{"memory":"536870912"}','{"namespaces":"pid,mount"}','{"outcome":{"kind":"exited","code":0},"started_at":1767225600.5,"ended_at":1767225601.0,"usage":{"cpu_seconds":null,"throttled_seconds":null,"memory_peak":null,"oom_kills":null,"io_read_bytes":null,"io_write_bytes":null},"output":{"stdout_bytes":0,"stderr_bytes":0,"dropped_bytes":0,"dropped_reason":null}}');
CREATE TABLE users (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    created_at REAL NOT NULL,
    removed_at REAL
) WITHOUT ROWID;
INSERT INTO "users" VALUES('alice','user',1767225000.0,NULL);
CREATE INDEX jobs_of_owner ON jobs (owner, sequence, state, name, id);
CREATE INDEX jobs_by_age ON jobs (sequence, state, name, id);
CREATE INDEX jobs_unfinished ON jobs (sequence, owner, state) WHERE state IN ('PENDING', 'RUNNING');
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX job_labels_of_job ON job_labels (sequence);
CREATE TRIGGER audit_refuses_edits BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
CREATE TRIGGER audit_refuses_removals BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',1);
INSERT INTO "sqlite_sequence" VALUES('audit',1);
COMMIT;
