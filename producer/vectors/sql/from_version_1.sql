-- triggers.sql follows.
ALTER TABLE spaces ADD COLUMN version INTEGER NOT NULL DEFAULT 0;

ALTER TABLE spaces ADD COLUMN changed REAL NOT NULL DEFAULT 0;

UPDATE spaces SET changed = created;

DROP TRIGGER one_more;

DROP TRIGGER one_less;
