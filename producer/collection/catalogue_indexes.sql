-- Run when everything is in: sorting is faster than inserting in order. `number` follows the key or id in the
-- indexes, so that the first entry of many with the same file is found at once.
CREATE INDEX entries_by_key ON entries (key, number);
CREATE INDEX entries_by_id ON entries (id, number);
CREATE INDEX problems_by_id ON problems (id);

-- Numbers of the entries that share a file or an id with another; mostly none.
CREATE TABLE duplicates AS SELECT number FROM entries WHERE
    key IN (SELECT key FROM entries GROUP BY key HAVING count(*) > 1) OR
    id IN (SELECT id FROM entries GROUP BY id HAVING count(*) > 1);

-- Of each entry, the first one before it with the same file, and with the same id.
CREATE VIEW earlier AS SELECT number, key, id,
    (SELECT number FROM entries WHERE key = entry.key AND number < entry.number ORDER BY number LIMIT 1) AS same_file,
    (SELECT number FROM entries WHERE id = entry.id AND number < entry.number ORDER BY number LIMIT 1) AS same_id
FROM entries AS entry;
