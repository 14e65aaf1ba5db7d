"""The paper's runs (`python -m minillm.chain`): stages, its table, a narrow task in miniature."""
