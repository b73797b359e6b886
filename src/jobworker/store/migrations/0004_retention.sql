-- What retention goes by: when a job ended, and how much output was kept of it.
ALTER TABLE jobs ADD COLUMN ended_at REAL AS (json_extract(ending, '$.ended_at')) VIRTUAL;
ALTER TABLE jobs ADD COLUMN kept_bytes INTEGER
    AS (json_extract(ending, '$.output.stdout_bytes') + json_extract(ending, '$.output.stderr_bytes')) VIRTUAL;
CREATE INDEX jobs_by_end ON jobs (ended_at, id, kept_bytes) WHERE ending IS NOT NULL;
