"""One file per revision, named after it; each can be undone."""
