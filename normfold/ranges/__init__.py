"""Quantisation without data: norm statistics, analytic ranges, synthesised inputs, sensitivity, allocation."""
