"""The owner of `job` streams: takes jobs in, decides which runs when, and drives each one to its end."""
