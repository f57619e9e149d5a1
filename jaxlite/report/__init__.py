"""A run's evidence: tables, figures, the page, and the ledger of what each part did."""
