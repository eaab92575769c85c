"""Quantisation without data: norm statistics, analytic ranges, distilled inputs, sensitivity, allocation."""
