"""Commands that depend on one another, made once each; sweeps and their trials."""
