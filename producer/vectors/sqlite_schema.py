"""The tables of the SQLite store, and the migration from earlier versions. Format: docs/store.md."""

from typing import Final

SCHEMA_VERSION: Final = 2
# Rows lie in the order in which they came; reading them in that order is three times faster than by id.
TABLES: Final = (
    """
    CREATE TABLE spaces (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, space TEXT NOT NULL,
        created REAL NOT NULL, provenance TEXT NOT NULL, rows INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 0, changed REAL NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE vectors (
        number INTEGER PRIMARY KEY, space INTEGER NOT NULL REFERENCES spaces(key), id TEXT NOT NULL,
        digest TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, stored REAL NOT NULL,
        vector BLOB NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX vectors_by_id ON vectors (space, id)",
    "CREATE INDEX vectors_by_content ON vectors (space, digest)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
# Triggers count, not the program: rows that are changed by hand are counted as well.
TRIGGERS: Final = (
    """
    CREATE TRIGGER one_more AFTER INSERT ON vectors BEGIN
        UPDATE spaces SET rows = rows + 1, version = version + 1, changed = NEW.stored WHERE key = NEW.space;
    END
    """,
    """
    CREATE TRIGGER one_again AFTER UPDATE ON vectors BEGIN
        UPDATE spaces SET version = version + 1, changed = NEW.stored WHERE key = NEW.space;
    END
    """,
    """
    CREATE TRIGGER one_less AFTER DELETE ON vectors BEGIN
        UPDATE spaces SET rows = rows - 1, version = version + 1,
            changed = (julianday('now') - 2440587.5) * 86400 WHERE key = OLD.space;
    END
    """,
)
FROM_VERSION_1: Final = (
    "ALTER TABLE spaces ADD COLUMN version INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE spaces ADD COLUMN changed REAL NOT NULL DEFAULT 0",
    "UPDATE spaces SET changed = created",
    "DROP TRIGGER one_more",
    "DROP TRIGGER one_less",
)
