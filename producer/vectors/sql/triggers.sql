-- Triggers count, not the program: rows that are changed by hand are counted as well.
CREATE TRIGGER one_more AFTER INSERT ON vectors BEGIN
    UPDATE spaces SET rows = rows + 1, version = version + 1, changed = NEW.stored WHERE key = NEW.space;
END;

CREATE TRIGGER one_again AFTER UPDATE ON vectors BEGIN
    UPDATE spaces SET version = version + 1, changed = NEW.stored WHERE key = NEW.space;
END;

CREATE TRIGGER one_less AFTER DELETE ON vectors BEGIN
    UPDATE spaces SET rows = rows - 1, version = version + 1,
        changed = (julianday('now') - 2440587.5) * 86400 WHERE key = OLD.space;
END;
