"""Training callbacks: the contract, the runner that drives them, and the built-in ones."""
