"""The machine under a run: files, memory and devices, this process's rank, child processes."""
