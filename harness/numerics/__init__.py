"""Polynomials that orthogonalise matrices, and number formats."""
