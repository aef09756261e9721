"""One module per group of commands. Each command prints through its session and answers the exit code."""
