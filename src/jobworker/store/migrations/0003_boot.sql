-- The boot of the host that the newest server ran in, one row.
CREATE TABLE boot (id TEXT NOT NULL);
