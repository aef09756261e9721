-- An attempt that has ended may still own a machine that costs money: it is looked after until that is gone.
ALTER TABLE attempts ADD COLUMN pays_machine boolean NOT NULL DEFAULT false;
ALTER TABLE attempts ADD COLUMN owes_release boolean NOT NULL DEFAULT false;
DROP INDEX attempts_live;
CREATE INDEX attempts_live ON attempts (position) WHERE outcome IS NULL OR owes_release;
