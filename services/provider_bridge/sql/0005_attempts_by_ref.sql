-- A provider's webhook names the run as the provider does.
CREATE INDEX attempts_by_ref ON attempts (provider, provider_ref) WHERE provider_ref IS NOT NULL;
