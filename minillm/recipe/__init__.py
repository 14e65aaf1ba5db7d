"""The paper's runs one after the other (`python -m minillm.chain`): stages, its table, a narrow task in miniature."""
