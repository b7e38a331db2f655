"""Check on your own hardware what papers claim about optimizers and LLM efficiency techniques."""
