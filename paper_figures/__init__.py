"""One module per figure; each reads records only, so a figure never needs a training run."""
