"""The mutation harness of the verdict: faults put in on purpose, and which of them it sees."""
