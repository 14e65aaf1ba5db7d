"""What every room uses: types, errors, settings as plain values, a run's files, the terminal, the machine."""
