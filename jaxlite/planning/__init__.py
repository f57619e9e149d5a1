"""What a run will need before it begins: memory, time, and what to change. No step is taken to answer, unless asked."""
