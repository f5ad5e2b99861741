"""Makes the model files of each stack from one checkpoint, in the environment of that stack."""
