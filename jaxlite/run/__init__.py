"""One run: the loop, its folder, records, progress and guards."""
