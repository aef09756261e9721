-- A round looks at who is next, who was told a wrong reason, who holds a slot and who is due: not at everybody who waits.
CREATE INDEX jobs_in_line ON jobs (priority DESC, queued_at, position) WHERE phase = 'queued';
CREATE INDEX jobs_with_slots ON jobs (job_id) WHERE phase = 'holding';
CREATE INDEX jobs_delayed ON jobs (not_before) WHERE phase = 'queued' AND not_before IS NOT NULL;
