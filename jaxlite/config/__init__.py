"""What an experiment is made of: dataclasses, durations, flags and their saved form. Standard library and absl only."""
