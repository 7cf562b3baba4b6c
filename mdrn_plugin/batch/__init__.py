"""Many files: what to do is decided before any work, each file is done or named, a ledger remembers."""
