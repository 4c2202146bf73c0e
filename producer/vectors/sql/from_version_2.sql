-- JSON of a Calibration; null before the first one.
ALTER TABLE spaces ADD COLUMN calibration TEXT;
