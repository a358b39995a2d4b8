"""Any pile of footage: what is in it (scan), and small clips of it that read fast (prepare)."""
