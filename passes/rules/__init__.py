"""Rules by subject: sets that passes add up and run."""
