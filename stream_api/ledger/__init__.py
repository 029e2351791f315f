"""PostgreSQL: uploads, their runs, and the ledger that says which segments are loaded."""
