"""What a step of a job does to a graph."""
