-- The temporary database of a catalogue. `number` is an entry's position in a JSON list, or its line.
-- `key` is the poster_id of the file, so that a file is recognized in whatever form its name has on disk; `file` is
-- NULL where it is the same.
CREATE TABLE entries (number INTEGER PRIMARY KEY, key TEXT, file BLOB, id TEXT, json TEXT);
CREATE TABLE problems (number INTEGER PRIMARY KEY, id TEXT, word TEXT, reason TEXT);
