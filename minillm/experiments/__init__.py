"""The paper's runs in order (`python -m minillm.chain`), sweeps, plans."""
