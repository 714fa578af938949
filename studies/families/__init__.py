"""Which families of transformers steerscope takes: a tiny random model of each one, tried."""
