"""Training runs on the machine that this process runs on: started once, found again, ended. For bridge and agent."""
