"""Numbers that a graph can be evaluated over, besides its own and float64 (`normfold.ir.evaluation`)."""
