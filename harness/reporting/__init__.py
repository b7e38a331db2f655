"""Tables, figures, the claims ledger and the report: everything read from records alone."""
