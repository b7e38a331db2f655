"""Polynomials that orthogonalise matrices."""
