"""Evaluation with lm-eval: the adapter of our models, embedded tasks and the runner."""
