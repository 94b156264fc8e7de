"""How many speakers so many machines carry: the service as queues (simulation.py), fed with what each part costs (costs.py)."""
