-- `hash` is the SHA-256 of the secret; the secret itself is nowhere. A token with a parent was given
-- for it, and is worth nothing once the parent is not.
CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL,
    user       TEXT NOT NULL REFERENCES users (name),
    scopes     TEXT NOT NULL,
    parent     TEXT REFERENCES tokens (id) ON DELETE CASCADE,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    revoked_at REAL,
    CHECK (length(hash) = 32)
) WITHOUT ROWID;
CREATE INDEX tokens_of_user ON tokens (user);
CREATE INDEX tokens_of_parent ON tokens (parent, expires_at) WHERE parent IS NOT NULL;
CREATE INDEX tokens_with_parent ON tokens (expires_at) WHERE parent IS NOT NULL;
