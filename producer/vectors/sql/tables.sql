-- Statements are separated by blank lines. Format: docs/store.md.
CREATE TABLE spaces (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, space TEXT NOT NULL,
    created REAL NOT NULL, provenance TEXT NOT NULL, rows INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0, changed REAL NOT NULL DEFAULT 0,
    calibration TEXT
);

-- Rows lie in the order in which they came; reading them in that order is three times faster than by id.
CREATE TABLE vectors (
    number INTEGER PRIMARY KEY, space INTEGER NOT NULL REFERENCES spaces(key), id TEXT NOT NULL,
    digest TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, stored REAL NOT NULL,
    vector BLOB NOT NULL
);

CREATE UNIQUE INDEX vectors_by_id ON vectors (space, id);

CREATE INDEX vectors_by_content ON vectors (space, digest);

CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
